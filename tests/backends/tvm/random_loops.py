"""Random loops of open length, compared with ONNX Runtime.

    python -m tests.backends.tvm.random_loops --count 100 --seed 0

prints the seeds of those that differ, crash or are refused.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from ...onnx_runtime import session_of

WIDTH = 4
CONSTANTS = {
    "zero": np.int64(0),
    "one": np.int64(1),
    "second": np.int64([2]),
    "sixth": np.int64([6]),
    "last_axis": np.int64([1]),
    "order": np.int64([3, 1, 0, 0]),
    "flat": np.int64([-1]),
    "zeros": np.int64([0]),
    "width": np.int64([WIDTH]),
    "nothing": np.float32(0),
    "little": np.float32(0.01),
    "most": np.float32(0.9),
    "yes": np.array(True),
}
SIZES = ((1, 1, 0), (2, 3, 2), (1, 7, 1), (3, 12, 5))
"""Batch, length and the trip count that data give, of each run."""


class RandomLoops:
    """A model of one or two loops over values of [b, 4] and sequences of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.constants: dict[str, Any] = dict(CONSTANTS)
        self.named = 0

    def name(self) -> str:
        self.named += 1
        return f"v{self.named}"

    def add(
        self, nodes: list[onnx.NodeProto], op_type: str, inputs: list[str], **attributes: Any
    ) -> str:
        name = self.name()
        nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def operations(
        self, pool: list[str], count: int, *, nested: bool
    ) -> tuple[list[onnx.NodeProto], list[str]]:
        """Nodes over what is in the pool, and the pool with their results."""
        nodes: list[onnx.NodeProto] = []
        pool = list(pool)
        for _ in range(count):
            kinds = [self.combined, self.changed, self.moved, self.product, self.branch]
            kinds += [self.selected, self.lengths, self.largest]
            loops = [] if nested else [self.inner_scan, self.inner_loop]
            kind = self.random.choice([*kinds, *loops])
            kind(nodes, pool)
        return nodes, pool

    def combined(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        kind = self.random.choice(["Add", "Mul", "Sub", "Max"])
        found = self.add(nodes, kind, [self.random.choice(pool), self.random.choice(pool)])
        pool.append(self.add(nodes, "Tanh", [found]))

    def changed(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        kind = self.random.choice(["Neg", "Abs", "Identity", "Softmax", "CumSum"])
        more = ["one"] * (kind == "CumSum")
        pool.append(self.add(nodes, kind, [self.random.choice(pool), *more]))

    def moved(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        a, b = self.random.choice(pool), self.random.choice(pool)
        kind = self.random.choice(["join", "pick", "reshape"])
        if kind == "join":
            both = self.add(nodes, "Concat", [a, b], axis=1)
            pool.append(self.add(nodes, "Slice", [both, "second", "sixth", "last_axis"]))
        elif kind == "pick":
            pool.append(self.add(nodes, "Gather", [a, "order"], axis=1))
        else:
            flat = self.add(nodes, "Neg", [self.add(nodes, "Reshape", [a, "flat"])])
            pool.append(self.add(nodes, "Reshape", [flat, self.add(nodes, "Shape", [a])]))

    def product(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        weights = self.name()
        values = np.random.default_rng(self.named).standard_normal((WIDTH, WIDTH))
        self.constants[weights] = (0.4 * values).astype(np.float32)
        pool.append(self.add(nodes, "MatMul", [self.random.choice(pool), weights]))

    def branch(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        total = self.add(nodes, "ReduceSum", [self.random.choice(pool)], keepdims=0)
        sides = {}
        for side, kind in (("then_branch", "Abs"), ("else_branch", "Neg")):
            inner: list[onnx.NodeProto] = []
            result = self.add(inner, kind, [self.random.choice(pool)])
            sides[side] = helper.make_graph(inner, side, [], [floats(result)])
        condition = self.add(nodes, "Less", [total, "nothing"])
        pool.append(self.add(nodes, "If", [condition], **sides))

    def selected(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        """As many elements as the data lead to, and what is computed of them."""
        a = self.random.choice(pool)
        flat = self.add(nodes, "Reshape", [a, "flat"])
        kept = self.add(nodes, "Greater", [flat, "nothing"])
        if self.random.random() < 0.5:
            found = self.add(nodes, "Compress", [flat, kept])
        else:
            places = self.add(nodes, "NonZero", [kept])
            found = self.add(nodes, "Gather", [flat, self.add(nodes, "Squeeze", [places, "zeros"])])
        total = self.add(nodes, "ReduceSum", [self.add(nodes, "Tanh", [found]), "zeros"])
        pool.append(self.add(nodes, "Tanh", [self.add(nodes, "Add", [a, total])]))

    def lengths(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        """Branches that give other numbers of rows."""
        a, b = self.random.choice(pool), self.random.choice(pool)
        total = self.add(nodes, "ReduceSum", [b], keepdims=0)
        twice: list[onnx.NodeProto] = []
        both = self.add(twice, "Concat", [a, b], axis=0)
        once: list[onnx.NodeProto] = []
        if self.random.random() < 0.5:
            some = self.add(once, "Identity", [a])
        else:
            row = self.add(once, "ReduceMax", [b], axes=[1], keepdims=0)
            which = self.add(once, "Greater", [row, "nothing"])
            some = self.add(once, "Compress", [a, which], axis=0)
        sides = {
            "then_branch": helper.make_graph(twice, "twice", [], [floats(both)]),
            "else_branch": helper.make_graph(once, "once", [], [floats(some)]),
        }
        condition = self.add(nodes, "Less", [total, "nothing"])
        chosen = self.add(nodes, "If", [condition], **sides)
        row = self.add(nodes, "ReduceSum", [chosen, "zeros"], keepdims=1)
        pool.append(self.add(nodes, "Tanh", [self.add(nodes, "Add", [a, row])]))

    def largest(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        """As many of each row as an input says."""
        a = self.random.choice(pool)
        count = self.add(nodes, "Min", [self.add(nodes, "Reshape", ["k", "flat"]), "width"])
        values, places = self.name(), self.name()
        nodes.append(helper.make_node("TopK", [a, count], [values, places], axis=1))
        total = self.add(nodes, "ReduceSum", [values, "last_axis"], keepdims=1)
        pool.append(self.add(nodes, "Tanh", [self.add(nodes, "Sub", [a, total])]))

    def inner_scan(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        state, row = self.name(), self.name()
        a, b = self.random.choice(pool), self.random.choice(pool)
        inner, found = self.operations([state, row, a], 2, nested=True)
        after = self.add(inner, "Identity", [found[-1]])
        made = self.add(inner, "Neg", [self.random.choice(found)])
        body = graph(inner, [floats(state), floats(row)], [floats(after), floats(made)])
        last, rows = self.name(), self.name()
        sequence = self.random.choice(["s", "computed"])
        scan = helper.make_node("Scan", [b, sequence], [last, rows], num_scan_inputs=1, body=body)
        nodes.append(scan)
        pool += [last, self.add(nodes, "ReduceMean", [rows], axes=[0], keepdims=0)]

    def inner_loop(self, nodes: list[onnx.NodeProto], pool: list[str]) -> None:
        """One that data end, after as many steps as an input says or earlier."""
        number, on, state, go = (self.name() for _ in range(4))
        inner, found = self.operations([state, self.random.choice(pool)], 2, nested=True)
        after = self.add(inner, "Identity", [found[-1]])
        most = self.add(inner, "ReduceMax", [after], keepdims=0)
        inner.append(helper.make_node("Less", [most, "most"], [go]))
        body = graph(
            inner,
            [scalar(number, "INT64"), scalar(on, "BOOL"), floats(state)],
            [scalar(go, "BOOL"), floats(after)],
        )
        trips = self.random.choice(["k", "steps"])
        pool.append(self.add(nodes, "Loop", [trips, "yes", self.random.choice(pool)], body=body))

    def outputs(self, nodes: list[onnx.NodeProto], pool: list[str], count: int) -> list[str]:
        """Results of a body: what its nodes make, or copies of anything, none of them twice."""
        own = {name for node in nodes for name in node.output}
        found: list[str] = []
        for _ in range(count):
            name = self.random.choice(pool)
            if name not in own or name in found or self.random.random() < 0.7:
                name = self.add(nodes, "Identity", [name])
            found.append(name)
        return found

    def loop(self, pool: list[str]) -> tuple[onnx.NodeProto, list[str], list[str]]:
        """A loop, what its states end as and what it stacks."""
        kind = self.random.choice(["Scan", "Loop", "while"])
        states = [self.name() for _ in range(self.random.randint(kind == "while", 3))]
        initial = [self.random.choice(pool) for _ in states]
        build: Callable[..., onnx.NodeProto] = self.scan if kind == "Scan" else self.counted
        last = [self.name() for _ in states]
        count = self.random.randint(not states, 2)
        rows = [self.name() for _ in range(count)]
        return build(pool, states, initial, last, rows, ends=kind == "while"), last, rows

    def scan(
        self,
        pool: list[str],
        states: list[str],
        initial: list[str],
        last: list[str],
        rows: list[str],
        *,
        ends: bool,
    ) -> onnx.NodeProto:
        assert not ends
        read = [self.name() for _ in range(self.random.randint(1, 2))]
        whole = [self.random.choice(["s", "computed", "t"]) for _ in read]
        count = self.random.randint(1, 6)
        inner, found = self.operations([*states, *read, *pool], count, nested=False)
        results = self.outputs(inner, found, len(states) + len(rows))
        attributes: dict[str, Any] = {
            "scan_input_axes": [int(name == "t") for name in whole],
            "scan_input_directions": [self.random.randint(0, 1) for _ in read],
        }
        if rows:
            attributes["scan_output_axes"] = [self.random.choice([0, 1, 2, -1]) for _ in rows]
            attributes["scan_output_directions"] = [self.random.randint(0, 1) for _ in rows]
        return helper.make_node(
            "Scan",
            [*initial, *whole],
            [*last, *rows],
            num_scan_inputs=len(read),
            body=graph(inner, [floats(n) for n in (*states, *read)], [floats(n) for n in results]),
            **attributes,
        )

    def counted(
        self,
        pool: list[str],
        states: list[str],
        initial: list[str],
        last: list[str],
        rows: list[str],
        *,
        ends: bool,
    ) -> onnx.NodeProto:
        """A Loop; one that data end where its first state becomes large."""
        number, on = self.name(), self.name()
        first: list[onnx.NodeProto] = []
        if ends:
            row = self.add(first, "Gather", ["x", "order"], axis=1)
        else:
            row = self.add(first, "Gather", ["s", number], axis=0)
        scaled = self.add(first, "Mul", [self.add(first, "Cast", [number], to=1), "little"])
        moved = self.add(first, "Add", [row, scaled])
        inner, found = self.operations(
            [*states, row, moved, *pool], self.random.randint(1, 6), nested=False
        )
        inner = [*first, *inner]
        results = self.outputs(inner, found, len(states) + len(rows))
        go = self.name()
        if ends:
            most = self.add(inner, "ReduceMax", [results[0]], keepdims=0)
            inner.append(helper.make_node("Less", [most, "most"], [go]))
        else:
            inner.append(helper.make_node("Identity", [on], [go]))
        ends_in = [scalar(number, "INT64"), scalar(on, "BOOL"), *map(floats, states)]
        ends_out = [scalar(go, "BOOL"), *map(floats, results)]
        trips = self.random.choice(["steps", "k"]) if ends and not rows else "steps"
        condition = "yes" if ends else self.random.choice(["", "yes"])
        body = graph(inner, ends_in, ends_out)
        return helper.make_node("Loop", [trips, condition, *initial], [*last, *rows], body=body)

    def model(self) -> onnx.ModelProto:
        make = helper.make_node
        nodes = [
            make("CumSum", ["x", "one"], ["begun"]),
            make("Softmax", ["s"], ["computed"], axis=-1),
            make("Gather", ["shape", "zero"], ["steps"]),
        ]
        nodes.insert(0, make("Shape", ["s"], ["shape"]))
        pool, results = ["x", "begun"], list[str]()
        for _ in range(self.random.choice([1, 1, 2])):
            node, last, rows = self.loop(pool)
            nodes.append(node)
            pool += last
            results += [*last, *rows]
        kind = onnx.TensorProto.FLOAT
        shapes = {"x": ["b", WIDTH], "s": ["n", "b", WIDTH], "t": ["b", "n", WIDTH]}
        inputs = [helper.make_tensor_value_info(n, kind, shape) for n, shape in shapes.items()]
        inputs.append(helper.make_tensor_value_info("k", onnx.TensorProto.INT64, []))
        outputs = [helper.make_tensor_value_info(name, kind, None) for name in results]
        constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in self.constants.items()]
        whole = helper.make_graph(nodes, "loops", inputs, outputs, constants)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(whole, opset_imports=[opset], ir_version=8)


def floats(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, WIDTH])


def scalar(name: str, kind: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.DataType.Value(kind), [])


def graph(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs)


def feeds(batch: int, length: int, trips: int, seed: int) -> dict[str, Any]:
    """Inputs of a model of these sizes."""
    draw = np.random.default_rng(seed).standard_normal
    shapes = {"x": (batch, WIDTH), "s": (length, batch, WIDTH), "t": (batch, length, WIDTH)}
    found: dict[str, Any] = {n: draw(shape).astype(np.float32) for n, shape in shapes.items()}
    return {**found, "k": np.array(trips, np.int64)}


def difference(model: onnx.ModelProto, folder: Path, seed: int) -> str | None:
    """Where an artifact and ONNX Runtime differ; None if nowhere."""
    session = session_of(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    sizes = read_admitted(["b=1..", "n=1.."])
    compile_model(from_proto(model), parse_target("native"), folder / "m.so", sizes=sizes)
    runtime = Runtime(folder / "m.so")
    for batch, length, trips in SIZES:
        given = feeds(batch, length, trips, seed)
        right = session.run(names, given)
        found = runtime.run(given)
        for name, array in zip(names, right, strict=True):
            own = found[name]
            same = own.shape == array.shape
            if not same or not np.allclose(own, array, rtol=1e-3, atol=1e-4, equal_nan=True):
                return f"'{name}' at batch {batch}, length {length}"
    return None


@click.command()
@click.option("--count", default=100)
@click.option("--seed", default=0)
def main(count: int, seed: int) -> None:
    """Draw models and compare."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(seed, seed + count):
            try:
                found = difference(RandomLoops(number).model(), Path(folder), number)
            except SecateurError as error:
                found = f"refused: {error}"
            if found is not None:
                failed += 1
                click.echo(f"{number}: {found}")
    click.echo(f"{count - failed} of {count} equal")


if __name__ == "__main__":
    main()
