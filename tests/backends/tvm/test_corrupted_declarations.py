"""Random graphs whose declarations are wrong: an error, maybe of the run, or the right result.

What a model declares of values that nodes compute is a claim (`ir/declarations.py`). One claim
of a graph is changed, or all of a kind; whatever still compiles or can be simplified computes
what ONNX Runtime computes of the graph as it was.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, TypeProto

pytest.importorskip("tvm")

from secateur.backends.tvm.faults import Fault
from secateur.ir.declarations import check_declarations
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.pipeline.simplification import Options, simplify_file

from .joined import Feeds, Part, compile_parts
from .random_graphs import Graph, compare, draw, settings

Array = Any
Random = np.random.Generator


def _dim(type: TypeProto, random: Random) -> Any:
    """A size at random."""
    sizes = type.tensor_type.shape.dim
    return sizes[int(random.integers(len(sizes)))]


def _larger(type: TypeProto, random: Random) -> None:
    dim = _dim(type, random)
    dim.dim_value += int(random.integers(1, 3))


def _smaller(type: TypeProto, random: Random) -> None:
    dim = _dim(type, random)
    dim.dim_value = int(random.integers(max(1, dim.dim_value)))


def _swapped(type: TypeProto, random: Random) -> None:
    sizes = [d.dim_value for d in type.tensor_type.shape.dim]
    for dim, size in zip(type.tensor_type.shape.dim, random.permutation(sizes), strict=True):
        dim.dim_value = int(size)


def _longer(type: TypeProto, random: Random) -> None:
    sizes = [d.dim_value for d in type.tensor_type.shape.dim]
    sizes.insert(int(random.integers(len(sizes) + 1)), int(random.integers(1, 3)))
    del type.tensor_type.shape.dim[:]
    for size in sizes:
        type.tensor_type.shape.dim.add(dim_value=size)


def _shorter(type: TypeProto, random: Random) -> None:
    sizes = type.tensor_type.shape.dim
    del sizes[int(random.integers(len(sizes)))]


def _flat(type: TypeProto, random: Random) -> None:
    del type.tensor_type.shape.dim[:]


def _named(type: TypeProto, random: Random) -> None:
    """One name for sizes that differ, in a tensor and in all that are changed."""
    for dim in type.tensor_type.shape.dim:
        if random.random() < 0.7:
            dim.dim_param = "S"


def _open(type: TypeProto, random: Random) -> None:
    _dim(type, random).ClearField("value")


def _shapeless(type: TypeProto, random: Random) -> None:
    type.tensor_type.ClearField("shape")


def _another_type(type: TypeProto, random: Random) -> None:
    kinds = [TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT8, TensorProto.BOOL,
             TensorProto.FLOAT16, TensorProto.UNDEFINED]  # fmt: skip
    type.tensor_type.elem_type = kinds[int(random.integers(len(kinds)))]


CORRUPTIONS: tuple[Callable[[TypeProto, Random], None], ...] = (
    _larger, _smaller, _swapped, _longer, _shorter, _flat, _named, _open, _shapeless,
    _another_type,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Corrupted:
    """A graph with wrong declarations, and what ONNX Runtime computes with the right ones."""

    kind: str
    graph: Graph
    wanted: dict[str, Array]

    @property
    def part(self) -> Part:
        return self.graph.part

    def check(self, results: dict[str, Array]) -> None:
        for value in self.graph.outputs:
            difference = compare(value, results[value.name], self.wanted[value.name])
            assert difference is None, f"{self.part.name}: {difference}"


def corrupted(seed: int) -> Iterator[Corrupted]:
    """The graph of a seed with each corruption, of one declaration or of many."""
    graph = draw(seed)
    wanted = graph.part.reference(graph.part.feeds)
    assert wanted is not None
    for index, corrupt in enumerate(CORRUPTIONS):
        random = np.random.default_rng([seed, index])
        model = onnx.ModelProto()
        model.CopyFrom(graph.part.model)
        infos = [*model.graph.output, *model.graph.value_info]
        chosen = random.random(len(infos)) < (0.5 if random.random() < 0.4 else 0)
        chosen[int(random.integers(len(infos)))] = True
        for info in itertools.compress(infos, chosen):
            if info.type.tensor_type.shape.dim or corrupt in (_longer, _another_type):
                corrupt(info.type, random)
        if model != graph.part.model:
            part = Part(f"{seed}{corrupt.__name__}", model, graph.part.feeds)
            yield Corrupted(corrupt.__name__, dataclasses.replace(graph, part=part), wanted)


def error_of(function: Callable[[], object]) -> str | None:
    """The error that a function ends with, which is one line; None where it doesn't."""
    try:
        function()
    except SecateurError as error:
        text = str(error)
    else:
        return None
    assert text
    assert "\n" not in text
    return text


