"""Writes random networks in any opset: values with known shapes, constants in every form.

`choose(options)` decides; hypothesis or a seeded generator can stand behind it.
"""

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from . import weights

BATCH = 5
"""A dynamic batch: a prime, so that sizes with a batch inside can be told apart."""


class Network:
    """A graph that grows value by value. `shapes` are those of the float values.

    The weights of a `planted` network make some channels exactly zero.
    """

    def __init__(self, choose, *, opset=21, seed=0, dynamic=False, old_ir=False, planted=False):
        self.choose = choose
        self.opset = opset
        self.dynamic = dynamic
        self.old_ir = old_ir
        self.random = np.random.default_rng(seed)
        self.nodes, self.initializers, self.inputs = [], [], []
        self.feeds, self.shapes, self.constants = {}, {}, {}
        self.read, self.count = set(), 0
        self.domains = {}
        self.planted = {} if planted else None

    # Values ------------------------------------------------------------------------

    def name(self, prefix="t"):
        self.count += 1
        return f"{prefix}{self.count}"

    def maybe(self, one_in=2):
        return self.choose(range(one_in)) == 0

    def input(self, shape, array=None):
        name = self.name("x")
        if array is None:
            array = self.random.standard_normal(shape).astype(np.float32)
        self.feeds[name] = array
        declared = [("N" if self.dynamic and s == BATCH else s) for s in shape]
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, dtype, declared))
        if array.dtype == np.float32:
            self.shapes[name] = tuple(shape)
        return name

    def node(self, op_type, inputs, shape=None, *, outputs=None, domain="", **attributes):
        """Add a node; `shape` of its output, or `outputs`: shapes of several (None: unused)."""
        shapes = [shape] if outputs is None else outputs
        names = ["" if s is None and outputs is not None else self.name() for s in shapes]
        attributes = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(
            helper.make_node(
                op_type, inputs, names, name=f"{op_type}_{self.count}", domain=domain, **attributes
            )
        )
        self.read.update(inputs)
        for name, s in zip(names, shapes, strict=True):
            if s is not None:
                self.shapes[name] = tuple(int(d) for d in s)
        return names[0] if outputs is None else names

    def hidden(self, op_type, inputs, **attributes):
        """A node whose output is no float value: shape arithmetic, masks."""
        return self.node(op_type, inputs, None, **attributes)

    def careful(self, size):
        """Whether a size may have a batch inside that is known only at run time."""
        return self.dynamic and size % BATCH == 0

    def checkpoint(self):
        """What `restore` goes back to, so that a step that doesn't fit leaves nothing."""
        return (
            len(self.nodes), len(self.initializers), dict(self.shapes), set(self.read),
            {k: list(v) for k, v in self.constants.items()},
        )  # fmt: skip

    def restore(self, point):
        nodes, initializers, self.shapes, self.read, self.constants = point
        del self.nodes[nodes:], self.initializers[initializers:]

    # Constants ---------------------------------------------------------------------

    def initializer(self, array):
        name = self.name("c")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *values):
        """A vector of integers, as initializer or Constant."""
        return self.small(np.array(values, np.int64))

    def small(self, array):
        array = np.asarray(array)
        if self.maybe(3) or (self.opset < 9 and array.dtype != np.float32):
            return self.initializer(array)
        name = self.name("k")
        tensor = numpy_helper.from_array(array)
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def weights(self, *shape):
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        array = (self.random.standard_normal(shape) * scale).astype(np.float32)
        return self.constant(array if self.planted is None else weights.plant(self, array))

    def between(self, low, high, *shape):
        return self.constant(self.random.uniform(low, high, shape).astype(np.float32))

    def constant(self, array):
        """A float constant in one of the ways in which files hold them, maybe a shared one."""
        shape = array.shape
        positive = bool((array > 0).all())
        known = self.constants.setdefault((shape, positive), [])
        if known and self.maybe(4):
            return self.choose(known)
        ways = ["plain"] * 5 + ["node", "identity"] + ["transpose"] * (array.ndim > 0)
        if 13 <= self.opset < 28 and array.ndim > 0 and not positive:  # ONNX Runtime's range
            ways += ["dequantize", "dequantize", "quantize"]
        if self.opset >= 9 and positive:
            ways.append("of_shape")
        computed = weights.ways(self, array)
        if computed and self.maybe(3):
            name = self.choose(computed)(self, array)
        else:
            name = getattr(self, f"_{self.choose(ways)}")(array)
        known.append(name)
        return name

    def _plain(self, array):
        return self.initializer(array)

    def _node(self, array):
        name = self.name("k")
        tensor = numpy_helper.from_array(array)
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def _identity(self, array):
        return self.hidden("Identity", [self.initializer(array)])

    def _transpose(self, array):
        order = list(range(array.ndim))
        self.random.shuffle(order)
        stored = np.ascontiguousarray(array.transpose(order))
        back = [order.index(i) for i in range(array.ndim)]
        return self.hidden("Transpose", [self.initializer(stored)], perm=back)

    def _of_shape(self, array):
        value = numpy_helper.from_array(np.array([array.ravel()[0]], np.float32))
        return self.hidden("ConstantOfShape", [self.ints(*array.shape)], value=value)

    def _scale(self, array, axis):
        if axis is None:
            return np.float32(np.abs(array).max() / 100 + 1e-3)
        others = tuple(i for i in range(array.ndim) if i != axis)
        return (np.abs(array).max(axis=others) / 100 + 1e-3).astype(np.float32)

    def _quantization(self, array):
        axis = self.choose([None, *range(array.ndim)])
        scale = self._scale(array, axis)
        zero = np.zeros_like(scale, np.int8) + np.int8(0)
        return axis, scale, zero

    def _dequantize(self, array):
        axis, scale, zero = self._quantization(array)
        aligned = scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        quantized = np.clip(np.round(array / aligned), -127, 127).astype(np.int8)
        if axis is not None:
            zero = self.random.integers(-3, 4, zero.shape).astype(np.int8)
        inputs = [self.initializer(a) for a in (quantized, scale, zero)]
        if self.maybe(3):
            inputs = inputs[:2]
        return self.hidden("DequantizeLinear", inputs, axis=axis)

    def _quantize(self, array):
        axis, scale, zero = self._quantization(array)
        parameters = [self.initializer(scale), self.initializer(zero)]
        x = self.hidden("QuantizeLinear", [self.initializer(array), *parameters], axis=axis)
        return self.hidden("DequantizeLinear", [x, *parameters], axis=axis)

    # Operators whose form depends on the opset ----------------------------------------

    def reduce(self, op_type, x, axes, keep):
        shape = self.shapes[x]
        result = [1 if i in axes else s for i, s in enumerate(shape) if keep or i not in axes]
        by_input = self.opset >= (13 if op_type == "ReduceSum" else 18)
        if by_input:
            return self.node(op_type, [x, self.ints(*axes)], result, keepdims=int(keep))
        return self.node(op_type, [x], result, keepdims=int(keep), axes=list(axes))

    def squeeze(self, x, axes):
        result = [s for i, s in enumerate(self.shapes[x]) if i not in axes]
        return self._axes_form("Squeeze", x, axes, result)

    def unsqueeze(self, x, axes):
        rest = iter(self.shapes[x])
        rank = len(self.shapes[x]) + len(axes)
        return self._axes_form(
            "Unsqueeze", x, axes, [1 if i in axes else next(rest) for i in range(rank)]
        )

    def _axes_form(self, op_type, x, axes, shape):
        if self.opset >= 13:
            return self.node(op_type, [x, self.ints(*axes)], shape)
        return self.node(op_type, [x], shape, axes=list(axes))

    def slice(self, x, axis, start, stop, step=1):
        """By any way of writing the bounds."""
        size = self.shapes[x][axis]
        count = len(range(*slice(start, stop, step).indices(size)))
        result = [count if i == axis else s for i, s in enumerate(self.shapes[x])]
        if self.opset < 10:
            assert step == 1
            return self.node("Slice", [x], result, axes=[axis], starts=[start], ends=[stop])
        bounds = [self.ints(start), self.ints(stop), self.ints(axis), self.ints(step)]
        if step == 1 and self.maybe():
            del bounds[3]
        return self.node("Slice", [x, *bounds], result)

    def split(self, x, axis, sizes):
        shapes = [[s if i == axis else d for i, d in enumerate(self.shapes[x])] for s in sizes]
        equal = len(set(sizes)) == 1 and self.maybe()
        if equal:
            count = len(sizes) if self.opset >= 18 else None
            return self.node("Split", [x], outputs=shapes, axis=axis, num_outputs=count)
        if self.opset >= 13:
            return self.node("Split", [x, self.ints(*sizes)], outputs=shapes, axis=axis)
        return self.node("Split", [x], outputs=shapes, axis=axis, split=list(sizes))

    def pad(self, x, pads, mode="constant", value=0.0):
        rank = len(self.shapes[x])
        result = [s + pads[i] + pads[i + rank] for i, s in enumerate(self.shapes[x])]
        if self.opset < 11:
            return self.node("Pad", [x], result, pads=pads, mode=mode, value=value)
        inputs = [x, self.ints(*pads), self.small(np.float32(value))]
        if self.opset >= 18 and mode == "constant" and self.maybe(3):
            listed = [i for i in range(rank) if pads[i] or pads[i + rank]]
            if listed:
                part = [pads[i] for i in listed] + [pads[i + rank] for i in listed]
                inputs = [x, self.ints(*part), inputs[2], self.ints(*listed)]
        return self.node("Pad", inputs, result, mode=mode)

    def resize(self, x, factor, mode):
        """Twice as large along the axes from 2 on."""
        shape = self.shapes[x]
        result = [s * factor if i >= 2 else s for i, s in enumerate(shape)]
        scales = np.array([1.0, 1.0] + [float(factor)] * (len(shape) - 2), np.float32)
        if self.opset < 9:
            return self.node("Upsample", [x], result, mode=mode, scales=scales.tolist())
        if self.opset < 10:
            return self.node("Upsample", [x, self.initializer(scales)], result, mode=mode)
        if self.opset < 11:
            return self.node("Resize", [x, self.initializer(scales)], result, mode=mode)
        roi = "" if self.opset >= 13 else self.initializer(np.zeros(0, np.float32))
        if self.dynamic or self.maybe():
            return self.node("Resize", [x, roi, self.initializer(scales)], result, mode=mode)
        empty = "" if self.opset >= 13 else self.initializer(np.zeros(0, np.float32))
        return self.node("Resize", [x, roi, empty, self.ints(*result)], result, mode=mode)

    def clip(self, x, low, high):
        if self.opset < 11:
            return self.node("Clip", [x], self.shapes[x], min=low, max=high)
        bounds = [self.small(np.float32(low)), self.small(np.float32(high))]
        return self.node("Clip", [x, *bounds], self.shapes[x])

    def dropout(self, x):
        if self.opset < 12:
            return self.node("Dropout", [x], self.shapes[x], ratio=0.5)
        return self.node("Dropout", [x, self.small(np.float32(0.5))], self.shapes[x])

    # Reshapes ------------------------------------------------------------------------

    def reshape(self, x, plan):
        """Reshape by plan, an entry per new axis: a list of axes to merge, or a number.

        The target is a constant with sizes, 0 and -1, or a chain from Shape.
        """
        shape = self.shapes[x]
        result = [e if isinstance(e, int) else math.prod(shape[i] for i in e) for e in plan]
        if self.maybe(3):
            return self._reshape_by_chain(x, plan, result)
        target, free = list(result), True
        for position, entry in enumerate(plan):
            same = entry == [position]
            careful = not isinstance(entry, int) and self.careful(result[position])
            if same and (careful or self.maybe(3)):
                target[position] = 0
            elif careful or (free and self.maybe(4)):
                if not free:
                    return self._reshape_by_chain(x, plan, result)
                target[position], free = -1, False
        return self.node("Reshape", [x, self.ints(*target)], result)

    def _reshape_by_chain(self, x, plan, result):
        sizes = self.hidden("Shape", [x])
        parts, free = [], True
        for position, entry in enumerate(plan):
            if isinstance(entry, int):
                part = self.ints(entry)
            elif free and self.maybe(4):
                part, free = self.ints(-1), False
            elif not self.careful(result[position]) and self.maybe():
                part = self.ints(result[position])
            else:
                part = self._product_of_sizes(sizes, entry)
            parts.append(part)
        target = self.hidden("Concat", parts, axis=0)
        return self.node("Reshape", [x, target], result)

    def _product_of_sizes(self, sizes, axes):
        product = None
        for axis in axes:
            scalar = self.maybe()
            index = self.small(np.array(axis if scalar else [axis], np.int64))
            size = self.hidden("Gather", [sizes, index], axis=0)
            if scalar:
                if self.opset >= 13:
                    size = self.hidden("Unsqueeze", [size, self.ints(0)])
                else:
                    size = self.hidden("Unsqueeze", [size], axes=[0])
            product = size if product is None else self.hidden("Mul", [product, size])
        return self.ints(1) if product is None else product

    # The model -----------------------------------------------------------------------

    def model(self, outputs):
        ends = [
            helper.make_tensor_value_info(
                name,
                TensorProto.FLOAT,
                [None if self.dynamic else s for s in self.shapes[name]],
            )
            for name in outputs
        ]
        inputs = list(self.inputs)
        if self.old_ir:
            inputs += [
                helper.make_tensor_value_info(t.name, t.data_type, t.dims)
                for t in self.initializers
            ]
        graph = helper.make_graph(self.nodes, "random", inputs, ends, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(d, v) for d, v in self.domains.items()]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=3 if self.old_ir else ir_version(self.opset)
        )


def ir_version(opset):
    """The oldest that newer opsets allow, so that ONNX Runtime reads all of them."""
    return max(4, onnx.helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
