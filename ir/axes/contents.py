"""Elements of integer tensors that shape computations make, as sizes of axes."""

from __future__ import annotations

from onnx import TensorProto

from ..graph import Value
from ..symbolic import expressions as e
from ..symbolic.facts import HEAVIEST, Contents, Facts, Shape
from ..symbolic.registry import contents_rules, find_contents
from .facts import contents_of_value
from .node_axes import NodeAxes
from .sizes import settled


def follow_contents(r: NodeAxes) -> None:
    """Let a node's results have the elements that its operator's rule computes.

    Elements that would become too large expressions aren't followed: those that the node
    reads are then kept as they are (`freeze`).
    """
    if r.node.op_type not in contents_rules():
        return
    for index, found in enumerate(find_contents(r.node, _Operands(r))):
        if found is None or not all(_is_light(element) for element in found.flat):
            continue
        result = r.node.output(index)
        is_truth = result is not None and result.dtype == TensorProto.BOOL
        r.follow(settled(found) if is_truth else found, index)


class _Operands(Facts):
    """What the rule of a node asks of values while axes are being followed."""

    def __init__(self, r: NodeAxes) -> None:
        super().__init__(r.analysis.model)
        self._view = r

    def shape(self, value: Value | None) -> Shape | None:
        """Of what the node measures, sizes of axes; tensors of sizes keep their own shape."""
        inputs = self._view.node.inputs
        if value is None or self.model.constant(value) is not None:
            return None  # a constant as this node sees it is never sliced
        if any(inputs[i] is value for i in self._view.measured):
            axes = self._view.analysis.axes.get(value)
            return None if axes is None else tuple(map(self._view.analysis.sizes.of, axes))
        shape = value.shape
        if shape is None:
            return None
        return tuple(size if isinstance(size, int) else self.unknown() for size in shape)

    def contents(self, value: Value | None) -> Contents | None:
        return None if value is None else contents_of_value(self._view.analysis, value)

    def integers(self, value: Value | None) -> list[int] | None:
        """Numbers that stay: by themselves, or since the node's axes rule demands it."""
        inputs = self._view.node.inputs
        for index, numbers in self._view.demanded.items():
            if inputs[index] is value:
                return numbers
        found = self.contents(value)
        if found is None or found.ndim > 1:
            return None
        numbers = [x for x in settled(found).flat if isinstance(x, int)]
        return numbers if len(numbers) == found.size else None


def _is_light(element: e.Size) -> bool:
    return isinstance(element, int) or not (e.weight(element) > HEAVIEST or e.is_long(element))
