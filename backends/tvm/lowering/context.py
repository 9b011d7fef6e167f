"""State shared by the lowering rules: what stands for each value of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from ....ir.declarations import shown_type
from ....ir.errors import UnsupportedError
from ....ir.graph import Node, Value
from ....ir.infer import infer_shapes
from ....ir.model import Model
from ....ir.symbolic import expressions as e
from ....ir.symbolic.expressions import Atom, Expression, Size
from ....ir.tensor import Array
from ..graph.loop_sizes import LoopAnalysis, OpenLoop
from ..graph.open_sizes import OpenSizes, sizes_of_none
from ..graph.signed import may_be_signed, only_for_depthwise
from ..plan.operations import ElementwiseOp, Plan, ReadSizesOp
from ..plan.programs import Program, ProgramBuilder, compose, dequantize, simplify
from ..plan.sizes import (
    is_open,
    may_be_none,
    most_of,
    size_of,
    stand_in,
    stand_in_of_axis,
    uncomputable,
)
from ..plan.tensors import Operation, PlanTensor, View
from ..targets import Target


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """The value itself is in memory."""

    tensor: PlanTensor


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A float value that is in memory as integers: (tensor - zero) * scale."""

    tensor: PlanTensor
    scale: float
    zero: int


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A constant. Quantized ones keep their integers, with scale and zero per `axis`."""

    array: Array
    scale: Array | None = None
    zero: Array | None = None
    axis: int = 0

    def dequantized(self) -> Array:
        """The elements as floats."""
        if self.scale is None:
            return self.array
        scale, zero = self.along(self.scale), self.along(self.zero)
        return (self.array.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale

    def along(self, parameters: Array | None) -> Array:
        """Scale or zero point, shaped to broadcast over the elements."""
        assert parameters is not None
        if parameters.size == 1:
            return parameters.reshape(())
        shape = [1] * self.array.ndim
        shape[self.axis] = -1
        return parameters.reshape(shape)


Item = Stored | Quantized | Constant


def quantized(item: Item, name: str) -> Quantized | None:
    """Bytes with one scale, in memory or of a constant; None for what is kept otherwise."""
    if isinstance(item, Quantized):
        return item
    if not isinstance(item, Constant) or item.scale is None or item.zero is None:
        return None
    if item.scale.size != 1 or item.array.dtype not in (np.int8, np.uint8):
        return None
    array = np.ascontiguousarray(item.array)
    tensor = PlanTensor(name, str(array.dtype), tuple(array.shape), const=array)
    return Quantized(tensor, float(item.scale.reshape(())), int(item.zero.reshape(())))


@dataclasses.dataclass(frozen=True)
class QuantizeParameters:
    """Per-tensor parameters of a QuantizeLinear node and the value that it defines."""

    scale: float
    zero: int
    dtype: str
    output: Value


class Lowering:
    """Collects operations while rules walk the graph.

    `sizes` are the expressions of sizes that only a run fixes, where the model has any. `plain` are
    labels of nodes that no fast rule is to take.
    """

    def __init__(
        self,
        model: Model,
        target: Target,
        sizes: OpenSizes | None = None,
        plain: AbstractSet[str] = frozenset(),
    ) -> None:
        self.model = model
        self.target = target
        self.sizes = sizes
        self.plain = plain
        self.items: dict[Value, Item] = {}
        self.plan = Plan([], [], [])
        self._read: dict[Value | Node, dict[Atom, int]] = {}
        for atom, element in sizes.data.items() if sizes is not None else ():
            self._read.setdefault(element.source, {})[atom] = element.index
        self._floats: dict[Quantized, PlanTensor] = {}
        self._loops: LoopAnalysis | None = None

    def static_loops(self) -> tuple[Mapping[Node, OpenLoop], Mapping[Node, str]]:
        """The loops of a model without open sizes, and why others aren't followed."""
        if self._loops is None:
            self._loops = LoopAnalysis(self.model, {})
            self._loops.run()
            for loop in self._loops.loops.values():
                infer_shapes(loop.body.model)
        return self._loops.loops, self._loops.refused

    # --- values ---

    def item(self, value: Value) -> Item:
        """What stands for a value, initializers included."""
        found = self.items.get(value)
        if found is None:
            tensor = self.model.constant(value)
            if tensor is None:
                raise UnsupportedError(f"value '{value.name}' is used before it is computed")
            found = self.items[value] = Constant(np.asarray(tensor.numpy()))
        return found

    def constant(self, value: Value | None) -> Array | None:
        """A constant's elements as floats or integers, None where it isn't constant.

        Integers that follow from open sizes count as constant, in an array of objects.
        """
        if value is None:
            return None
        if value not in self.items and self.model.constant(value) is None:
            return None
        item = self.item(value)
        return item.dequantized() if isinstance(item, Constant) else self.contents(value)

    def stored(self, value: Value) -> PlanTensor:
        """The value in memory as its own type; dequantizes once where it is kept as integers."""
        item = self.item(value)
        if isinstance(item, Stored):
            return item.tensor
        if isinstance(item, Constant):
            self.dtype(value)  # which types there are kernels for
            array = np.asarray(item.dequantized(), order="C")
            return PlanTensor(value.name, str(array.dtype), tuple(array.shape), const=array)
        found = self._floats.get(item)
        if found is None:
            found = self._floats[item] = self.tensor(value)
            program = dequantize(item.tensor.dtype, item.scale, item.zero)
            self.add(ElementwiseOp(value.name, [found], [View.of(item.tensor)], program))
        return found

    def tensor(self, value: Value, dtype: str | None = None) -> PlanTensor:
        """A new tensor for a value's result."""
        return PlanTensor(value.name, dtype or self.dtype(value), self.shape(value))

    def define_empty(self, value: Value, tensor: PlanTensor) -> None:
        """Let a value be a tensor that has no elements in any run."""
        if not is_open(*tensor.shape):
            self.items[value] = Constant(np.zeros(tensor.shape, tensor.dtype))
            return
        none = PlanTensor(f"{value.name}/none", tensor.dtype, (0,), const=np.zeros(0, tensor.dtype))
        program = Program((tensor.dtype,))
        self.add(ElementwiseOp(value.name, [tensor], [View.of(none)], program))
        self.items[value] = Stored(tensor)

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape, of numbers and `OpenSize`s; raises UnsupportedError where it isn't known."""
        if self.sizes is not None:
            return self._open_shape(value, self.sizes)
        shape = value.shape
        if shape is None or not all(isinstance(d, int) for d in shape):
            shown = "unknown" if shape is None else [d if d is not None else "?" for d in shape]
            raise UnsupportedError(
                f"{_origin(value)}: the shape of '{value.name}' is not static ({shown}); "
                "fix the shapes of the inputs (--input-shape)"
            )
        return tuple(int(d) for d in shape if isinstance(d, int))

    def size(self, value: Value, axis: int) -> int:
        """The size of an axis, which may be 0 where data decide it."""
        found = self.sizes.shape(value) if self.sizes is not None else None
        return self.shape(value)[axis] if found is None else stand_in(found[axis])

    def require_equal(self, a: int, b: int) -> None:
        """Let runs be refused in which two sizes differ."""
        if a != b:
            self.plan.equal.append((a, b))

    def require_at_most(self, size: int, most: int) -> None:
        """Let runs be refused in which a size is larger than another."""
        if is_open(size, most):
            self.require_equal(stand_in(e.minimum(size_of(size), size_of(most))), size)

    def read_sizes(
        self, source: Value | Node, label: str, tensor: PlanTensor | None = None
    ) -> None:
        """Let runs take the numbers that a value holds for sizes of what comes later, if they do;
        those of how many results a node has are in `tensor`."""
        found = self._read.get(source)
        if found is not None:
            assert isinstance(source, Value) or tensor is not None
            read = self.stored(source) if isinstance(source, Value) else tensor
            assert read is not None
            self.add(ReadSizesOp(label, [], read, found))

    def is_counted(self, node: Node) -> bool:
        """Whether only a run tells how many results a node has."""
        return node in self._read

    def may_read_nothing(self, node: Node) -> bool:
        """Whether an operand of a node may have no elements in some run though its results do."""
        if self.sizes is None or node.op_type in ("Concat", "Slice", "TopK"):
            return False
        found = sizes_of_none(self.sizes, node)
        return any(may_be_none(size) and e.range_of(size).low == 0 for size in found)

    def broadcasts(self, shapes: Sequence[tuple[int, ...]], result: tuple[int, ...]) -> bool:
        """Whether shapes give a result by broadcasting; open sizes that have to be equal for
        that are so in all runs that aren't refused."""
        if not is_open(*result, *(size for shape in shapes for size in shape)):
            try:
                return np.broadcast_shapes(*shapes) == result
            except ValueError:
                return False
        if max(map(len, shapes), default=0) != len(result):
            return False
        needed = []
        for shape in shapes:
            for own, size in zip(shape[::-1], result[::-1], strict=False):
                if own not in (1, size):
                    if not is_open(own, size):
                        return False
                    needed.append((own, size))
        for axis, size in enumerate(result):
            sizes = [s[axis - len(result)] for s in shapes if len(s) >= len(result) - axis]
            if size not in sizes and not needed:
                return False
        for own, size in needed:
            self.require_equal(own, size)
        return True

    def is_open(self, node: Node) -> bool:
        """Whether a node reads or defines a value with a size that only a run fixes."""
        if self.sizes is None:
            return False
        values = (*node.inputs, *node.outputs)
        sizes = (size for value in values for size in self.sizes.shape(value) or ())
        if any(isinstance(size, Expression) for size in sizes):
            return True
        return self.contents(node.output(0)) is not None

    def contents(self, value: Value | None) -> Array | None:
        """The elements of a short tensor of integers that follow from the inputs' sizes, as an
        array of numbers and `OpenSize`s; None where they don't, or aren't open."""
        return None if value in self._read else self.told(value)

    def told(self, value: Value | None) -> Array | None:
        """As `contents`, and the elements that runs read from the value itself."""
        found = self.sizes.contents(value) if self.sizes is not None else None
        if found is None or not any(isinstance(size, Expression) for size in found.flat):
            return None
        if any(uncomputable(size) is not None for size in found.flat):
            return None
        result = np.empty(found.shape, object)
        for index, size in np.ndenumerate(found):
            result[index] = stand_in(size)
        return result

    def _open_shape(self, value: Value, sizes: OpenSizes) -> tuple[int, ...]:
        found = sizes.shape(value)
        if found is None:
            raise UnsupportedError(f"{_origin(value)}: the rank of '{value.name}' is unknown")
        for axis, size in enumerate(found):
            part = uncomputable(size)
            if part is not None:
                raise UnsupportedError(
                    f"{_origin(value)}: size {axis} of '{value.name}' doesn't follow from the "
                    f"sizes of the inputs ({part})"
                )
            if most_of(size) is None:
                raise UnsupportedError(
                    f"{_origin(value)}: only a run tells size {axis} of '{value.name}', and "
                    f"nothing says how large that may be; {_remedy(size, sizes)}"
                )
        return tuple(map(stand_in_of_axis, found))

    def dtype(self, value: Value) -> str:
        """The element type's name; raises UnsupportedError for types kernels lack."""
        name = numpy_dtype(value.dtype)
        kind = None if value.type is None else value.type.WhichOneof("value")
        if kind in ("sequence_type", "optional_type") and value.producer is None:
            what, form = ("a sequence", "[2x3,4x3]")
            if kind == "optional_type":
                what, form = ("an optional", "2x3 or none")
            raise UnsupportedError(
                f"input '{value.name}' is {what}, and a model doesn't say what of; --input-shape "
                f"does, as in {value.name}={form}"
            )
        if name is None:
            raise UnsupportedError(
                f"{_origin(value)}: value '{value.name}' is of type {shown_type(value.type)}, "
                "a type that kernels lack"
            )
        return name

    def is_float(self, value: Value) -> bool:
        """Whether the value is float32, perhaps kept as integers."""
        item = self.item(value)
        if isinstance(item, Constant):
            return item.scale is not None or item.array.dtype == np.float32
        return isinstance(item, Quantized) or item.tensor.dtype == "float32"

    def is_computed_float(self, value: Value) -> bool:
        """Whether the value is float32 and no constant."""
        return not isinstance(self.item(value), Constant) and self.is_float(value)

    def users(self, value: Value) -> list[Node]:
        """Nodes reading a value, those inside subgraphs included."""
        return value.users

    def add(self, operation: Operation) -> None:
        self.plan.operations.append(operation)

    # --- elementwise ---

    def operand(self, value: Value) -> tuple[View, Program]:
        """How an elementwise rule reads a value: a tensor and the program to its own type."""
        item = self.item(value)
        if isinstance(item, Quantized):
            return View.of(item.tensor), dequantize(item.tensor.dtype, item.scale, item.zero)
        tensor = self.stored(value)
        return View.of(tensor), Program((tensor.dtype,))

    def elementwise(
        self,
        label: str,
        operands: Sequence[tuple[View, Program]],
        program: Program,
        output: PlanTensor,
    ) -> None:
        """Add a program whose operands have programs of their own; constants become part of it."""
        views: list[View] = []
        inner: dict[int, Program] = {}
        for index, (view, instructions) in enumerate(operands):
            const = view.tensor.const
            if const is not None and const.size == 1 and instructions.is_identity:
                builder = ProgramBuilder(())
                builder.add("constant", (), view.tensor.dtype, value=const.reshape(()).item())
                inner[index] = builder.build()
                continue
            views.append(view)
            if instructions.instructions:
                inner[index] = instructions
        fused = compose(program, inner) if inner else program
        self.add(ElementwiseOp(label, [output], views, simplify(fused)))

    # --- quantization ---

    def quantize_parameters(self, node: Node) -> QuantizeParameters | None:
        """The parameters of a per-tensor QuantizeLinear to 8 bits, None for other kinds."""
        if node.op_type != "QuantizeLinear" or node.domain not in ("", "ai.onnx"):
            return None
        scale = self.constant(node.input(1))
        zero_value = node.input(2)
        zero = self.constant(zero_value)
        output = node.output(0)
        if scale is None or scale.size != 1 or scale.dtype != np.float32 or output is None:
            return None
        if zero_value is not None and (zero is None or zero.size != 1):
            return None
        if node.get("block_size", 0):
            return None
        dtype = numpy_dtype(output.dtype) or (str(zero.dtype) if zero is not None else "uint8")
        if dtype not in ("uint8", "int8"):
            return None
        number = 0 if zero is None else int(zero.reshape(()))
        if dtype == "uint8" and self._keeps_signed(node):
            dtype, number = "int8", number - 128
        return QuantizeParameters(float(scale.reshape(())), number, dtype, output)

    def _keeps_signed(self, node: Node) -> bool:
        """Whether a QuantizeLinear's unsigned bytes are kept as signed ones."""
        wants = self.target.prefers_signed_bytes or (
            self.target.prefers_signed_channels and only_for_depthwise(node)
        )
        return wants and may_be_signed(node, self.model.graph, self.constant)

    def sole_quantize(self, value: Value) -> QuantizeParameters | None:
        """The QuantizeLinear that alone reads a value, if there is one."""
        users = value.users
        if value.is_graph_output or len(value.uses) != 1 or len(users) != 1:
            return None
        return self.quantize_parameters(users[0])


def _remedy(size: Size, sizes: OpenSizes) -> str:
    """How a user bounds a size that elements of values decide."""
    endless = [leaf for leaf in e.leaves(size) if leaf.range.high is None]
    read = [sizes.data[leaf] for leaf in endless if leaf in sizes.data]
    others = "--input-value fixes an input, --declared-sizes compiles for the size that is declared"
    return f"--size {read[0].name}=0..N does, {others}" if read else others


def _origin(value: Value) -> str:
    """Where a value comes from, for messages."""
    node = value.producer
    return "the graph's inputs" if node is None else f"node '{node.label}' ({node.op_type})"


def numpy_dtype(onnx_dtype: int) -> str | None:
    """The name of an ONNX element type, or None where kernels have no such type."""
    names = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"}
    names |= {9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"}
    return names.get(onnx_dtype)


def check_int32(values: Array) -> Array:
    """Bias values as int32, wrapping as 32-bit accumulators do."""
    return np.asarray(values, np.int64).astype(np.int32)
