"""Every operand of every lowered operator as an input of the model: obeyed, checked or refused.

Models of one node whose operands are all inputs, one for each operand that the schemas name, are
compiled and run with other values of each operand in turn than those they were made with. A run
ends with an error, or with what ONNX Runtime computes of the same values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.ir.errors import SecateurError
from tests.backend_cases import generated_cases

from ...onnx_runtime import session_of
from .joined import Feeds, Joined, Part, compile_parts, part_of
from .test_every_operator import arrays_of, assert_close, has_numbers, lowered, model_of

Array = Any
Operand = tuple[str, int]
"""An operator and the position of one of its inputs."""

REFUSED = {
    "MelWeightMatrix": "its sizes are computed",
    "STFT": "its sizes are computed",
    "Unique": "its results' sizes depend on the data",
}

DIFFERENT = {
    "MaxUnpool": "ONNX Runtime takes indices for those of another shape than ONNX's case does",
    "MeanVarianceNormalization": "ONNX Runtime divides by a deviation of zero",
}


def _floats(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _recurrent(op_type: str, gates: int) -> Part:
    """With lengths and a first state, which no case of ONNX has."""
    weights = {"w": _floats(1, 4 * gates, 3), "r": _floats(1, 4 * gates, 4)}
    more = {"b": _floats(1, 8 * gates), "n": np.asarray([2, 5], np.int32), "h": _floats(1, 2, 4)}
    return model_of(op_type, {"x": _floats(5, 2, 3), **weights, **more}, hidden_size=4)


def _more() -> list[Part]:
    """Operands that no case of ONNX has."""
    image, kernel, bytes_ = _floats(1, 3, 6, 5), _floats(3, 3, 3, 3), np.uint8([[[[1, 200, 3]]]])
    scales = {n: np.float32(0.1) for n in ("s", "t", "u")}
    zeros = {n: np.uint8(z) for n, z in (("a", 3), ("b", 120), ("c", 7))}
    q = {"x": bytes_, "s": scales["s"], "a": zeros["a"], "w": bytes_[..., :1], "t": scales["t"],
         "b": zeros["b"], "u": scales["u"], "c": zeros["c"], "d": np.int32([40])}  # fmt: skip
    return [
        *(model_of(op, {"x": image, "w": kernel, "b": _floats(3)})
          for op in ("Conv", "ConvTranspose")),
        model_of("QLinearConv", q),
        _recurrent("RNN", 1),
        _recurrent("GRU", 3),
        model_of("GlobalLpPool", {"x": image}),
        model_of("MaxRoiPool", {"x": image, "r": np.float32([[0, 0, 0, 3, 4], [0, 1, 1, 4, 5]])},
                 pooled_shape=[2, 2]),
    ]  # fmt: skip


def operands(part: Part) -> set[Operand]:
    """The operands of a model's only node."""
    (node,) = part.model.graph.node
    return {(node.op_type, index) for index, name in enumerate(node.input) if name}


def covering() -> list[Part]:
    """Models that together have every operand that cases of ONNX have, and some more."""
    seen: set[Operand] = set()
    found = []
    for case in generated_cases():
        nodes = case.model.graph.node
        if case.data and len(nodes) == 1 and nodes[0].op_type in lowered():
            part = part_of(case.name, case.model, arrays_of(case))
            if part is not None and has_numbers(part) and operands(part) - seen:
                seen |= operands(part)
                found.append(part)
    return [*found, *_more()]


def has_optional(part: Part) -> bool:
    """Whether the node has operands that it may lack."""
    schema = onnx.defs.get_schema(part.model.graph.node[0].op_type)
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    given = {index for _, index in operands(part)}
    return any(p.option == optional for i, p in enumerate(schema.inputs) if i in given)


def others(x: Array, random: np.random.Generator) -> Iterator[Array]:
    """Other values of an operand."""
    if x.dtype == bool:
        yield ~x
        return
    yield -x if x.dtype.kind != "u" else ~x
    yield np.zeros_like(x)
    if x.dtype.kind == "f":
        yield x * x.dtype.type(1.5)
        return
    one = x.dtype.type(1)
    yield from (x + one, x - one, np.full_like(x, np.iinfo(x.dtype).max))
    if x.dtype == np.int64:
        yield x + 2**32
    if x.size > 1:
        yield random.permutation(x.reshape(-1)).reshape(x.shape)


def check(joined: Joined, prefix: str) -> Counter[str]:
    """Run other values of each operand of a part; how many runs fail and how many are equal."""
    part = joined.parts[prefix]
    if part.reference(part.feeds) is None:
        return Counter(["unknown"])
    equal, errors = 0, []
    session = session_of(part.model, optimize=False)
    feeds: dict[str, Feeds] = {p: other.feeds for p, other in joined.parts.items()}
    random = np.random.default_rng(0)
    for name, x in part.feeds.items():
        with np.errstate(over="ignore"):
            values = [np.asarray(y, x.dtype) for y in others(x, random)]
        for value in values:
            feeds[prefix] = {**part.feeds, name: value}
            try:
                found = joined.run(feeds)[prefix]
            except SecateurError as error:
                errors.append(str(error))
                continue
            expected = session.run(list(found), feeds[prefix])
            for output, want in zip(found, expected, strict=True):
                what = f"{part.name}: {output} with {name} = {value.reshape(-1)[:8]}"
                assert_close(found[output], want, what, part.operators)
            equal += 1
    assert all(error.startswith(f"node '{prefix}") for error in errors), errors
    return Counter(equal=equal, error=len(errors))


def check_all(parts: Sequence[Part], folder: Path) -> Counter[str]:
    refused: dict[str, str] = {}
    outcomes: Counter[str] = Counter()
    for joined in compile_parts(parts, folder, 64, refused):
        for prefix, part in joined.parts.items():
            if not part.operators & DIFFERENT.keys():
                outcomes += check(joined, prefix)
    by_name = {part.name: part for part in parts}
    assert {op for name in refused for op in by_name[name].operators} <= REFUSED.keys(), refused
    return outcomes


def test_every_operand_has_a_model() -> None:
    covered = set[Operand]().union(*map(operands, covering()))
    named = {
        (op_type, index)
        for op_type in lowered()
        for index, _ in enumerate(onnx.defs.get_schema(op_type).inputs)
    }
    assert named - covered == {("DFT", 1)}  # a length, of which test_operands.py has cases


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_optional_operands_are_obeyed_or_checked(tmp_path: Path, step: int) -> None:
    outcomes = check_all([part for part in covering() if has_optional(part)][::step], tmp_path)
    assert outcomes["equal"] > 200 / step
    assert outcomes["error"] > 50 / step
    assert outcomes["unknown"] < 10


@pytest.mark.slow
def test_other_operands_are_obeyed_or_checked(tmp_path: Path) -> None:
    outcomes = check_all([part for part in covering() if not has_optional(part)], tmp_path)
    assert outcomes["equal"] > 500
    assert outcomes["unknown"] < 10
