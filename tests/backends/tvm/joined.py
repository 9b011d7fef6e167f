"""Many small models compiled as one: as many operators as there are, at the price of few links.

Models with the same operator sets become the parts of one, side by side, whose names
differ by a prefix. Nodes that can't be lowered are told for all at once, so that the parts
that they belong to are taken out and the rest compiled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.errors import UnsupportedNodesError
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import RuleError, SecateurError
from secateur.ir.onnx_io import from_proto

from ...onnx_runtime import session_of

Array = Any
Feeds = dict[str, Array]

NATIVE = parse_target("native")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A model of static shapes, with inputs that it takes."""

    name: str
    model: onnx.ModelProto
    feeds: Feeds

    @property
    def operators(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}

    def reference(self, feeds: Feeds) -> dict[str, Array] | None:
        """What ONNX Runtime computes as the model says; None where it refuses."""
        try:
            session = session_of(self.model, optimize=False)
            names = [o.name for o in session.get_outputs()]
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception:  # ONNX Runtime raises a family of unrelated types
            return None


def part_of(name: str, model: onnx.ModelProto, inputs: Sequence[Any]) -> Part | None:
    """A part with the shapes of its inputs; None where it has other values than tensors of
    numbers, or functions of its own."""
    if model.functions or any(
        v.type.WhichOneof("value") != "tensor_type"
        or v.type.tensor_type.elem_type == onnx.TensorProto.STRING
        for v in (*model.graph.input, *model.graph.output)
    ):
        return None
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    initialized = {t.name for t in model.graph.initializer}
    given = [v for v in shaped.graph.input if v.name not in initialized]
    arrays = (np.ndarray, np.generic)
    if len(given) != len(inputs) or not all(isinstance(x, arrays) for x in inputs):
        return None
    feeds = {v.name: np.asarray(x) for v, x in zip(given, inputs, strict=True)}
    for value in given:
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, feeds[value.name].shape))
    return Part(name, shaped, feeds)


def frozen(part: Part) -> Part:
    """All operands but the first as constants."""
    model = onnx.ModelProto()
    model.CopyFrom(part.model)
    first, *others = part.feeds
    kept = [v for v in model.graph.input if v.name == first]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(part.feeds[n], n) for n in others)
    return Part(f"{part.name}, frozen", model, {first: part.feeds[first]})


@dataclasses.dataclass(frozen=True)
class Joined:
    """An artifact of several parts, each with its prefix."""

    runtime: Runtime
    parts: Mapping[str, Part]

    def run(self, feeds: Mapping[str, Feeds]) -> dict[str, dict[str, Array]]:
        """The outputs of each part, by prefix."""
        given = {p + name: x for p, part in feeds.items() for name, x in part.items()}
        found = self.runtime.run(given)
        return {
            prefix: {v.name: found[prefix + v.name] for v in part.model.graph.output}
            for prefix, part in self.parts.items()
        }


def join(parts: Mapping[str, Part]) -> onnx.ModelProto:
    """One model of all parts."""
    first = next(iter(parts.values())).model
    graph = onnx.GraphProto(name="joined")
    for prefix, part in parts.items():
        inner = onnx.compose.add_prefix(part.model, prefix).graph
        for field in ("node", "input", "output", "initializer", "sparse_initializer", "value_info"):
            getattr(graph, field).extend(getattr(inner, field))
    return helper.make_model(
        graph,
        opset_imports=first.opset_import,
        ir_version=max(part.model.ir_version for part in parts.values()),
    )


def compile_parts(
    parts: Sequence[Part], folder: Path, size: int = 64, refused: dict[str, str] | None = None
) -> Iterator[Joined]:
    """Artifacts of `size` parts at most, each of parts with the same operator sets.

    `refused` receives the parts that can't be compiled, with the reasons.
    """
    refused = {} if refused is None else refused
    by_opset: dict[tuple[tuple[str, int], ...], list[Part]] = {}
    for part in parts:
        imports = ((o.domain, o.version) for o in part.model.opset_import)
        by_opset.setdefault(tuple(sorted(imports)), []).append(part)
    for number, group in enumerate(by_opset.values()):
        for start in range(0, len(group), size):
            chunk = {f"p{i}/": p for i, p in enumerate(group[start : start + size])}
            yield from _compile(chunk, folder / f"{number}_{start}.so", refused)


def _compile(chunk: dict[str, Part], path: Path, refused: dict[str, str]) -> Iterator[Joined]:
    if not chunk:
        return
    try:
        compile_model(from_proto(join(chunk)), NATIVE, path, declared_sizes=True, copies=math.inf)
    except RuleError:
        raise
    except UnsupportedNodesError as error:
        reasons = [(n.name or n.label, r) for n, r in error.all_reasons().items()]
        lost = {p: r for p in chunk for name, r in reasons if name.startswith(p)}
        if lost:
            refused.update({chunk[p].name: reason for p, reason in lost.items()})
            rest = {p: part for p, part in chunk.items() if p not in lost}
            yield from _compile(rest, path, refused)
        else:
            yield from _halves(chunk, path, refused, error)
        return
    except SecateurError as error:
        yield from _halves(chunk, path, refused, error)
        return
    yield Joined(Runtime(path), chunk)


def _halves(
    chunk: dict[str, Part], path: Path, refused: dict[str, str], error: SecateurError
) -> Iterator[Joined]:
    """Both halves of a chunk that can't be compiled for a reason that names no part."""
    if len(chunk) == 1:
        (part,) = chunk.values()
        refused[part.name] = str(error)
        return
    items = list(chunk.items())
    middle = len(items) // 2
    yield from _compile(dict(items[:middle]), path.with_suffix(".a.so"), refused)
    yield from _compile(dict(items[middle:]), path.with_suffix(".b.so"), refused)
