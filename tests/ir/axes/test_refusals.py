"""What no axes rule can follow is refused with a reason; what a node leaves out has its default."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from secateur.ir.dependencies.analysis import Analysis, analyze
from secateur.ir.onnx_io import from_proto
from secateur.ir.text import parse_model
from secateur.passes.prune.groups import find_groups
from secateur.passes.prune.inspection import inspect_groups
from tests.backend_cases import Case, stated_and_left_out

from .golden_groups import line
from .test_operators import CASES, OPERATORS, wrap

MINE = '"com.microsoft"::'

REFUSED = [
    ("%x: float[2, 3, 8]", "MultiHeadAttention(%x, %x, %x) {num_heads = 3}", "make 3 heads"),
    ("%x: float[2, 3, 8]", "MultiHeadAttention(%x, %x, %x) {num_heads = 0}", "make 0 heads"),
    ("%x: float[2, 3, 8], %b: float[24], %m: int32[2]",
     "MultiHeadAttention(%x, %x, %x, %b, %m) {num_heads = 2}", "masks, biases"),
    ("%x: float[2, 3, 8], %k: float[2, 2, 3, 4]",
     "MultiHeadAttention(%x, %k, %k) {num_heads = 2}", "inputs have to be of rank 3"),
    ("%x: float[2, 3, 8], %w: float[8, 24], %b: float[24], %p: float[2, 2, 2, 4, 4]",
     "Attention(%x, %w, %b, _, %p) {num_heads = 2}", "a key-value cache"),
    ("%x: float[2, 3, 8], %w: float[8, 24], %b: float[24]",
     "Attention(%x, %w, %b) {num_heads = 2, qkv_hidden_sizes = [8, 8, 8]}", "unequal sizes"),
    ("%x: float[2, 3, 8], %w: float[8, 24], %b: float[24]",
     "Attention(%x, %w, %b) {num_heads = 2, do_rotary = 1}", "rotary embedding inside"),
    ("%x: float[2, 3, 8], %w: float[8, 20], %b: float[20]",
     "Attention(%x, %w, %b) {num_heads = 2}", "20 columns don't make 3 x 2 heads"),
    ("%x: float[2, 3, 4, 6], %g: float[6]", "GroupNorm(%x, %g, %g) {groups = 4}",
     "6 channels don't make 4 groups"),
    ("%x: float[2, 3, 4, 6], %g: float[6]", "GroupNorm(%x, %g, %g)",
     "6 channels don't make 0 groups"),
    ("%x: float[2, 3, 4]", "FusedGemm(%x, %x)", "operands have to be matrices"),
    ("%x: float[2, 3, 4], %s: float[3, 4]", "QuantizeLinear(%x, %s)", "a scale of rank 2"),
]  # fmt: skip
"""Inputs, a node of ONNX Runtime's domain, and the reason."""

REFUSED_BY_ONNX = [
    ("%q: float[2, 3, 5, 4], %k: float[2, 2, 5, 4]", "Attention(%q, %k, %k)",
     "3 query heads over 2 key heads"),
    ("%x: float[2, 3, 8], %c: float[9, 4]", "RotaryEmbedding(%x, %c, %c)", "number of heads"),
    ("%x: float[2, 4, 5], %w: float[6, 3, 3]", "Conv(%x, %w)",
     "sizes 4 and 3 have to be equal"),
    ("%x: float[2, 4, 5], %w: float[6, 2, 3]", "ConvTranspose(%x, %w) {group = 2}",
     "weight has 6 input channels where 4 are needed"),
    ("%x: float[2, 5, 5], %w: float[6, 2, 3]", "Conv(%x, %w) {group = 2}",
     "5 channels don't make 2 groups"),
    ("%x: float[2, 4, 5], %w: float[6, 4]", "Conv(%x, %w)", "input of rank 3, weight of rank 2"),
    ("%x: float[2, 4, 5], %w: float[6, 4, 3], %b: float[6, 1]", "Conv(%x, %w, %b)", "of rank 2"),
    ("%x: float[2, 6, 4], %s: float[3, 2]", "GroupNormalization(%x, %s, %s) {num_groups = 3}",
     "input 1 has rank 2 instead of 1"),
    ("%x: float[2, 3, 4], %s: float[3, 4]", "DequantizeLinear(%x, %s)", "a scale of rank 2"),
    ("%x: float[2, 3], %z: float[3, 4]", 'Einsum(%x, %z) {equation = "ij->i"}', "for 2 inputs"),
    ("%x: float[]", "MatMul(%x, %x)", "at least one axis"),
    ("%x: float[2, 3, 4]", "Gemm(%x, %x)", "operands have to be matrices"),
    ("%x: float[4, 5]", "const %i: int64[1] = [9]\n%y = Gather(%x, %i)", "indices out of range"),
    ("%x: float[4, 5]", "const %i: int64[1] = [-5]\n%y = Gather(%x, %i)", "indices out of range"),
    ("%x: float[4, 5], %i: int64[4]", "GatherElements(%x, %i)", "ranks 2 and 1"),
    ("%x: float[4, 5], %i: int64[?]", "GatherND(%x, %i)", "number of indexed axes"),
    ("%x: float[4, 5], %i: int64[?], %u: float[?, 5]", "ScatterND(%x, %i, %u)",
     "number of indexed axes"),
    ("%x: float[4, 5]", "const %s: int64[2] = [1, 2]\n%y, %z = Split(%x, %s)", "don't make 4"),
    ("%x: float[4, 5]", "const %s: int64[3] = [1, 1, 2]\n%y, %z = Split(%x, %s)", "don't make 4"),
    ("%x: float[4, 5]", "const %s: int64[2] = [5, -1]\n%y, %z = Split(%x, %s)", "don't make 4"),
    ("%x: float[4, 5], %s: int64[2]", "%y, %z = Split(%x, %s)", "only at run time"),
    ("%x: float[4, 5], %n: int64[2]", "Tile(%x, %n)", "only at run time"),
    ("%x: float[4, 5], %a: int64[1]", "Unsqueeze(%x, %a)", "only at run time"),
    ("%x: float[4, 5]", "const %a: int64[1] = [1]\n%y = Squeeze(%x, %a)", "isn't of size 1"),
    ("%x: float[4, ?]", "Squeeze(%x)", "which axes have size 1"),
    ("%x: float[4, 5]", "const %s: int64[3] = [4, 5, 0]\n%y = Reshape(%x, %s)", "0 in the target"),
    ("%x: float[2, 6, 2, 2]", "DepthToSpace(%x) {blocksize = 2}", "6 channels don't make blocks"),
    ("%x: float[2, 4, 2, 2]", "DepthToSpace(%x)", "4 channels don't make blocks"),
    ("%x: float[2, 3, 4, 5], %l: int64[2, 4]", "SoftmaxCrossEntropyLoss(%x, %l)", "ranks 4 and 2"),
    ("%x: float[4, 5], %a: int64[]", "DFT(%x, _, %a)", "the axis is known only at run time"),
]  # fmt: skip


