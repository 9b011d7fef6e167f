"""Proof that the first axis of a model's inputs counts samples that don't affect each other.

The samples are one dim of unknown size, which the rules of all operators carry through
the graph. They are independent where, after every node, that dim is neither locked nor
tied to another one, every result of a node that reads it has it exactly once, and its
size is used for nothing but the sizes of axes that have it. By induction a value
without the dim depends neither on the samples nor on their number. What no rule
describes is taken to mix them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..axes import dims
from ..axes.dims import Axis, Dim, Lock
from ..axes.facts import Analysis, Axes, Expectation, literal_axes
from ..axes.node_axes import NodeAxes
from ..axes.sizes import axes_of, is_size_of
from ..graph import Node, Value, normalize_domain
from ..model import Model
from ..schemas import is_deterministic
from ..symbolic.expressions import Size
from ..symbolic.facts import Contents
from .analysis import analyze_graph

SampleShape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Batch:
    """What is known of the first axis that inputs leave open.

    `inputs` are those inputs, in order; without any the model declares no batch.
    `obstacle` says why their entries can't be shown to be independent samples, None
    where they are: then `outputs` are the results that consist of a piece for each
    sample, one after the other along the first axis, and `shapes` are those of all
    values for a single sample.
    """

    inputs: tuple[Value, ...]
    obstacle: Lock | None = None
    outputs: tuple[Value, ...] = ()
    shapes: Mapping[Value, SampleShape] = field(default_factory=dict)

    @property
    def is_proven(self) -> bool:
        """Whether there are samples, and they are independent."""
        return bool(self.inputs) and self.obstacle is None

    def as_dict(self) -> dict[str, Any]:
        """Names of inputs and outputs that have samples, and why there are none."""
        return {
            "inputs": [value.name for value in self.inputs],
            "outputs": [value.name for value in self.outputs],
            "obstacle": None if self.obstacle is None else asdict(self.obstacle),
        }

    @property
    def advice(self) -> str:
        """What a user can do about an obstacle: fix the sizes of all open inputs."""
        return ", ".join(f"--input-shape {v.name}={_example(v)}" for v in self.inputs)


def find_batch(model: Model) -> Batch:
    """Look for independent samples in the main graph. Shapes must have been inferred."""
    graph = model.graph
    given = [value for value in graph.inputs if model.constant(value) is None]
    inputs = tuple(value for value in given if value.shape and not isinstance(value.shape[0], int))
    if not inputs:
        return Batch(())
    watcher = _Watcher(Dim(None, "samples"))
    analysis = Analysis(model, watch=watcher.after_node)
    analysis.follow = functools.partial(analyze_graph, analysis)
    symbols = {v.shape[0]: watcher.axis for v in inputs if v.shape and isinstance(v.shape[0], str)}
    try:
        for value in given:
            why = Lock(value.name, "graph input", "the model's interface")
            axes = literal_axes(value, why, symbols)
            if axes is not None and value in inputs:
                axes = (watcher.axis, *axes[1:])
            analysis.axes[value] = axes
            watcher.check_input(value, axes)
        analysis.follow(graph)
        outputs = [v for v in graph.outputs if watcher.is_split(analysis, v)]
    except _Mixed as mixed:
        return Batch(inputs, mixed.why)
    shapes = {v: watcher.sample_shape(v, axes) for v, axes in analysis.axes.items()}
    return Batch(inputs, None, tuple(outputs), {v: s for v, s in shapes.items() if s is not None})


class _Mixed(Exception):  # noqa: N818 - an answer, not an error
    """The samples can't be shown to be independent."""

    def __init__(self, why: Lock) -> None:
        super().__init__(str(why))
        self.why = why


