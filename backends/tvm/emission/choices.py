"""Which form and tile a kernel takes: by the analytic models, unless measurements know better.

Measurements lie in a JSON file, one table for each target, keyed by what the kernel
computes (`describe`):

    {"version": 1, "targets": {"x86-64-v3": {"convolution float32 ...":
        {"choice": {"form": "direct", "vectors": 2, "rows": 1, "columns": 6, ...},
         "microseconds": 80.1, "default_microseconds": 92.5}}}}
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ....ir.errors import SecateurError
from ....ir.files import read_regular
from ....ir.onnx_io import atomic_files
from ....ir.tensor import Array
from ..kernels.convolution import depthwise, transforms, winograd
from ..kernels.convolution.tiles import Convolution, Tile, choose_tile
from ..kernels.convolution.tiles import fits as tile_fits
from ..kernels.matrix.matmul import MatMul, MatrixTile
from ..kernels.matrix.matmul import choose_tile as choose_matrix_tile
from ..kernels.matrix.matmul import fits as matrix_tile_fits
from ..plan.layouts import Pads
from ..plan.operations import ConvolutionOp, Fused, MatMulOp, Plan, PoolingOp
from ..plan.sizes import typical
from ..plan.tensors import Operation, PlanTensor
from ..targets import Target

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Choice:
    """A kernel's form, "direct", "winograd" or "product", and the tile of the others."""

    form: str
    tile: Tile | MatrixTile | None = None

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self.tile) if self.tile is not None else {}
        return {"form": self.form, **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Choice:
        """Raises TypeError or KeyError for what is no choice."""
        kinds = {"direct": Tile, "product": MatrixTile, "winograd": None}
        fields = dict(data)
        form = fields.pop("form")
        kind = kinds[form]
        if kind is None:
            return cls(form)
        if not all(isinstance(v, int) and v >= 0 for v in fields.values()):
            raise TypeError(f"not a tile: {fields}")
        return cls(form, kind(**fields))


@dataclasses.dataclass(frozen=True)
class Measured:
    """A choice with its time, and that of what would be chosen without measuring."""

    choice: Choice
    microseconds: float
    default_microseconds: float


@dataclasses.dataclass(frozen=True)
class Choices:
    """Chooses for every operation of a plan. `winograd=False` rules the Winograd form out, and
    `fresh` has the results of convolutions whose weights would take too many bytes in it, so that
    each run transforms them."""

    target: Target
    measured: Mapping[str, Choice] = dataclasses.field(default_factory=dict)
    winograd: bool = True
    fresh: frozenset[PlanTensor] = frozenset()

    def by_winograd(self, op: Operation) -> bool:
        """Whether the operation is a convolution that takes the Winograd form."""
        if not self.winograd or not isinstance(op, ConvolutionOp):
            return False
        if not may_be_winograd(op, self.target):
            return False
        fresh, choice = op.output in self.fresh, self.measured.get(describe(op))
        if choice is not None and not (fresh and choice.form == "winograd"):
            return choice.form == "winograd"  # measured with copies: what is faster even so is
        shape, out, geometry = op.input.shape, op.output.shape, op.geometry
        return winograd.pays(shape, out[1], out, geometry, op.groups, fresh=fresh)

    def needed_pads(self, op: ConvolutionOp | PoolingOp) -> Pads:
        """Physical padding that the operation's kernel reads."""
        if self.by_winograd(op):
            return winograd.needed_pads(op.input.shape, op.output.shape, op.geometry)
        top, left, bottom, right = op.geometry.margins
        if (
            isinstance(op, ConvolutionOp)
            and op.is_depthwise
            and op.input.dtype != "float32"
            and "vnni" in self.target.features
        ):
            right += depthwise.extra_columns(op.geometry.kernel[1])
        return top, left, bottom, right

    def convolution(self, op: ConvolutionOp, kernel: Convolution) -> Tile:
        """The tile of the direct form."""
        tile = self._tile(op)
        if isinstance(tile, Tile) and tile_fits(kernel, self.target, tile):
            return tile
        return choose_tile(kernel, self.target)

    def product(self, op: MatMulOp, kernel: MatMul) -> MatrixTile:
        tile = self._tile(op)
        if isinstance(tile, MatrixTile) and matrix_tile_fits(kernel, self.target, tile):
            return tile
        return choose_matrix_tile(kernel, self.target)

    def _tile(self, op: Operation) -> Tile | MatrixTile | None:
        choice = self.measured.get(describe(op))
        return choice.tile if choice is not None else None


COPIES = 0.5
"""How many times the bytes of all weights copies for the Winograd form take at most, by default."""

_FEW = 50_000
"""Bytes that such copies may take besides, where any may."""


def limit_copies(plan: Plan, choices: Choices, copies: float) -> Choices:
    """Choices whose copies of weights take at most `copies` times the bytes of a plan's constants.

    Convolutions of most pixels come first: they gain most by each byte.
    """
    if not choices.winograd:
        return choices
    left = copies * _constant_bytes(plan) + _FEW
    fresh, copied = set[PlanTensor](), set[int]()
    convolutions = (op for op in plan.operations if isinstance(op, ConvolutionOp))
    found = [op for op in convolutions if may_be_winograd(op, choices.target)]
    for op in sorted(found, key=lambda op: -math.prod(map(typical, op.output.shape[2:]))):
        more = 0 if id(op.weights) in copied else winograd.MORE * op.weights.nbytes
        if more > left or not choices.by_winograd(op):
            fresh.add(op.output)
            continue
        left -= more
        copied.add(id(op.weights))
    return dataclasses.replace(choices, fresh=frozenset(fresh))


def _constant_bytes(plan: Plan) -> int:
    """Bytes of all constants, each once; integers of products are kept in 8 bits."""
    arrays: dict[int, Array] = {}
    for op in plan.operations:
        fields = (getattr(op, field.name) for field in dataclasses.fields(op))
        consts = (tensor.const for tensor in op.reads())
        arrays |= {id(a): a for a in (*fields, *consts) if isinstance(a, np.ndarray)}
    return sum(a.size * (1 if a.dtype == np.int16 else a.itemsize) for a in arrays.values())


def may_be_winograd(op: ConvolutionOp, target: Target) -> bool:
    """Whether the Winograd form computes the operation at all."""
    dtype, shape = op.input.dtype, op.input.shape
    if op.upsampling is not None or not transforms.multiplies(dtype, target):
        return False
    computes = winograd.computes(shape, op.output.shape[1], op.geometry, op.groups)
    return computes and transforms.is_exact(dtype, op.weights)


def describe(op: Operation) -> str:
    """What an operation's kernel computes, in one line, constants left out."""
    words = [type(op).__name__.removesuffix("Op").lower()]
    if isinstance(op, ConvolutionOp):
        g = op.geometry
        words += [
            op.input.dtype,
            _sizes(op.input.shape),
            f"weights {_sizes(op.weights.shape)}",
            f"stride {_sizes(g.strides)}",
            f"dilation {_sizes(g.dilations)}",
            f"pads {_sizes(g.pads)}",
            f"groups {op.groups}",
        ]
        if op.upsampling is not None:
            words.append(f"upsampling {_sizes(op.upsampling.factors)}")
    elif isinstance(op, MatMulOp):
        words += [op.input.dtype, _sizes(op.input.shape), f"weights {_sizes(op.weights.shape)}"]
    if isinstance(op, Fused):
        words += [step.name for step in op.program.instructions if step.name != "constant"]
    return " ".join(words)


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def read_table(path: Path | None, target: Target) -> dict[str, Measured]:
    """A target's measurements in a file; none where there is none or it can't be read.

    Entries that are none, or a file that is something else, are left out with a warning.
    """
    if path is None:
        return {}
    table = _read(path)["targets"].get(target.name, {})
    found = {}
    for key, entry in table.items():
        try:
            times = float(entry["microseconds"]), float(entry["default_microseconds"])
            if not all(0 < time < math.inf for time in times):
                raise ValueError
            found[key] = Measured(Choice.from_json(entry["choice"]), *times)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            warnings.warn(f"{path}: ignored what is no measurement, of '{key}'", stacklevel=2)
    return found


def write_table(path: Path, target: Target, entries: Mapping[str, Measured]) -> None:
    """Add a target's measurements to a file. Raises SecateurError."""
    data = _read(path)
    table = {
        **data["targets"].get(target.name, {}),
        **{
            key: {
                "choice": m.choice.to_json(),
                "microseconds": m.microseconds,
                "default_microseconds": m.default_microseconds,
            }
            for key, m in entries.items()
        },
    }
    data["targets"][target.name] = dict(sorted(table.items()))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SecateurError(f"{path.parent}: can't write here ({error.strerror})") from None
    with atomic_files(path) as (temporary,):
        temporary.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    nothing: dict[str, Any] = {"version": VERSION, "targets": {}}
    try:
        text = read_regular(path, _MOST_BYTES)
    except FileNotFoundError:
        return nothing
    except OSError as error:  # as any part of a cache: what can't be read is not there
        warnings.warn(f"{path}: ignored ({error.strerror or error})", stacklevel=3)
        return nothing
    try:
        data = json.loads(text)
        targets = data["targets"].values()
        if data["version"] == VERSION and all(isinstance(table, dict) for table in targets):
            return dict(data)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        pass
    warnings.warn(
        f"{path}: ignored, since it is no table of measurements that this version reads",
        stacklevel=3,
    )
    return nothing


_MOST_BYTES = 1 << 26
"""Bytes of a table above which it is none."""
