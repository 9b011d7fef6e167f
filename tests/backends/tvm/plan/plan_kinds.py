"""What fast rules make of every form; `python -m tests.backends.tvm.plan.plan_kinds` writes it.

`tests/golden/kinds/plan_kinds.txt` has a line for each operator and sequence of kinds of
operations that a node of it is lowered to, with the number of ONNX's cases, as they are and with
constant operands, and of drawn graphs, that are; then one for each of `forms` and `OPEN_FORMS`.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from secateur.backends.tvm.compile import one_sample
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import Plan
from secateur.backends.tvm.plan.text import print_plan
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.text import parse_model

PATH = Path(__file__).parents[3] / "golden" / "kinds" / "plan_kinds.txt"
TARGET = "x86-64-v3"
CASES, DRAWS = 40, 6


def kinds_of(proto: onnx.ModelProto) -> str:
    """Kinds of the operations of a model's plan, in order; of declared sizes where data decide
    some that nothing bounds."""
    model, target = from_proto(proto), parse_target(TARGET)
    try:
        plan = lower(one_sample(model)[0], target)
    except SecateurError:
        try:
            work = one_sample(model, declared_sizes=True)[0]
            plan = lower(work, target, declared_sizes=True)
        except SecateurError:
            return "refused"
    return _kinds(plan)


def _kinds(plan: Plan) -> str:
    return " ".join(re.findall(r"^%.* = (\w+)\(", print_plan(plan), re.MULTILINE)) or "nothing"


OPEN_FORMS = {
    "Add": ("(%x: float[1, n, 4], %z: float[n, 4])", "Add(%x, %z)"),
    "Add of one": ("(%x: float[2, n, 4], %z: float[n, 1])", "Add(%x, %z)"),
    "Concat": ("(%x: float[2, n, 4], %z: float[2, m, 4])", "Concat(%x, %z) {axis = 1}"),
    "Conv": ("(%x: float[2, 4, n, m])",
             "const %w: float[1, 4, 1, 1] = [1, 2, 3, 4]\n%y = Conv(%x, %w)"),
    "Expand": ("(%x: float[2, 1, 4], %z: float[n, 4])",
               "%a = Shape(%z)\n%y = Expand(%x, %a)"),
    "Flatten": ("(%x: float[2, n, 4])", "Flatten(%x) {axis = 2}"),
    "Gather": ("(%x: float[2, n, 4])",
               "const %i: int64[2] = [1, 0]\n%y = Gather(%x, %i) {axis = 0}"),
    "LayerNormalization": ("(%x: float[2, n, 4], %z: float[4])", "LayerNormalization(%x, %z)"),
    "MatMul": ("(%x: float[2, n, 4], %z: float[2, 4, m])", "MatMul(%x, %z)"),
    "MaxPool": ("(%x: float[2, 4, n, m])", "MaxPool(%x) {kernel_shape = [1, 2]}"),
    "ReduceMean": ("(%x: float[2, n, 4])", "ReduceMean(%x) {axes = [-1]}"),
    "ReduceMean of open": ("(%x: float[2, n, 4])", "ReduceMean(%x) {axes = [1]}"),
    "Relu": ("(%x: float[2, n, 4])", "Relu(%x)"),
    "Reshape": ("(%x: float[2, n, 4])", "const %s: int64[2] = [0, -1]\n%y = Reshape(%x, %s)"),
    "Slice": ("(%x: float[2, n, 4])", "Slice(%x, %from, %to, %one)"),
    "Slice of one": ("(%x: float[1, n, 4])", "Slice(%x, %from, %to, %one)"),
    "Slice of bytes": (
        "(%x: uint8[1, n, 4])",
        "const %s: float[] = 0.5\n%d = DequantizeLinear(%x, %s)\n%y = Slice(%d, %from, %to, %one)",
    ),
    "Slice by steps": ("(%x: float[2, n, 4])", "Slice(%x, %from, %to, %one, %two)"),
    "Slice backwards": ("(%x: float[2, n, 4])", "Slice(%x, %to, %from, %one, %back)"),
    "Slice of what is known": ("(%x: float[2, n, 4])", "Slice(%x, %from, %to, %two)"),
    "Softmax": ("(%x: float[2, n, 4])", "Softmax(%x)"),
    "Softmax of open": ("(%x: float[2, 4, n])", "Softmax(%x)"),
    "Split": ("(%x: float[2, n, 4])", "%y, %q = Split(%x) {axis = 2}"),
    "Squeeze": ("(%x: float[1, n, 4])", "const %a: int64[1] = [0]\n%y = Squeeze(%x, %a)"),
    "Transpose": ("(%x: float[2, n, 4])", "Transpose(%x) {perm = [1, 0, 2]}"),
}  # fmt: skip
"""Nodes of sizes that only a run tells: the interface, and what `%y` is."""


def open_kinds_of(name: str) -> str:
    """Kinds of the operations of an open form's plan, in order."""
    interface, node = OPEN_FORMS[name]
    body = node if "%y" in node else f"%y = {node}"
    model = parse_model(f"""model <ir_version = 8, opset = ["" = 17]>
graph g {interface} -> (%y: float[*]) {{
  const %from: int64[1] = [1]
  const %to: int64[1] = [-1]
  const %one: int64[1] = [1]
  const %two: int64[1] = [2]
  const %back: int64[1] = [-1]
  {body}
}}""")
    names = {d for v in model.graph.inputs for d in v.shape or () if isinstance(d, str)}
    sizes = read_admitted([f"{d}=4.." for d in sorted(names)])
    try:
        plan = lower(one_sample(model, sizes)[0], parse_target(TARGET), sizes)
    except SecateurError:
        return "refused"
    return _kinds(plan)