class _Watcher:
    """Follows the dim of the samples; raises `_Mixed` at the first node that mixes them."""

    def __init__(self, dim: Dim) -> None:
        self.dim = dim
        self.axis: Axis = ((dim,),)

    def check_input(self, value: Value, axes: Axes | None) -> None:
        """Samples are taken apart along first axes only."""
        if axes is not None and any(self._carries(axis) for axis in axes[1:]):
            where = [i for i, axis in enumerate(axes) if self._carries(axis)][-1]
            raise _Mixed(
                Lock(value.name, "graph input", f"its axis {where} has the batch's size, too")
            )

    def after_node(self, view: NodeAxes, failure: str | None) -> None:
        """Check what the rule of a node said; `failure` is why there is nothing it could say."""
        self._check_dim(view)
        if any(map(self._carries, view.contracted)):
            raise _Mixed(view.why("takes samples together"))
        if failure is not None:
            self._check_unknown(view, failure)
        self._check_results(view)
        self._check_sizes(view)

    def _check_dim(self, view: NodeAxes) -> None:
        if self.dim.lock is not None:
            raise _Mixed(self.dim.lock)
        if self.dim.binding is not None:
            raise _Mixed(view.why("ties the samples to an axis that doesn't count them"))

    def _check_unknown(self, view: NodeAxes, failure: str) -> None:
        """An operator that isn't followed, on values without the samples."""
        if not _is_deterministic(view.node, view.analysis.model):
            raise _Mixed(view.why(f"may give every sample another result ({failure})"))

    def _check_results(self, view: NodeAxes) -> None:
        reads = any(
            self._number(view, v)
            for i, v in enumerate(view.node.inputs)
            if v is not None and i not in view.measured
        )
        for value in view.node.outputs:
            if value is None:
                continue
            number = self._number(view, value)
            if number > 1:
                raise _Mixed(view.why("relates every sample to every other"))
            if not number and reads and not view.follows_bodies and _is_used(value):
                raise _Mixed(view.why("its result doesn't keep the samples apart"))

    def _check_sizes(self, view: NodeAxes) -> None:
        """The number of samples may go on as a size, and be the size of what has the samples."""
        for index in view.consumed:
            value = view.node.input(index)
            content = None if value is None else view.analysis.contents.get(value)
            if content is None or index in view.measured or not self._depends(content):
                continue
            expected = [e for i, e in view.expectations if i == index]
            goes_on = any(view.analysis.contents.get(v) is not None for v in view.node.outputs if v)
            if not (expected or goes_on):
                raise _Mixed(view.why("computes with the number of samples"))
        for _, expectation in view.expectations:
            if not self._is_size(expectation):
                raise _Mixed(view.why("computes with the number of samples"))

    def _is_size(self, expectation: Expectation) -> bool:
        pairs = zip(expectation.content.ravel(), expectation.required, strict=True)
        return all(
            wanted is not None and not isinstance(wanted, int) and is_size_of(element, wanted)
            for element, wanted in pairs
            if self._element_depends(element)
        )

    def _depends(self, content: Contents) -> bool:
        return any(self._element_depends(element) for element in content.ravel())

    def _element_depends(self, element: Size) -> bool:
        return any(map(self._carries, axes_of(element)))

    def _carries(self, axis: Axis) -> bool:
        return any(dim is self.dim for dim in dims.dims_of(axis))

    def _number(self, view: NodeAxes, value: Value) -> int:
        """How often a value has the samples."""
        axes = view.analysis.axes.get(value) or ()
        return sum(dim is self.dim for axis in axes for dim in dims.dims_of(axis))

    def is_split(self, analysis: Analysis, value: Value) -> bool:
        """Whether a graph output is a piece for each sample; else it depends on none."""
        axes = analysis.axes.get(value)
        label = value.producer.label if value.producer is not None else value.name
        op_type = value.producer.op_type if value.producer is not None else "graph input"
        content = analysis.contents.get(value)
        if content is not None and self._depends(content):
            raise _Mixed(Lock(label, op_type, f"output '{value.name}' holds the number of samples"))
        where = [i for i, axis in enumerate(axes or ()) if self._carries(axis)]
        if not where or axes is None:
            return False
        if where != [0] or not self._leads(axes[0]):
            at = f"not outermost on axis {where[0]}" if where == [0] else f"on axis {where[0]}"
            raise _Mixed(Lock(label, op_type, f"output '{value.name}' has the samples {at}"))
        return True

    def _leads(self, axis: Axis) -> bool:
        """Whether an axis consists of one piece for each sample."""
        terms = dims.resolve(axis)
        return len(terms) == 1 and terms[0][0] is self.dim

    def sample_shape(self, value: Value, axes: Axes | None) -> SampleShape | None:
        """The shape of one sample's value, as far as it is known."""
        declared = value.shape
        if axes is None:
            return None
        if declared is None or len(declared) != len(axes):
            declared = (None,) * len(axes)
        found = [self._sample_size(axis) for axis in axes]
        return tuple(
            size if size is not None or self._carries(axis) else known
            for axis, size, known in zip(axes, found, declared, strict=True)
        )

    def _sample_size(self, axis: Axis) -> int | None:
        terms = [tuple(d for d in term if d is not self.dim) for term in dims.resolve(axis)]
        return dims.axis_size(tuple(terms))


def _is_deterministic(node: Node, model: Model) -> bool:
    bodies = node.subgraphs()
    if bodies:
        return all(_is_deterministic(inner, model) for body in bodies for inner in body.nodes)
    domain = normalize_domain(node.domain)
    return is_deterministic(node.op_type, domain, model.opsets.get(domain, 0))


def _is_used(value: Value) -> bool:
    return bool(value.uses) or value.is_graph_output


def _example(value: Value) -> str:
    """Sizes that an input could be fixed at, those that it leaves open as 1."""
    return "x".join(str(size) if isinstance(size, int) else "1" for size in value.shape or ())
