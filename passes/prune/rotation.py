"""Streams turned into their principal axes, so that what is cut is what moves least.

Between layers that only add to a stream, or read it after a division by its root mean square, any
rotation of its channels can be undone by the layers that read it: the model computes the same.
In principal axes a few channels hold most of what a stream carries, and the others can go
(Ashkboos et al., "SliceGPT", 2024). Scales behind the division move into the layers that read
them; normalization that subtracts a mean doesn't commute with rotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...ir.axes.dims import Axis, Dim, dims_of, resolve
from ...ir.axes.facts import Analysis
from ...ir.errors import SecateurError
from ...ir.graph import Node, Use, Value, normalize_domain
from ...ir.model import Model
from ...ir.ops import Trait, traits
from ...ir.reference import Session
from ...ir.scratch import scratch_folder
from ...ir.tensor import Array, Tensor
from ..base import Context, Note, Pass, PassResult
from ..inline import InlineFunctions
from ..linear.contraction import Contraction
from ..linear.find import find_layer
from ..linear.layers import ConvolutionLayer
from ..linear.moments import Doubles
from ..linear.walk import Walk
from ..sizes import infer_sizes
from .groups import Group
from .plan import PruningPlan
from .recovery import calibration_runs

TOLERANCE = 1e-3
"""Of the largest output, between a model and the same with rotated streams."""

ROWS = 4096
"""Rows of a run that a stream's moments are taken from."""

_ROOT_MEAN_SQUARES = {"RMSNormalization", "SimplifiedLayerNormalization"}


class UnrotatableError(Exception):
    """Why a stream can't be rotated: something looks at its channels one by one."""


@dataclass
class Stream:
    """A dim that only linear operators see, and what there is to change for a rotation.

    `rotated` are uses of constants with the axis that the stream's channels have; `scales` those
    that are moved into `readers`, the layers behind each of them. `sources` are values that layers
    read, with the channels' axis.
    """

    name: str
    dim: Dim
    rotated: dict[Use, int] = field(default_factory=dict)
    scales: dict[Use, list[Use]] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)


def find_streams(analysis: Analysis, groups: Sequence[Group]) -> list[Stream | tuple[str, str]]:
    """Each group as a stream, or its name and why it can't be rotated."""
    touching: dict[Dim, dict[Node, None]] = {}
    for node in analysis.model.graph.all_nodes():
        for value in (*node.inputs, *node.outputs):
            for axis in (analysis.axes.get(value) or ()) if value is not None else ():
                for dim in dims_of(axis):
                    touching.setdefault(dim, {})[node] = None
    for use, parameter in analysis.parameters.items():
        for block in parameter.blocks:
            for dim in (d for axis in block for d in dims_of(axis)):
                touching.setdefault(dim, {})[parameter.node] = None
        assert isinstance(use.user, Node)
    found: list[Stream | tuple[str, str]] = []
    for group in groups:
        try:
            if len(group.dims) != 1 or group.lock is not None:
                raise UnrotatableError("its channels go in company")
            stream = Stream(group.name, group.dims[0])
            for node in touching.get(stream.dim, ()):
                _Visit(analysis, stream, node).classify()
            if not stream.sources:
                raise UnrotatableError("no layer reads it")
            found.append(stream)
        except UnrotatableError as why:
            found.append((group.name, str(why)))
    return found


