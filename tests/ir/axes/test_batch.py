"""Samples are taken for independent exactly where the rules of axes prove it.

What is proven is run: a whole batch against its samples one at a time. What is refused
names the node that mixes samples, and is run, too: it has to depend on the other samples,
unless the test says that independence can't be shown (`unknown`).
"""

import collections
import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from secateur.ir.dependencies.batch import Batch, find_batch
from secateur.ir.errors import SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import to_proto
from secateur.ir.text import parse_model
from secateur.models.zoo import list_models, load_tiny
from secateur.passes.simplify import simplify_pipeline
from tests.backend_cases import generated_cases
from tests.feeds import random_feeds

from .graphs import network
from .independence import analyzed, assert_independent, open_first_axes

LARGEST = 5


def model_of(signature, body, opset=17):
    """A model of the text form: `(inputs) -> (outputs)` and nodes."""
    text = f'model <ir_version = 9, opset = ["" = {opset}]>\ngraph g {signature} {{\n{body}\n}}\n'
    return analyzed(to_proto(parse_model(text)))


def feeds_of(model):
    """Random inputs, `LARGEST` samples where the first size is open."""
    return random_feeds(model, 0, default=LARGEST)


X = "(%x: float[N, 4]) -> "
IMAGE = "(%x: float[N, 2, 4, 4]) -> "
STEPS = "(%x: float[N, 3, 4]) -> "
TARGET = """
  const %0: int64[1] = [0]
  const %1: int64[1] = [1]
  %shape = Shape(%x)
  %n = Slice(%shape, %0, %1)
"""
"""The number of samples as a vector of one element."""

