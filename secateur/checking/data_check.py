"""What of a file or folder of samples reaches a model, and whether the model was made for it.

Networks are trained on inputs of one range, and the commonest mistake is to feed another: the
first layers tell. BatchNormalization keeps the statistics of what it read in training; where
it is merged into the layer before, that layer's results deviate by about one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.datasets import Dataset, DataSource, load_dataset
from ..data.fixed_inputs import FixedInputs
from ..data.inputs import model_inputs
from ..data.statistics import distances, normalizations, session_up_to
from ..ir.display import printable
from ..ir.errors import SecateurError
from ..ir.graph import Node, Value, normalize_domain
from ..ir.model import Model
from ..ir.reference import Session
from ..ir.tensor import Array
from ..reporting.report import short
from .running import open_model

LOOKED_AT = 64
"""Samples, spread over all of them."""

LAYERS = 4
"""BatchNormalizations, from the first on, whose statistics are compared."""

FAR, NOT_NEAR = 1.0, 0.3
"""Squared distances from the kept statistics, in their deviations: what is suspicious by itself,
and what is where another range comes `NEARER`."""

NEARER = 8.0
"""How many times nearer another range has to come to be proposed."""

USUAL_DEVIATION = (0.02, 50.0)
"""Of the results of a first layer without BatchNormalization, which are about one."""


@dataclasses.dataclass(frozen=True)
class ChannelRange:
    """Of one channel of an input, or of all of it."""

    low: float
    high: float
    mean: float
    std: float


@dataclasses.dataclass
class DataFindings:
    """What `secateur data check` finds."""

    samples: int
    looked_at: int
    labels: str
    inputs: list[dict[str, Any]]
    notes: list[str]
    warnings: list[str]


OTHER_REACH = 8.0
"""Ratio of the largest magnitudes of calibration and evaluation samples that is worth a word."""


def constant_inputs(data: Dataset) -> list[str]:
    """Of inputs that are the same everywhere."""
    found = []
    for name, array in data.samples.arrays.items():
        indices = np.unique(np.linspace(0, len(array) - 1, LOOKED_AT).astype(int))
        arrays = [np.asarray(array[int(index)]) for index in indices]
        ranges = channel_ranges(arrays, None)
        if len(array) > 1 and arrays[0].size > 1 and arrays[0].dtype.kind == "f":
            found += constant_warnings(name, ranges)
    return found


def suspicions(model: Model, data: Dataset) -> list[str]:
    """Of inputs that are the same everywhere or, by what the first layers say, in another range
    than the model was made for."""
    constant = constant_inputs(data)
    return constant or range_warnings(model, _looked_at(data))


def other_ranges(calibration: Dataset, evaluation: Dataset) -> list[str]:
    """Of inputs whose samples for calibration reach much further, or much less far, than those
    for evaluation: integers are chosen for other numbers than they are measured on."""
    found = []
    feeds = [_looked_at(data) for data in (calibration, evaluation)]
    for name, array in feeds[0][0].items():
        if array.dtype.kind != "f" or name not in feeds[1][0]:
            continue
        reaches = [max(np.abs(feed[name]).max(initial=0) for feed in each) for each in feeds]
        if max(reaches) > OTHER_REACH * min(reaches):
            found.append(
                f"input '{printable(name)}' reaches {reaches[0]:.3g} on calibration samples and "
                f"{reaches[1]:.3g} on those for evaluation: one of them is in a wrong range"
            )
    return found


def check_data_file(
    path: Path, source: DataSource, fixed: FixedInputs | None = None, kind: str | None = None
) -> tuple[DataFindings, Model, Dataset]:
    """Look at samples and the model that they are for. Raises SecateurError."""
    model = open_model(path, fixed)
    data = load_dataset(source, model, kind)
    return check_data(model, data), model, data


def check_data(model: Model, data: Dataset) -> DataFindings:
    """Ranges of the inputs, and what is wrong with them."""
    feeds = _looked_at(data)
    found = DataFindings(
        len(data.samples), len(feeds), _labels_text(data), [], list(data.notes), []
    )
    for value in model_inputs(model):
        arrays = [feed[value.name] for feed in feeds]
        axis = channel_axis(arrays[0].shape)
        ranges = channel_ranges(arrays, axis)
        found.inputs.append(
            {
                "name": value.name,
                "type": str(arrays[0].dtype),
                "shape": list(arrays[0].shape),
                "channel_axis": axis,
                "channels": [dataclasses.asdict(r) for r in ranges],
            }
        )
        found.warnings += constant_warnings(value.name, ranges)
    found.warnings += range_warnings(model, feeds)
    return found


def _looked_at(data: Dataset) -> list[dict[str, Array]]:
    """Inputs of runs that are spread over all samples."""
    indices = np.unique(np.linspace(0, len(data.samples) - 1, LOOKED_AT).astype(int))
    return [data.samples.take(int(index), data.samples.batch or 1) for index in indices]


def channel_axis(shape: Sequence[int]) -> int | None:
    """The axis of a picture's channels, of a batch of them; None where there is none."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (1, 3) if shape[axis] <= 4), None)