class _Visit:
    """One node that a stream passes."""

    def __init__(self, analysis: Analysis, stream: Stream, node: Node) -> None:
        self._analysis, self._stream, self._node = analysis, stream, node
        self._inputs = {i: self._axis_of(i) for i in range(len(node.inputs))}
        self._outputs = [self._value_axis(v) for v in node.outputs]

    def classify(self) -> None:
        """Note what a rotation changes here. Raises UnrotatableError."""
        node = self._node
        kind = node.op_type if normalize_domain(node.domain) == "" else ""
        if node.subgraphs():
            self._refuse()
        layer = find_layer(self._analysis.model, node)
        if isinstance(layer, Contraction | ConvolutionLayer):
            self._layer(layer)
        elif kind in ("Add", "Sub", "Sum"):
            if any(axis is None for axis in self._inputs.values()):
                self._refuse()
            self._rotate_constants()
        elif (
            Trait.LINEAR in traits(node)
            or (kind in ("Concat", "Slice", "Split") and self._elsewhere())
            or (kind == "Gather" and self._inputs.get(1) is None and self._elsewhere())
        ):
            self._carried()
        elif kind in ("Pow", "Mul") and self._squares():
            pass
        elif kind.startswith("Reduce"):
            self._reduced(kind)
        elif kind in _ROOT_MEAN_SQUARES and node.get("axis", -1) in (-1, self._rank() - 1):
            self._scaled(1)
        elif kind == "Mul" and self._constant_with_channels() is not None:
            self._scaled(self._constant_with_channels())  # type: ignore[arg-type]
        elif kind in ("Mul", "Div"):
            with_channels = [i for i, axis in self._inputs.items() if axis is not None]
            if with_channels not in ([0], [1]) or (kind == "Div" and with_channels != [0]):
                self._refuse()
        else:
            self._refuse()

    def _refuse(self) -> None:
        label = f"{self._node.label} ({self._node.op_type})"
        raise UnrotatableError(f"{label} looks at its channels one by one")

    def _value_axis(self, value: Value | None) -> int | None:
        axes = self._analysis.axes.get(value) if value is not None else None
        return self._position(axes or ())

    def _axis_of(self, index: int) -> int | None:
        parameter = self._analysis.parameters.get(Use(self._node, index))
        if parameter is None:
            return self._value_axis(self._node.input(index))
        if len(parameter.blocks) > 1:
            if any(self._stream.dim in dims_of(a) for block in parameter.blocks for a in block):
                self._refuse()
            return None
        return self._position(parameter.blocks[0])

    def _position(self, axes: Sequence[Axis]) -> int | None:
        """Where the stream's channels are, which must be an axis of their own."""
        dim = self._stream.dim
        having = [i for i, axis in enumerate(axes) if dim in dims_of(axis)]
        if not having:
            return None
        if len(having) > 1 or resolve(axes[having[0]]) != ((dim,),):
            self._refuse()
        return having[0]

    def _rank(self) -> int:
        value = self._node.input(0)
        return 0 if value is None else value.rank or 0

    def _rotate_constants(self) -> None:
        for index, axis in self._inputs.items():
            use = Use(self._node, index)
            if axis is not None and use in self._analysis.parameters:
                self._stream.rotated[use] = axis

    def _layer(self, layer: Contraction | ConvolutionLayer) -> None:
        value = 1 - layer.position if isinstance(layer, Contraction) else 0
        source, result = self._inputs[value], self._outputs[0]
        if self._inputs[layer.position] is None or (source is None) == (result is None):
            self._refuse()
        if isinstance(layer, ConvolutionLayer) and layer.groups != 1:
            self._refuse()
        self._rotate_constants()
        if source is not None:
            name = self._node.inputs[value].name  # type: ignore[union-attr]
            self._stream.sources[name] = source

    def _elsewhere(self) -> bool:
        """Whether what a node does along an axis is not along the channels."""
        node = self._node
        axis = self._inputs[0]
        if node.op_type == "Slice":
            axes = self._analysis.model.constant(node.input(3))
            given = node.get("axes", None) if axes is None else axes.numpy().tolist()
            return axis is not None and given is not None and axis not in self._from_front(given)
        default = 0
        return axis is not None and axis not in self._from_front([node.get("axis", default)])

    def _from_front(self, axes: Sequence[int]) -> list[int]:
        return [int(axis) % max(self._rank(), 1) for axis in axes]

    def _carried(self) -> None:
        node = self._node
        for value, axis in zip(node.outputs, self._outputs, strict=True):
            if axis is None and value is not None and value.uses:
                self._refuse()
        self._rotate_constants()

    def _squares(self) -> bool:
        node = self._node
        first, second = node.input(0), node.input(1)
        exponent = self._analysis.model.constant(second)
        is_power = node.op_type == "Pow" and exponent is not None and exponent.size == 1
        if is_power and exponent is not None and float(exponent.numpy().reshape(())) == 2:
            return self._only_reduced()
        return node.op_type == "Mul" and first is second and self._only_reduced()

    def _only_reduced(self) -> bool:
        value = self._node.output(0)
        return value is not None and all(
            user.op_type in ("ReduceMean", "ReduceSum") for user in value.users
        )

    def _reduced(self, kind: str) -> None:
        """Means over other axes are linear, squares summed over the channels stay what they are."""
        node = self._node
        axes = node.get("axes", None)
        tensor = self._analysis.model.constant(node.input(1))
        given = axes if tensor is None else tensor.numpy().tolist()
        axis = self._inputs[0]
        if given is None or axis is None:
            self._refuse()
        source = node.input(0)
        made = None if source is None else source.producer
        is_square = made is not None and (
            made.op_type == "Pow" or (made.op_type == "Mul" and made.input(0) is made.input(1))
        )
        over = axis in self._from_front(given)
        if over and kind == "ReduceSumSquare" and len(given) == 1:
            return
        if (
            kind not in ("ReduceMean", "ReduceSum")
            or over != is_square
            or (over and len(given) > 1)
        ):
            self._refuse()

    def _constant_with_channels(self) -> int | None:
        for index, axis in self._inputs.items():
            if axis is not None and Use(self._node, index) in self._analysis.parameters:
                return index
        return None

    def _scaled(self, index: int) -> None:
        """A scale for each channel, which has to move into the layers behind."""
        model, result = self._analysis.model, self._node.output(0)
        parameter = self._analysis.parameters.get(Use(self._node, index))
        assert result is not None
        if parameter is None or parameter.tensor.size != self._stream.dim.size:
            self._refuse()
        readers = []
        for use in result.uses:
            layer = find_layer(model, use.user) if isinstance(use.user, Node) else None
            if not isinstance(layer, Contraction | ConvolutionLayer) or len(layer.stored.uses) > 1:
                self._refuse()
            assert isinstance(layer, Contraction | ConvolutionLayer)
            readers.append(Use(layer.node, layer.position))
        self._stream.scales[Use(self._node, index)] = readers