def recurrent(kind: str, *more: str, **attributes: Any) -> onnx.ModelProto:
    """A layer of 3 units; `more` are names of further inputs in order."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind] * 3
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    sizes = {
        "b": (directions, 2 * gates),
        "lengths": (2,),
        "h": (directions, 2, 3),
        "c": (directions, 2, 3),
        "p": (directions, 9),
    }
    return of_one(
        kind,
        {"x": (4, 2, 5), **{n: sizes[n] for n in more if n in ("h", "c")}},
        {
            "w": np.ones((directions, gates, 5), np.float32),
            "r": np.ones((directions, gates, 3), np.float32),
            "b": np.ones(sizes["b"], np.float32),
            "lengths": np.int32([4, 2]),
            "p": np.ones(sizes["p"], np.float32),
        },
        ["x", "w", "r", *more],
        hidden_size=3,
        **attributes,
    )


def of_one(
    op_type: str,
    shapes: dict[str, tuple[int, ...]],
    constants: dict[str, Any],
    names: list[str],
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node."""
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    tensors = [numpy_helper.from_array(x, n) for n, x in constants.items() if n in names]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], **attributes)],
        op_type,
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def forms() -> Iterator[tuple[str, onnx.ModelProto]]:
    """What decides whether a fast rule takes a node, and ONNX's cases don't have."""
    usual = {"RNN": ["Relu"], "GRU": ["Sigmoid", "Relu"], "LSTM": ["Sigmoid", "Relu", "Tanh"]}
    for kind, names in usual.items():
        yield f"{kind} of given activations", recurrent(kind, activations=names)
        other = ["Affine", *names[1:]]
        yield f"{kind} of another activation", recurrent(kind, activations=other)
        for direction, times in (("forward", 2), ("bidirectional", 1)):
            wrong = recurrent(kind, direction=direction, activations=names * times)
            yield f"{kind}, {direction}, of {times} times the activations", wrong
        yield f"{kind} with states", recurrent(kind, "b", "", "h")
        yield f"{kind} with lengths", recurrent(kind, "b", "lengths")
        yield f"{kind} by samples", recurrent(kind, layout=1)
    yield "LSTM with peepholes", recurrent("LSTM", "b", "", "h", "c", "p")
    yield "LSTM of coupled gates", recurrent("LSTM", input_forget=1)
    yield "GRU that resets late", recurrent("GRU", linear_before_reset=1)
    for rank in (3, 4, 5):
        for axes in ([*range(2, rank)], [-1], [1]):
            for keep in (0, 1):
                shape, name = {"x": (1, 4, 3, 6, 2)[:rank]}, f"ReduceMean of {rank} over {axes}"
                old = of_one("ReduceMean", shape, {}, ["x"], axes=axes, keepdims=keep)
                given = {"a": np.int64(axes)}
                new = of_one("ReduceMean", shape, given, ["x", "a"], opset=18, keepdims=keep)
                yield f"{name}, {keep}, by attribute", old
                yield f"{name}, {keep}", new
    for opset in (6, 7):
        yield f"Add of {opset}", of_one("Add", {"x": (2, 3), "z": (2, 3)}, {}, ["x", "z"], opset)
        slopes = {"s": np.ones(3, np.float32)}
        yield f"PRelu of {opset}", of_one("PRelu", {"x": (2, 3)}, slopes, ["x", "s"], opset)


@functools.cache
def cases() -> dict[str, list[onnx.ModelProto]]:
    """Models by what they are models of: an operator's cases, or one form."""
    from tests.backends.tvm.test_fast_and_plain import parts

    found: dict[str, list[onnx.ModelProto]] = {}
    for part in sorted(parts(CASES, DRAWS)[0], key=lambda part: _operator(part.model)):
        found.setdefault(_operator(part.model), []).append(part.model)
    return {**found, **{name: [model] for name, model in forms()}}


def _operator(proto: onnx.ModelProto) -> str:
    return str(proto.graph.node[-1].op_type)


def lines_of(name: str) -> list[str]:
    """The file's lines of an operator or a form."""
    counts = Counter(map(kinds_of, cases()[name]))
    return [f"{name}: {kinds}: {count}" for kinds, count in sorted(counts.items())]


def open_line_of(name: str) -> str:
    """The file's line of an open form."""
    return f"open {name}: {open_kinds_of(name)}"


def golden() -> dict[str, list[str]]:
    """The file's lines by operator or form."""
    found: dict[str, list[str]] = {}
    for line in PATH.read_text(encoding="utf-8").splitlines():
        found.setdefault(line.partition(":")[0], []).append(line)
    return found


if __name__ == "__main__":
    lines = [line for name in cases() for line in lines_of(name)]
    lines += [open_line_of(name) for name in OPEN_FORMS]
    PATH.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