def channel_ranges(arrays: Sequence[Array], axis: int | None) -> list[ChannelRange]:
    """Of all channels, or of everything where there is no axis of channels."""
    if arrays[0].dtype.kind not in "biuf" or not arrays[0].size:
        return []
    count = 1 if axis is None else arrays[0].shape[axis]
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    total, squares, elements = np.zeros(count), np.zeros(count), 0
    for array in arrays:
        rows = np.moveaxis(array, axis, 0).reshape(count, -1) if axis is not None else array
        flat = rows.reshape(count, -1).astype(np.float64)
        low, high = np.minimum(low, flat.min(1)), np.maximum(high, flat.max(1))
        total, squares = total + flat.sum(1), squares + np.square(flat).sum(1)
        elements += flat.shape[1]
    mean = total / elements
    std = np.sqrt(np.maximum(squares / elements - mean**2, 0))
    columns = zip(low, high, mean, std, strict=True)
    return [ChannelRange(*(float(number) for number in row)) for row in columns]


def constant_warnings(name: str, ranges: Sequence[ChannelRange]) -> list[str]:
    """Of inputs that are the same everywhere, in which nothing can be measured."""
    where = f"input '{printable(name)}'"
    constant = [index for index, r in enumerate(ranges) if r.low == r.high]
    if not constant:
        return []
    if len(constant) == len(ranges):
        values = sorted({r.low for r in ranges})
        return [f"{where} is {', '.join(f'{v:g}' for v in values)} everywhere, in all samples"]
    some = ", ".join(map(str, constant[:8]))
    return [f"{where} has channels without any variation: {some}"]


# --- ranges ------------------------------------------------------------------------------

Change = Callable[[Array], Array]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _imagenet(array: Array) -> Array:
    axis = channel_axis(array.shape)
    shape = [3 if k == axis else 1 for k in range(array.ndim)]
    return np.asarray((array - np.reshape(_MEAN, shape)) / np.reshape(_STD, shape))


RANGES: dict[str, tuple[Change, bool]] = {
    "divided by 255 (0..255 to 0..1: scale=1/255)": (lambda x: x / 255, False),
    "times 255 (0..1 to 0..255: scale=1)": (lambda x: x * 255, False),
    "in -1..1 instead of 0..255 (scale=1/127.5 mean=1)": (lambda x: x / 127.5 - 1, False),
    "in -1..1 instead of 0..1 (scale=1/127.5 mean=1)": (lambda x: x * 2 - 1, False),
    "in 0..1 instead of -1..1 (scale=1/255 mean=0)": (lambda x: (x + 1) / 2, False),
    "in 0..255 instead of -1..1 (scale=1 mean=0)": (lambda x: (x + 1) * 127.5, False),
    "less ImageNet's mean, over its deviation, of 0..1 (imagenet)": (_imagenet, True),
    "less ImageNet's mean, over its deviation, of 0..255 (imagenet)": (
        lambda x: _imagenet(x / 255),
        True,
    ),
}
"""What else inputs may have to be, and whether it needs three channels."""