PROVEN = {
    "elementwise": (X + "(%y: float[N, 4])", "%a = Relu(%x)\n%y = Add(%a, %x)"),
    "inputs that share it": (
        "(%x: float[N, 4], %z: float[N, 1]) -> (%y: float[N, 4])", "%y = Mul(%x, %z)",
    ),
    "inputs of other names": (
        "(%x: float[N, 4], %z: float[M, 4]) -> (%y: float[?, 4])", "%y = Sub(%x, %z)",
    ),
    "an unnamed size": ("(%x: float[?, 4]) -> (%y: float[?, 4])", "%y = Exp(%x)"),
    "an input without samples": (
        "(%x: float[N, 4], %w: float[4, 3]) -> (%y: float[N, 3])", "%y = MatMul(%x, %w)",
    ),
    "an output that doesn't depend on samples": (
        "(%x: float[N, 4], %w: float[4, 3]) -> (%y: float[N, 3], %z: float[4, 3])",
        "%z = Relu(%w)\n%y = MatMul(%x, %z)",
    ),
    "statistics within samples": (
        X + "(%y: float[N, 4])", "%m = ReduceMean(%x) {axes = [1]}\n%y = Sub(%x, %m)",
    ),
    "softmax within samples": (X + "(%y: float[N, 4])", "%y = Softmax(%x) {axis = -1}"),
    "flattened": (IMAGE + "(%y: float[N, 32])", "%y = Flatten(%x)"),
    "reshaped by a chain": (
        STEPS + "(%y: float[N, 12])",
        TARGET + "  const %rest: int64[1] = [-1]\n"
        "%to = Concat(%n, %rest) {axis = 0}\n%y = Reshape(%x, %to)",
    ),
    "merged and taken apart": (
        STEPS + "(%y: float[N, 3, 4])",
        "const %rows: int64[2] = [-1, 4]\nconst %back: int64[3] = [-1, 3, 4]\n"
        "%r = Reshape(%x, %rows)\n%s = Softmax(%r) {axis = 1}\n%y = Reshape(%s, %back)",
    ),
    "merged, samples outermost": (
        STEPS + "(%y: float[?, 4])", "const %rows: int64[2] = [-1, 4]\n%y = Reshape(%x, %rows)",
    ),
    "times heads": (
        STEPS + "(%y: float[N, 3, 4])",
        TARGET + "  const %two: int64[1] = [2]\n  const %2: int64[1] = [3]\n"
        "%heads = Mul(%n, %two)\n%rest = Slice(%shape, %1, %2)\n"
        "const %minus: int64[1] = [-1]\n%to = Concat(%heads, %minus) {axis = 0}\n"
        "%r = Reshape(%x, %to)\n%e = Exp(%r)\n%back = Concat(%n, %rest) {axis = 0}\n"
        "%y = Reshape(%e, %back)",
    ),
    "moved and moved back": (
        STEPS + "(%y: float[N, 3, 4])",
        "%t = Transpose(%x) {perm = [1, 0, 2]}\n%c = Concat(%t, %t) {axis = 0}\n"
        "%m = ReduceMax(%c) {axes = [0], keepdims = 0}\n"
        "const %a: int64[1] = [1]\n%u = Unsqueeze(%m, %a)\n%y = Add(%u, %x)",
    ),
    "a constant expanded to the batch": (
        STEPS + "(%y: float[N, 4, 4])",
        TARGET + "  const %token: float[1, 1, 4] = [1, 2, 3, 4]\n"
        "const %ones: int64[2] = [1, 4]\n%to = Concat(%n, %ones) {axis = 0}\n"
        "%e = Expand(%token, %to)\n%y = Concat(%e, %x) {axis = 1}",
    ),
    "a constant repeated for the batch": (
        STEPS + "(%y: float[N, 4, 4])",
        TARGET + "  const %token: float[1, 1, 4] = [1, 2, 3, 4]\n"
        "const %ones: int64[2] = [1, 1]\n%to = Concat(%n, %ones) {axis = 0}\n"
        "%e = Tile(%token, %to)\n%y = Concat(%e, %x) {axis = 1}",
    ),
    "states of zeros": (
        X + "(%y: float[N, 4])",
        TARGET + "  const %four: int64[1] = [4]\n%to = Concat(%n, %four) {axis = 0}\n"
        "%z = ConstantOfShape(%to)\n%y = Add(%x, %z)",
    ),
    "sliced as a whole": (
        STEPS + "(%y: float[N, 2, 4])",
        TARGET + "  const %rest: int64[1] = [2]\n  const %z: int64[2] = [0, 0]\n"
        "const %far: int64[1] = [1000000000]\n%to = Concat(%n, %rest) {axis = 0}\n"
        "%s = Slice(%x, %z, %to)\n%y = Slice(%s, %0, %far, %0)",
    ),
    "sizes kept by a mark": (
        STEPS + "(%y: float[N, 3, 4])",
        TARGET + "  const %marks: int64[2] = [-1, 4]\n  const %minus: int64[3] = [-1, -1, -1]\n"
        "const %ones: int64[3] = [1, 1, 1]\nconst %c: float[1, 1, 4] = [1, 2, 3, 4]\n"
        "%wanted = Concat(%n, %marks) {axis = 0}\n%kept = Equal(%wanted, %minus)\n"
        "%to = Where(%kept, %ones, %wanted)\n%e = Expand(%c, %to)\n%y = Add(%e, %x)",
    ),
    "convolved": (
        IMAGE + "(%y: float[N, 1, 2, 2])",
        "const %w: float[1, 2, 3, 3] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
        "%y = Conv(%x, %w)",
    ),
    "normalized by instance": (
        IMAGE + "(%y: float[N, 2, 4, 4])",
        "const %v: float[2] = [1, 2]\n%y = InstanceNormalization(%x, %v, %v)",
    ),
    "looked up": (
        "(%x: int64[N, 3]) -> (%y: float[N, 3, 2])",
        "const %table: float[2, 2] = [1, 2, 3, 4]\n%y = Gather(%table, %x)",
    ),
    "an index of each sample": (
        "(%x: float[N, 4], %i: int64[N, 2]) -> (%y: float[N, 2])",
        "%y = GatherElements(%x, %i) {axis = 1}",
    ),
    "batches of GatherND": (
        "(%x: float[N, 4], %i: int64[N, 1]) -> (%y: float[N])",
        "%y = GatherND(%x, %i) {batch_dims = 1}",
    ),
    "products of samples": (STEPS + "(%y: float[N, 3, 3])", (
        "%t = Transpose(%x) {perm = [0, 2, 1]}\n%y = MatMul(%x, %t)"
    )),
    "Einsum over samples": (
        STEPS + "(%y: float[N, 3, 3])", '%y = Einsum(%x, %x) {equation = "nik,njk->nij"}',
    ),
    "ranked within samples": (
        X + "(%v: float[N, 2], %i: int64[N, 2])",
        "const %k: int64[1] = [2]\n%v, %i = TopK(%x, %k)",
    ),
    "attention": (
        "(%x: float[N, 2, 3, 4]) -> (%y: float[N, 2, 3, 4])", "%y = Attention(%x, %x, %x)",
    ),
    "a loop": (
        X + "(%y: float[N, 4])",
        "const %trips: int64[] = 3\nconst %go: bool[] = true\n"
        "%y = Loop(%trips, %go, %x) {body = graph b (%i: int64[], %c: bool[], %s: float[N, 4]) -> "
        "(%d: bool[], %t: float[N, 4]) {\n%d = Identity(%c)\n%t = Add(%s, %x)\n}}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVEN)
def test_independent_samples_are_proven_to_be(name):
    model, batch = model_of(*PROVEN[name], opset=23 if name == "attention" else 17)
    assert batch.is_proven, str(batch.obstacle)
    assert assert_independent(model, batch, feeds_of(model))


REFUSED = {
    "centered": (
        X + "(%y: float[N, 4])", "%m = ReduceMean(%x) {axes = [0]}\n%y = Sub(%x, %m)",
        "ReduceMean over this axis",
    ),
    "normed": (
        X + "(%y: float[N, 4])", "%m = ReduceL2(%x) {axes = [0]}\n%y = Div(%x, %m)",
        "takes samples together",
    ),
    "softmax": (X + "(%y: float[N, 4])", "%y = Softmax(%x) {axis = 0}", "Softmax over this axis"),
    "softmax of products": (
        STEPS + "(%y: float[?, 4])",
        "const %rows: int64[2] = [-1, 4]\n%r = Reshape(%x, %rows)\n%y = Softmax(%r) {axis = 0}",
        "Softmax over this axis",
    ),
    "accumulated": (
        X + "(%y: float[N, 4])", "const %a: int64[] = 0\n%y = CumSum(%x, %a)", "accumulate",
    ),
    "ranked": (
        X + "(%v: float[2, 4], %i: int64[2, 4])",
        "const %k: int64[1] = [2]\n%v, %i = TopK(%x, %k) {axis = 0}", "ranked along this axis",
    ),
    "the largest": (X + "(%y: int64[4])", "%y = ArgMax(%x) {axis = 0, keepdims = 0}", "an index"),
    "layer normalization": (
        X + "(%y: float[N, 4])",
        "const %w: float[1] = [1]\n%y = LayerNormalization(%x, %w) {axis = 0}",
        "normalization over",
    ),
    "mean and variance": (
        IMAGE + "(%y: float[N, 2, 4, 4])", "%y = MeanVarianceNormalization(%x)", "normalization",
    ),
    "instances on the batch's place": (
        "(%x: float[N, 2, 3]) -> (%y: float[2, 3, N])",
        "const %v: float[3] = [1, 2, 3]\n%t = Transpose(%x) {perm = [1, 2, 0]}\n"
        "%y = InstanceNormalization(%t, %v, %v)", "normalization over this axis",
    ),
    "every pair": (
        X + "(%y: float[N, N])", "%t = Transpose(%x)\n%y = MatMul(%x, %t)",
        "relates every sample to every other",
    ),
    "covariance": (
        X + "(%y: float[4, 4])", "%t = Transpose(%x)\n%y = MatMul(%t, %x)",
        "takes samples together",
    ),
    "Einsum of pairs": (
        X + "(%y: float[N])", '%y = Einsum(%x, %x) {equation = "ik,jk->i"}',
        "takes samples together",
    ),
    "Einsum over all": (
        X + "(%y: float[N, 4])", '%y = Einsum(%x, %x) {equation = "ik,jk->ik"}',
        "takes samples together",
    ),
    "a sum that weights ones": (
        X + "(%y: float[N, 4])",
        TARGET + "%to = Concat(%n, %n) {axis = 0}\n%z = ConstantOfShape(%to)\n"
        "%o = Exp(%z)\n%y = MatMul(%o, %x)", "relates every sample to every other",
    ),
    "time first": (
        "(%x: float[N, 1, 1]) -> (%y: float[N, 1, 1, 1])",
        "const %w: float[1, 1, 1] = [0.5]\n%y = RNN(%x, %w, %w) {hidden_size = 1}",
        "the recurrence runs along this axis",
    ),
    "the first sample": (
        X + "(%y: float[N, 4])", "const %i: int64[] = 0\n%f = Gather(%x, %i)\n%y = Sub(%x, %f)",
        "indices into this axis",
    ),
    "all but the first": (
        X + "(%y: float[?, 4])",
        "const %a: int64[1] = [1]\nconst %b: int64[1] = [9]\nconst %c: int64[1] = [0]\n"
        "%y = Slice(%x, %a, %b, %c)", "sliced at bounds",
    ),
    "backwards": (
        X + "(%y: float[N, 4])",
        "const %a: int64[1] = [-1]\nconst %b: int64[1] = [-9]\nconst %c: int64[1] = [0]\n"
        "%y = Slice(%x, %a, %b, %c, %a)", "sliced at bounds",
    ),
    "halves": (
        X + "(%y: float[?, 4], %z: float[?, 4])", "%y, %z = Split(%x) {axis = 0, num_outputs = 2}",
        "split along an axis",
    ),
    "joined": (X + "(%y: float[?, 4])", "%y = Concat(%x, %x) {axis = 0}", "joined with a part"),
    "padded": (
        X + "(%y: float[?, 4])", "const %p: int64[4] = [1, 0, 0, 0]\n%y = Pad(%x, %p)", "padded",
    ),
    "repeated": (
        X + "(%y: float[?, 4])", "const %p: int64[2] = [2, 1]\n%y = Tile(%x, %p)", "repeated",
    ),
    "moved": (
        X + "(%y: float[4, N])", "%y = Transpose(%x)", "output 'y' has the samples on axis 1",
    ),
    "inner of a product": (
        STEPS + "(%y: float[?, 4])",
        "const %rows: int64[2] = [-1, 4]\n%t = Transpose(%x) {perm = [1, 0, 2]}\n"
        "%y = Reshape(%t, %rows)", "not outermost on axis 0",
    ),
    "another axis of the same size": (
        "(%x: float[N, 4], %z: float[4, N]) -> (%y: float[N, 4])",
        "%t = Transpose(%z)\n%y = Add(%x, %t)", "axis 1 has the batch's size",
    ),
    "vectors across samples": (
        "(%x: float[N, 4], %z: float[N]) -> (%y: float[N, 4])",
        "%y = Add(%x, %z)", "meets an axis",
    ),
    "the number of samples divides": (
        X + "(%y: float[N, 4])",
        TARGET + "%f = Cast(%n) {to = 1}\n%y = Div(%x, %f)", "computes with",
    ),
    "the number of samples as a result": (
        X + "(%y: float[N, 4], %s: int64[2])", "%y = Relu(%x)\n%s = Shape(%x)",
        "output 's' holds the number of samples",
    ),
    "the number of samples counts": (
        X + "(%y: float[N, 4])",
        "const %i: int64[] = 0\nconst %0: int64[] = 0\nconst %1: int64[] = 1\n"
        "const %a: int64[1] = [1]\n%s = Shape(%x)\n%n = Gather(%s, %i)\n%r = Range(%0, %n, %1)\n"
        "%f = Cast(%r) {to = 1}\n%u = Unsqueeze(%f, %a)\n%y = Add(%x, %u)", "computes with sizes",
    ),
    "the number of samples as a bound": (
        X + "(%y: float[N, ?])",
        TARGET + "const %c: int64[1] = [1]\n%y = Slice(%x, %0, %n, %c)", "sliced at bounds|number",
    ),
    "the number of samples as K": (
        X + "(%v: float[N, ?], %i: int64[N, ?])", TARGET + "%v, %i = TopK(%x, %n)", "sizes of axes",
    ),
    "the number of samples as trips": (
        X + "(%y: float[N, 4])",
        "const %i: int64[] = 0\nconst %go: bool[] = true\n%s = Shape(%x)\n%n = Gather(%s, %i)\n"
        "%y = Loop(%n, %go, %x) {body = graph b (%j: int64[], %c: bool[], %v: float[N, 4]) -> "
        "(%d: bool[], %t: float[N, 4]) {\n%d = Identity(%c)\n%t = Add(%v, %v)\n}}",
        "computes with sizes",
    ),
    "a choice by the number of samples": (
        X + "(%y: float[N, 4])",
        TARGET + "const %two: int64[1] = [2]\n%b = Less(%n, %two)\n"
        "%y = If(%b) {then_branch = graph t () -> (%p: float[N, 4]) {\n%p = Relu(%x)\n}, "
        "else_branch = graph e () -> (%q: float[N, 4]) {\n%q = Neg(%x)\n}}", "computes with sizes",
    ),
    "mixed in a branch": (
        "(%x: float[N, 4], %c: bool[]) -> (%y: float[N, 4])",
        "%y = If(%c) {then_branch = graph t () -> (%p: float[N, 4]) "
        "{\n%p = Softmax(%x) {axis = 0}\n}, "
        "else_branch = graph e () -> (%q: float[N, 4]) {\n%q = Softmax(%x) {axis = 0}\n}}",
        "Softmax over this axis",
    ),
    "a branch for each sample": (
        "(%x: float[N, 4]) -> (%y: float[1])",
        "const %z: float[] = 0\n%m = ReduceMax(%x) {axes = [1], keepdims = 0}\n"
        "%c = Greater(%m, %z)\n"
        "%y = If(%c) {then_branch = graph t () -> (%p: float[1]) {\nconst %a: float[1] = [1]\n"
        "%p = Identity(%a)\n}, else_branch = graph e () -> (%q: float[1]) {\n"
        "const %b: float[1] = [2]\n%q = Identity(%b)\n}}", "decides which branch runs",
    ),
    "as many iterations as a sample wants": (
        "(%x: float[N, 4]) -> (%y: float[1])",
        "const %trips: int64[] = 9\nconst %go: bool[] = true\nconst %z: float[] = 0\n"
        "const %s: float[1] = [0]\n%m = ReduceMax(%x) {axes = [1], keepdims = 0}\n"
        "%c = Greater(%m, %z)\n"
        "%y = Loop(%trips, %go, %s) {body = graph b (%i: int64[], %k: bool[], %v: float[1]) -> "
        "(%d: bool[?], %t: float[1]) {\n%d = Identity(%c)\n%t = Exp(%v)\n}}",
        "decides whether the loop goes on",
    ),
    "scanned": (
        X + "(%t: float[4], %y: float[N, 4])",
        "const %s: float[4] = [0, 0, 0, 0]\n"
        "%t, %y = Scan(%s, %x) {num_scan_inputs = 1, body = graph b (%a: float[4], %b: float[4]) "
        "-> (%c: float[4], %d: float[4]) {\n%c = Add(%a, %b)\n%d = Identity(%c)\n}}",
        "one entry per iteration",
    ),
    "training": (
        IMAGE + "(%y: float[N, 2, 4, 4])",
        "const %v: float[2] = [1, 2]\n"
        "%y, %m, %w = BatchNormalization(%x, %v, %v, %v, %v) {training_mode = 1}", "training mode",
    ),
    "a range of all": (
        X + "(%y: uint8[N, 4], %s: float[], %z: uint8[])", "%y, %s, %z = DynamicQuantizeLinear(%x)",
        "takes samples together",
    ),
    "those that aren't zero": (
        X + "(%y: int64[2, ?])", "%y = NonZero(%x)", "no axes rule for this operator",
    ),
    "written by number": (
        "(%x: float[N, 4], %i: int64[1, 1], %u: float[1, 4]) -> (%y: float[N, 4])",
        "%y = ScatterND(%x, %i, %u)", "written at indices that are data",
    ),
    "picked by number": (
        "(%x: float[N, 4], %i: int64[N, 1]) -> (%y: float[N, 4])", "%y = GatherND(%x, %i)",
        "indices into this axis are data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_samples_that_depend_on_others_are_refused(name):
    signature, body, reason = REFUSED[name]
    model, batch = model_of(signature, body, opset=18 if "num_outputs" in body else 17)
    assert batch.inputs
    assert not batch.is_proven
    assert any(part in str(batch.obstacle) for part in reason.split("|")), str(batch.obstacle)
    everything = Batch(batch.inputs, None, tuple(model.graph.outputs))
    try:
        ran = assert_independent(model, everything, feeds_of(model))
    except (AssertionError, ValueError):
        return
    assert not ran


UNKNOWN = {
    "random numbers": (
        X + "(%y: float[N, 4])", "%r = RandomNormal() {shape = [1, 4]}\n%y = Add(%x, %r)",
        "may give every sample another result",
    ),
    "rows against columns": (
        "(%x: float[N, N]) -> (%y: float[N, N])", "%y = Relu(%x)", "axis 1 has the batch's size",
    ),
    "an unknown operator": (X + "(%y: float[N, 4])", "%y = Foo(%x)", "no axes rule"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_of_an_operator_is_not_assumed(name):
    signature, body, reason = UNKNOWN[name]
    _, batch = model_of(signature, body)
    assert reason in str(batch.obstacle)


def test_a_model_of_fixed_sizes_has_no_batch():
    _, batch = model_of("(%x: float[2, 4]) -> (%y: float[2, 4])", "%y = Softmax(%x) {axis = 0}")
    assert batch == Batch(())


def test_shapes_of_one_sample():
    _, batch = model_of(*PROVEN["times heads"])
    shapes = {value.name: shape for value, shape in batch.shapes.items()}
    assert (shapes["x"], shapes["r"], shapes["y"]) == ((1, 3, 4), (2, 6), (1, 3, 4))


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, v in list_models() if v == "dynamo"])
def test_every_open_model_of_the_zoo_is_proven(name, variant):
    model = load_tiny(name, variant)
    infer_shapes(model)
    assert find_batch(model).is_proven
    for step in simplify_pipeline():
        step.run(model)
    infer_shapes(model)
    assert find_batch(model).is_proven


# --- everything there is, against runs ------------------------------------------------


def openings(case):
    """The case with inputs whose first size is open: all, the floats, each of the first."""
    arrays = dict(zip((i.name for i in case.model.graph.input), case.data[0][0], strict=False))
    ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in case.model.graph.input}
    fit = [
        name
        for name, array in arrays.items()
        if isinstance(array, np.ndarray) and array.ndim == ranks[name] > 0 < len(array)
    ]
    floats = [name for name in fit if arrays[name].dtype.kind == "f"]
    chosen = [fit, floats, fit[:2], *([name] for name in fit[:3])]
    for names in dict.fromkeys(tuple(c) for c in chosen if c):
        proto = open_first_axes(case.model, names)
        yield proto, names, arrays
        if len(names) < len(arrays) and all(isinstance(a, np.ndarray) for a in arrays.values()):
            yield with_constants(proto, names, arrays), names, {n: arrays[n] for n in names}


def with_constants(proto, names, arrays):
    """All other inputs as initializers."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    kept = [i for i in proto.graph.input if i.name in names]
    for name, array in arrays.items():
        if name not in names:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def samples_like(array, rng):
    """Samples made of an array's rows, floats with noise."""
    rows = array[rng.integers(0, len(array), LARGEST)]
    if array.dtype in (np.float32, np.float64):
        return (rows + 0.1 * rng.standard_normal(rows.shape)).astype(array.dtype)
    return rows


def check_cases(cases):
    """How often each operator was proven, and ran in batches."""
    rng = np.random.default_rng(0)
    ran = collections.Counter()
    failures = []
    for case in cases:
        for proto, names, arrays in openings(case):
            try:
                model, batch = analyzed(proto)
            except SecateurError:  # the open size contradicts the rest
                continue
            if not batch.is_proven:
                continue
            feeds = {n: samples_like(a, rng) if n in names else a for n, a in arrays.items()}
            try:
                op_type = case.model.graph.node[-1].op_type
                ran[op_type] += assert_independent(model, batch, feeds)
            except SecateurError:  # ONNX Runtime lacks the operator
                continue
            except AssertionError as error:
                failures.append(f"{case.name} {names}: {str(error)[:200]}")
    assert not failures, "\n".join(failures)
    return +ran


CASES = [case for case in generated_cases() if case.data]


def test_what_is_proven_of_operators_holds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ran = check_cases(CASES[::31])
    assert len(ran) > 25


@pytest.mark.slow
def test_what_is_proven_of_most_operators_holds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ran = check_cases(CASES[::8])
    assert len(ran) > 60


def check_networks(seeds):
    """Random networks: what is proven holds; what is refused doesn't, but for a few."""
    counts, failures = collections.Counter(), []
    for seed in seeds:
        proto, feeds = network(seed)
        model, batch = analyzed(proto)
        if not batch.inputs:
            continue
        counts["proven" if batch.is_proven else "refused"] += 1
        claimed = batch
        if not batch.is_proven:
            claimed = Batch(batch.inputs, None, tuple(model.graph.outputs))
        try:
            ran = assert_independent(model, claimed, feeds)
        except (AssertionError, ValueError) as error:
            if batch.is_proven:
                failures.append(f"network({seed}): {str(error)[:200]}")
            continue
        counts["needlessly refused"] += ran and not batch.is_proven
    assert not failures, "\n".join(failures)
    assert counts["proven"] > len(seeds) / 5
    assert counts["needlessly refused"] <= len(seeds) / 100
    return counts


def test_what_is_proven_of_random_networks_holds():
    assert check_networks(range(100))["refused"] > 5


@pytest.mark.slow
def test_what_is_proven_of_many_random_networks_holds():
    check_networks(range(1000, 1300))
