"""Models that are declared for one sample at a time, opened for more while data runs through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from ...ir.dependencies.batch import find_batch
from ...ir.errors import SecateurError
from ...ir.graph import Node, Value, normalize_domain
from ...ir.model import Model
from ...ir.reference import Session
from ...ir.tensor import Array, Tensor
from ..sizes import infer_sizes

SAMPLES = "samples"

TOLERANCE = 1e-3
"""Largest difference between a batch's outputs and those of its samples run one by one, relative
to the largest output: what rounding explains."""


@contextlib.contextmanager
def open_batch(model: Model, arrays: Mapping[str, Array]) -> Iterator[bool]:
    """Within the block the model takes any number of samples, if that is possible.

    Only what is proven, and shown on the first two samples of `arrays`, counts. Tells
    whether it is. A model that takes any number to begin with stays as it is.
    """
    inputs = [v for v in model.graph.inputs if v.const is None]
    if any(v.shape and not isinstance(v.shape[0], int) for v in inputs):
        yield find_batch(model).is_proven
        return
    opened = _Opened(model)
    try:
        done = _is_single(inputs, arrays) and opened.open(inputs, arrays)
        if not done:
            opened.restore()
        yield done
    finally:
        opened.restore()


def _is_single(inputs: list[Value], arrays: Mapping[str, Array]) -> bool:
    return bool(inputs) and all(
        v.shape is not None
        and len(v.shape) > 0
        and v.shape[0] == 1
        and arrays[v.name].ndim == len(v.shape)
        and len(arrays[v.name]) > 1
        for v in inputs
    )


class _Opened:
    """What was changed, to be undone."""

    def __init__(self, model: Model) -> None:
        self._model = model
        values = [v for graph in model.all_graphs() for v in graph.values() if v.const is None]
        self._types = {value: (value.type, value.info) for value in values}
        self._declared = [(g, g.value_info, g.restated) for g in model.all_graphs()]
        self._targets: list[tuple[Node, Value]] = []

    def open(self, inputs: list[Value], arrays: Mapping[str, Array]) -> bool:
        model = self._model
        feeds = [{v.name: arrays[v.name][k : k + 1] for v in inputs} for k in range(2)]
        both = {v.name: arrays[v.name][:2] for v in inputs}
        try:
            single = [Session(model, trial=True).run(feed) for feed in feeds]
            for graph, _, _ in self._declared:
                graph.value_info, graph.restated = [], {}
            for value in self._types:
                value.info = None
                if value not in inputs:
                    value.type = None
            for value in inputs:
                assert value.shape is not None
                value.set_tensor_type(value.dtype, (SAMPLES, *value.shape[1:]))
            self._open_reshapes()
            infer_sizes(model)
            if not find_batch(model).is_proven:
                return False
            joined = Session(model, trial=True).run(both)
        except SecateurError:
            return False
        return all(_equal(array, [s[name] for s in single]) for name, array in joined.items())

    def restore(self) -> None:
        for node, value in self._targets:
            opened = node.input(1)
            assert opened is not None
            del self._model.graph.initializers[opened.name]
            node.set_input(1, value)
        for value, (kind, info) in self._types.items():
            value.type, value.info = kind, info
        for value in self._model.graph.values():
            if value.const is None and value not in self._types:
                value.type = None  # made within the block
        for graph, value_info, restated in self._declared:
            graph.value_info, graph.restated = value_info, restated
        self._targets.clear()

    def _open_reshapes(self) -> None:
        """Let target shapes that begin with one sample take as many as there are."""
        for node in self._model.graph.nodes:
            value = node.input(1)
            tensor = self._model.constant(value)
            if node.op_type != "Reshape" or normalize_domain(node.domain) or tensor is None:
                continue
            target = tensor.numpy()
            if target.ndim != 1 or not target.size or target[0] != 1 or node.get("allowzero", 0):
                continue
            changed = target.copy()
            changed[0] = 0 if (target == -1).any() else -1
            assert value is not None
            name = self._model.fresh_name(f"{value.name}_opened")
            opened = self._model.graph.add_initializer(name, Tensor.from_array(changed))
            self._targets.append((node, value))
            node.set_input(1, opened)


def _equal(batch: Array, samples: list[Array]) -> bool:
    together = np.concatenate(samples) if samples[0].ndim else np.stack(samples)
    if batch.shape != together.shape:
        return False
    if together.dtype.kind != "f":
        return bool((batch == together).all())
    scale = float(np.abs(together[np.isfinite(together)]).max(initial=0))
    return bool(np.allclose(batch, together, rtol=0, atol=TOLERANCE * scale, equal_nan=True))