def range_warnings(model: Model, feeds: Sequence[dict[str, Array]]) -> list[str]:
    """What the first layers say of the range of the one input that is a picture or a vector."""
    values = [v for v in model_inputs(model) if feeds[0][v.name].dtype.kind == "f"]
    if len(values) != 1:
        return []
    (value,) = values
    try:
        return _range_warnings(model, value, feeds)
    except SecateurError:  # no such part of the model can run by itself
        return []


def _range_warnings(model: Model, value: Value, feeds: Sequence[dict[str, Array]]) -> list[str]:
    name = f"input '{printable(value.name)}'"
    nodes = normalizations(model)[:LAYERS]
    if not nodes:
        return _first_layer_warning(model, value, feeds)
    session = session_up_to(model, [node.inputs[0] for node in nodes])
    given = _distance(session, model, nodes, feeds)
    if given <= NOT_NEAR:
        return []
    three = (axis := channel_axis(feeds[0][value.name].shape)) is not None
    three = three and feeds[0][value.name].shape[axis or 0] == 3
    tried = {}
    for text, (change, needs_three) in RANGES.items():
        if needs_three and not three:
            continue
        changed = [
            {**f, value.name: change(f[value.name]).astype(f[value.name].dtype)} for f in feeds
        ]
        tried[text] = _distance(session, model, nodes, changed)
    best = min(tried, key=lambda text: tried[text])
    nearer = tried[best] * NEARER <= given
    if given <= FAR and not nearer:
        return []
    label = nodes[0].label
    text = (
        f"{name}: what the first layers read is {np.sqrt(given):.1f} deviations from what they "
        f"were trained on (BatchNormalization '{short(printable(label))}')"
    )
    if nearer:
        text += f"; {np.sqrt(tried[best]):.1f} with the input {best}"
    return [text]


def _first_layer_warning(
    model: Model, value: Value, feeds: Sequence[dict[str, Array]]
) -> list[str]:
    """Of models whose BatchNormalization is merged into the layer before, or that have none."""
    node = _first_layer(model, value)
    if node is None:
        return []
    session = session_up_to(model, [node.outputs[0]])
    arrays = [next(iter(session.run(feed).values())) for feed in feeds]
    axis = arrays[0].ndim - 1 if node.op_type in ("MatMul", "Gemm") else 1
    flat = np.concatenate([np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in arrays], 1)
    deviation = float(np.median(flat.astype(np.float64).std(axis=1)))
    low, high = USUAL_DEVIATION
    if low <= deviation <= high:
        return []
    what = "small" if deviation < low else "large"
    return [
        f"input '{printable(value.name)}' looks too {what}: the results of the first layer, "
        f"'{short(printable(node.label))}' ({node.op_type}), deviate by {deviation:.3g} where "
        f"{low:g} to {high:g} is usual"
    ]


def _first_layer(model: Model, value: Value) -> Node | None:
    """The layer with weights that reads an input, perhaps moved or padded before."""
    while True:
        users = [user for user in value.users if isinstance(user, Node)]
        if len(users) != 1 or normalize_domain(users[0].domain) != "":
            return None
        (node,) = users
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            return node if model.constant(node.input(1)) is not None else None
        if node.op_type not in ("Identity", "Reshape", "Transpose", "Pad", "Flatten", "Unsqueeze"):
            return None
        following = node.output(0)
        if following is None:
            return None
        value = following


def _distance(
    session: Session, model: Model, nodes: Sequence[Node], feeds: Sequence[dict[str, Array]]
) -> float:
    """Of the layer where it is largest, at the channel in the middle."""
    return max(float(np.median(d)) for d in distances(session, model, nodes, feeds))


def _labels_text(data: Dataset) -> str:
    if data.labels is None:
        return "none"
    if data.kind != "class":
        return f"{len(data.labels):,} of the kind {data.kind}"
    classes = np.unique(np.asarray(data.labels))
    return f"{len(data.labels):,} of {len(classes):,} classes, {classes[0]} to {classes[-1]}"