def move_scales(model: Model, stream: Stream) -> None:
    """Let the layers behind a stream's scales do what these did."""
    for use, readers in stream.scales.items():
        assert isinstance(use.user, Node)
        scale = _array(model, use)
        for reader in readers:
            axis = stream.rotated[reader]
            weights = _array(model, reader)
            shape = [1] * weights.ndim
            shape[axis] = -1
            _set(model, reader, weights * scale.reshape(shape))
        _set(model, use, np.ones_like(scale))


def rotate(model: Model, stream: Stream, rotation: Doubles) -> None:
    """Multiply a stream's channels [channels] by a matrix [channels, channels]."""
    done: dict[Value, int] = {}
    for use, axis in stream.rotated.items():
        assert isinstance(use.user, Node)
        value = use.user.input(use.position)
        assert value is not None
        if value in done:
            continue
        alike = all(stream.rotated.get(other) == axis for other in value.uses)
        turned = np.tensordot(_array(model, use), rotation, ([axis], [0]))
        if alike:
            done[value] = axis
        _set(model, use, np.moveaxis(turned, -1, axis), whole=alike)


def principal_axes(model: Model, stream: Stream, runs: Sequence[Mapping[str, Array]]) -> Doubles:
    """The stream's directions, what layers see most of first."""
    size = stream.dim.size or 0
    total: Doubles = np.zeros((size, size))
    ends = {v.name: i + 1 for i, n in enumerate(model.graph.nodes) for v in n.outputs if v}
    with scratch_folder() as folder:
        walk = Walk(model, runs, folder)
        for name in stream.sources:
            walk.keep(name, ends.get(name, 0))
        for name in sorted(stream.sources, key=lambda n: ends.get(n, 0)):
            walk.advance(ends.get(name, 0))
            moments: Doubles = np.zeros((size, size))
            for run in range(walk.runs):
                rows = np.moveaxis(walk.value(name, run), stream.sources[name], -1)
                rows = rows.reshape(-1, size)
                rows = rows[:: max(1, len(rows) // ROWS)].astype(np.float64)
                moments += rows.T @ rows
            total += moments / max(float(np.trace(moments)), 1e-300)
    _, vectors = np.linalg.eigh(total)
    return np.asarray(vectors[:, ::-1])


def _array(model: Model, use: Use) -> Doubles:
    assert isinstance(use.user, Node)
    tensor = model.constant(use.user.input(use.position))
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float64)


def _set(model: Model, use: Use, array: Doubles, *, whole: bool = False) -> None:
    """Let a use of a constant read another array; with `whole` all uses do."""
    assert isinstance(use.user, Node)
    value = use.user.input(use.position)
    tensor = model.constant(value)
    assert value is not None
    assert tensor is not None
    new = Tensor.from_array(array.astype(tensor.numpy().dtype), tensor.dtype)
    made = model.graph.add_initializer(model.fresh_name(f"{value.name}_rotated"), new)
    for other in list(value.uses) if whole else [use]:
        if isinstance(other.user, Node):
            other.user.set_input(other.position, made)


@dataclass(frozen=True)
class RotateStreams(Pass):
    """Turn the streams of a model into their principal axes, where no operator minds.

    What it computes stays the same, which is seen on calibration samples: without any it changes
    nothing, and says so.
    """

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        if context is None or not context.calibration:
            why = "nothing was rotated: no calibration samples"
            return PassResult(False, notes=[Note("", self.name, why)])
        inlined = InlineFunctions().run(model)
        infer_sizes(model)
        plan = PruningPlan(model, normalized=True)
        found = find_streams(plan.analysis, plan.free)
        streams = [stream for stream in found if isinstance(stream, Stream)]
        notes = [
            Note(name, "", f"not rotated: {why}")
            for name, why in (s for s in found if not isinstance(s, Stream))
        ]
        original = model.clone()
        with calibration_runs([model], context.calibration, context.seed) as runs:
            for stream in streams:
                move_scales(model, stream)
                rotate(model, stream, principal_axes(model, stream, runs))
        if streams:
            _compare(original, model, context)
        statistics = {"streams": [stream.name for stream in streams]}
        return PassResult(bool(streams) or inlined.changed, statistics, notes)


def _compare(original: Model, rotated: Model, context: Context) -> None:
    """Raises SecateurError where both differ on samples by more than rounding."""
    assert context.calibration is not None
    with calibration_runs([original, rotated], context.calibration, context.seed) as runs:
        before, after = (Session(m, threads=0).run(runs[0]) for m in (original, rotated))
    for name, array in before.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        largest = float(np.abs(array).max())
        if not np.abs(after[name] - array).max() <= TOLERANCE * largest:
            raise SecateurError(f"rotate-streams: output '{name}' isn't what it was")
