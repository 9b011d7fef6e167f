"""What fast rules make of every form; `python -m tests.backends.tvm.plan.plan_kinds` writes it.

`tests/golden/kinds/plan_kinds.txt` has a line for each operator and sequence of kinds of
operations that a node of it is lowered to, with the number of ONNX's cases, as they are and with
constant operands, and of drawn graphs, that are; then one for each of `forms`.
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
from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.text import print_plan
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

PATH = Path(__file__).parents[3] / "golden" / "kinds" / "plan_kinds.txt"
TARGET = "x86-64-v3"
CASES, DRAWS = 40, 6


def kinds_of(proto: onnx.ModelProto) -> str:
    """Kinds of the operations of a model's plan, in order."""
    try:
        plan = lower(one_sample(from_proto(proto))[0], parse_target(TARGET))
    except SecateurError:
        return "refused"
    return " ".join(re.findall(r"^%.* = (\w+)\(", print_plan(plan), re.MULTILINE)) or "nothing"


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


def golden() -> dict[str, list[str]]:
    """The file's lines by operator or form."""
    found: dict[str, list[str]] = {}
    for line in PATH.read_text(encoding="utf-8").splitlines():
        found.setdefault(line.partition(":")[0], []).append(line)
    return found


if __name__ == "__main__":
    lines = [line for name in cases() for line in lines_of(name)]
    PATH.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