def analysis_of(inputs: str, node: str, opset: int = 23) -> Analysis:
    body = node if "= " in node.partition("{")[0] else f"%y = {node}"
    head = f'model <ir_version = 9, opset = ["" = {opset}, "com.microsoft" = 1]>'
    return analyze(parse_model(f"{head}\ngraph g ({inputs}) -> (%y: float[*]) {{\n{body}\n}}"))


@pytest.mark.parametrize(
    ("inputs", "node", "reason"),
    [*((i, MINE + n, r) for i, n, r in REFUSED), *REFUSED_BY_ONNX],
)
def test_a_form_that_no_rule_follows_is_refused_with_its_reason(
    inputs: str, node: str, reason: str
) -> None:
    (found,) = [text for _, text in analysis_of(inputs, node).unruled]
    assert reason in found


LEGACY = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")


@pytest.mark.parametrize("op_type", LEGACY)
def test_before_version_7_an_axis_says_where_shapes_align(op_type: str) -> None:
    kind = "bool" if op_type in ("And", "Or", "Xor") else "float"
    inputs = f"%x: {kind}[2, 3, 4], %z: {kind}[3, 1]"
    assert not analysis_of(inputs, f"{op_type}(%x, %z)", 6).unruled
    ((_, reason),) = analysis_of(
        inputs, f"{op_type}(%x, %z) {{axis = 1, broadcast = 1}}", 6
    ).unruled
    assert "before opset 7" in reason
    assert not analysis_of(inputs, f"{op_type}(%x, %z)", 7).unruled


@pytest.mark.parametrize("op_type", OPERATORS)
def test_no_rule_needs_the_shape_of_its_result(op_type: str) -> None:
    """Without shape inference as much goes together, or less may go."""
    proto, _ = wrap(CASES[OPERATORS[op_type][0]], np.random.default_rng(0))
    analysis = analyze(from_proto(proto))
    assert not any("report this" in reason for _, reason in analysis.unruled)
    find_groups(analysis)


def with_other_nodes(case: Case, changed: onnx.ModelProto) -> Case:
    """Of the same operands, with results of any size."""
    for info in changed.graph.output:
        info.type.tensor_type.ClearField("shape")
    return Case(case.name, changed, case.data)


def defaults(op_type: str) -> Iterator[tuple[str, list[str]]]:
    """By attribute, what goes together where its default is stated, and where it is left out."""
    case = CASES[OPERATORS[op_type][0]]
    if len(case.model.graph.node) > 1 or case.model.graph.node[0].domain not in ("", "ai.onnx"):
        return
    for name, pair in stated_and_left_out(case.model):
        found = []
        for model in pair:
            proto, _ = wrap(with_other_nodes(case, model), np.random.default_rng(0))
            loaded = from_proto(proto)
            found.append("\n".join(sorted(map(line, inspect_groups(loaded)))))
        yield name, found


@pytest.mark.parametrize("op_type", OPERATORS)
def test_what_is_left_out_is_the_default(op_type: str) -> None:
    for name, (stated, left_out) in defaults(op_type):
        assert stated == left_out, name