def run_parts(parts: Sequence[Part], folder: Path, refused: dict[str, str]) -> dict[str, Feeds]:
    """Results by part; `refused` receives the parts that are refused, maybe by a run.

    A run may refuse where operands lead elsewhere than is declared. It names a node and with it
    the part, without which the others run again.
    """
    found: dict[str, Feeds] = {}
    for joined in compile_parts(parts, folder, 32, refused):
        try:
            results = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
        except SecateurError as error:
            text = str(error)
            assert Fault.VALUE.text in text or Fault.COUNT.text in text, text
            named = re.search(r"node '(p\d+/)", text)
            assert named is not None, text
            refused[joined.parts[named[1]].name] = text
            rest = [part for prefix, part in joined.parts.items() if prefix != named[1]]
            (folder / "rest").mkdir(exist_ok=True)
            found |= run_parts(rest, folder / "rest", refused)
        else:
            found |= {part.name: results[prefix] for prefix, part in joined.parts.items()}
    return found


def check_compiled(cases: Sequence[Corrupted], folder: Path) -> Counter[str]:
    """Compile and run cases; how many of each kind are refused. All others are right."""
    errors = {c: error_of(lambda c=c: check_declarations(from_proto(c.part.model))) for c in cases}
    assert all("declared" in error for error in errors.values() if error)
    left = {c.part.name: c for c, error in errors.items() if error is None}
    reasons: dict[str, str] = {}
    for name, results in run_parts([c.part for c in left.values()], folder, reasons).items():
        left[name].check(results)
    refused = [c.kind for c, error in errors.items() if error or c.part.name in reasons]
    return Counter(refused)


def check_simplified(cases: Sequence[Corrupted], folder: Path) -> Counter[str]:
    """Simplify files; how many of each kind are refused. All others compute the same."""
    refused: Counter[str] = Counter()
    source, output = folder / "given.onnx", folder / "simplified.onnx"
    for case in cases:
        onnx.save(case.part.model, source)
        if error_of(lambda: simplify_file(source, output, Options())):
            refused[case.kind] += 1
            continue
        part = dataclasses.replace(case.part, model=onnx.load(output))
        results = part.reference(part.feeds)
        if results is not None:
            case.check(results)
        else:  # what ONNX Runtime doesn't load may stay so
            assert case.part.reference(part.feeds) is None, part.name
    return refused


def drawn(seeds: Sequence[int]) -> list[Corrupted]:
    """Corruptions of the graphs without a batch."""
    return [case for seed in seeds if not settings(seed)[1] for case in corrupted(seed)]


def test_wrong_declarations_are_refused_or_do_no_harm(tmp_path: Path) -> None:
    cases = drawn([0, 16, 37])
    refused = check_compiled(cases, tmp_path)
    assert refused["_another_type"] > 2
    assert sum(refused.values()) > 12
    assert not refused["_open"] + refused["_shapeless"]
    left = check_simplified(cases, tmp_path)
    assert left.keys() <= {"_another_type"}  # wrong shapes are corrected


@pytest.mark.slow
@pytest.mark.parametrize("start", [200, 264, 344])
def test_many_wrong_declarations(tmp_path: Path, start: int) -> None:
    cases = drawn(range(start, start + 16))
    check_compiled(cases, tmp_path)
    check_simplified(cases, tmp_path)
