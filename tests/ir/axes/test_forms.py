"""Forms of operators at the edge of what their rules follow: what is followed stays free."""

from __future__ import annotations

import pytest

from secateur.ir.axes import dims
from secateur.ir.cost import count
from secateur.ir.dependencies.analysis import Analysis, analyze
from secateur.ir.graph import Use
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.text import parse_model
from tests.backend_cases import generated_cases

MOST = 4
"""Cases of an operator that are looked at."""


def read(interface: str, nodes: str, opset: int = 17) -> Model:
    head = f'model <ir_version = 9, opset = ["" = {opset}, "com.microsoft" = 1]>\n'
    model = parse_model(f"{head}graph g {interface} {{\n{nodes}\n}}")
    infer_shapes(model)
    return model


def free_axes(analysis: Analysis, name: str) -> list[bool]:
    """Which axes of a value may lose indices."""
    value = next(v for v in analysis.model.graph.values() if v.name == name)
    axes = analysis.axes[value]
    assert axes is not None
    return [bool(axis) and not dims.is_locked(axis) for axis in axes]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_indices_of_any_depth_are_followed(depth: int) -> None:
    """GatherND with as many indices as axes takes single elements."""
    model = read(
        f"(%x: float[4, 5, 6], %i: int64[7, {depth}]) -> (%y: float[*])",
        "%a = Relu(%x)\n%y = GatherND(%a, %i)",
    )
    analysis = analyze(model)
    assert not analysis.unruled
    value = next(v for v in model.graph.values() if v.name == "y")
    assert len(analysis.axes[value] or ()) == 1 + 3 - depth


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_an_ellipsis_may_stand_for_no_axis(batch: tuple[int, ...]) -> None:
    sizes = "".join(f"{n}, " for n in batch)
    model = read(
        f"(%x: float[{sizes}4, 5], %z: float[{sizes}5, 6]) -> (%y: float[{sizes}4, 6])",
        '%a = Relu(%x)\n%y = Einsum(%a, %z) {equation = "...ij,...jk->...ik"}',
    )
    assert not analyze(model).unruled
    assert count(model).macs == 4 * 5 * 6 * (2 if batch else 1) * (3 if len(batch) > 1 else 1)


def test_sizes_of_one_broadcast_where_products_are_counted() -> None:
    model = read(
        "(%x: float[1, 4, 5], %z: float[3, 5, 6]) -> (%y: float[3, 4, 6])",
        '%y = Einsum(%x, %z) {equation = "...ij,...jk->...ik"}',
    )
    assert count(model).macs == 3 * 4 * 5 * 6


@pytest.mark.parametrize("position", [3, 5, 6])
def test_what_there_is_of_each_column_goes_with_it(position: int) -> None:
    """Scales, zero points and biases of a product of integers with a float result."""
    model = read(
        "(%x: uint8[4, 5]) -> (%y: float[4, 6])",
        """const %one: uint8[1] = [1]
        const %scale: float[1] = [0.5]
        const %w: uint8[5, 6] = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6],
          [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]
        const %scales: float[6] = [1, 1, 1, 1, 1, 1]
        const %zeros: uint8[6] = [0, 1, 2, 3, 4, 5]
        const %bias: float[6] = [1, 1, 1, 1, 1, 1]
        %y = "com.microsoft"::MatMulIntegerToFloat(
          %x, %w, %scale, %scales, %one, %zeros, %bias)""",
    )
    analysis = analyze(model)
    node = model.graph.nodes[-1]
    (axis,) = analysis.parameters[Use(node, position)].blocks[0]
    columns = analysis.parameters[Use(node, 1)].blocks[0][1]
    assert dims.resolve(axis) == dims.resolve(columns)


def test_attention_costs_a_product_with_keys_and_one_with_values() -> None:
    model = read(
        "(%q: float[2, 3, 8], %k: float[2, 5, 8], %v: float[2, 5, 4]) -> (%y: float[2, 3, 4])",
        '%y = "com.microsoft"::MultiHeadAttention(%q, %k, %v) {num_heads = 2}',
    )
    assert count(model).macs == 2 * 3 * 5 * (8 + 4)


@pytest.mark.parametrize("results", ["%y", "%y, %key", "%y, %key, %value"])
def test_attention_that_also_gives_a_cache_is_locked(results: str) -> None:
    model = read(
        "(%q: float[2, 3, 8], %k: float[2, 5, 8], %v: float[2, 5, 8]) -> (%y: float[2, 3, 8])",
        f'{results} = "com.microsoft"::MultiHeadAttention(%q, %k, %v) {{num_heads = 2}}',
    )
    assert bool(analyze(model).unruled) == (results != "%y")


def test_values_of_one_unknown_size_broadcast_freely() -> None:
    """An axis that is a sum has a size that isn't compared, but with itself it is equal."""
    model = read(
        "(%x: float[N, 4], %z: float[M, 4]) -> (%y: float[*])",
        """%a = Concat(%x, %z) {axis = 0}
        %b = Relu(%a)
        %c = Sigmoid(%a)
        %y = Mul(%b, %c)""",
    )
    reasons = {
        lock.reason
        for axes in analyze(model).all_axes()
        for lock in [dims.first_lock(axes)]
        if lock is not None
    }
    assert not any("known only at run time" in reason for reason in reasons)


CONSTANTS = """const %ratio: float[] = 0.5
const %yes: bool[] = true
const %no: bool[] = false
const %v: float[3] = [1, 2, 3]"""
NORMALIZED = "BatchNormalization(%a, %v, %v, %v, %v)"


@pytest.mark.parametrize(
    ("node", "opset", "trains"),
    [
        ("%y = Dropout(%a)", 17, False),
        ("%y = Dropout(%a, %ratio, %no)", 17, False),
        ("%y = Dropout(%a, %ratio, %yes)", 17, True),
        ("%y = Dropout(%a, %ratio, %flag)", 17, True),
        (f"%y = {NORMALIZED}", 17, False),
        (f"%y = {NORMALIZED} {{training_mode = 0}}", 17, False),
        (f"%y, %mean, %variance = {NORMALIZED} {{training_mode = 1}}", 17, True),
        (f"%y = {NORMALIZED}", 13, False),
        (f"%y, %mean, %variance, %means, %variances = {NORMALIZED}", 13, True),
    ],
)
def test_what_trains_is_not_followed_and_what_does_not_is(
    node: str, opset: int, trains: bool
) -> None:
    """Whether the mode is an attribute, an operand that is constant, or one that a run fixes."""
    interface = "(%x: float[2, 3, 4], %flag: bool[]) -> (%y: float[*])"
    model = read(interface, f"{CONSTANTS}\n%a = Relu(%x)\n{node}", opset)
    unruled = [reason for _, reason in analyze(model).unruled]
    assert len(unruled) == trains
    assert all("training" in reason for reason in unruled)


@pytest.mark.parametrize(("length", "followed"), [("2", True), ("4", True), ("k", False)])
def test_targets_that_a_run_computes_are_followed_by_their_rank(
    length: str, followed: bool
) -> None:
    """How many elements a target shape has is known, or nothing is."""
    model = read(
        f"(%x: float[2, 3, 4], %s: int64[{length}]) -> (%y: float[*])",
        "%a = Relu(%x)\n%y = Reshape(%a, %s)",
    )
    analysis = analyze(model)
    reasons = [reason for _, reason in analysis.unruled]
    assert len(reasons) == (not followed)
    assert all("known only at run time" in reason for reason in reasons)
    value = next(v for v in model.graph.values() if v.name == "y")
    assert len(analysis.axes[value] or ()) == (int(length) if followed else 0)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_normalizations_by_channel_have_any_rank(rank: int) -> None:
    """Of a vector there is one channel (ONNX, "BatchNormalization")."""
    channels = 3 if rank > 1 else 1
    shape = [2, channels, 4, 5, 6][:rank]
    values = ", ".join(["1.0"] * channels)
    model = read(
        f"(%x: float{shape}) -> (%y: float[*])",
        f"const %v: float[{channels}] = [{values}]\n%a = Relu(%x)\n%y = {NORMALIZED}",
    )
    analysis = analyze(model)
    assert not analysis.unruled
    assert free_axes(analysis, "y") == free_axes(analysis, "a")


def test_every_result_that_is_followed_has_axes_of_its_own() -> None:
    """In ONNX's cases of single operators: as many as inference says, all results of them."""
    seen: dict[str, int] = {}
    for case in generated_cases():
        nodes = case.model.graph.node
        if len(nodes) != 1 or seen.get(nodes[0].op_type, 0) >= MOST:
            continue
        model = from_proto(case.model)
        infer_shapes(model)
        analysis = analyze(model)
        if analysis.unruled:
            continue
        seen[nodes[0].op_type] = seen.get(nodes[0].op_type, 0) + 1
        for value in model.graph.nodes[0].outputs:
            if value is None or value.shape is None:
                continue
            axes = analysis.axes.get(value)
            assert axes is not None, f"{case.name}: {value.name}"
            assert len(axes) == len(value.shape), f"{case.name}: {value.name}"
    assert len(seen) > 120, len(seen)


@pytest.mark.parametrize(
    ("before", "after", "free"),
    [(0, 0, True), (0, 2, True), (2, 0, True), (1, 1, True), (0, -1, False), (-1, 0, False)],
)
def test_padding_with_a_constant_on_either_side_leaves_an_axis_free(
    before: int, after: int, free: bool
) -> None:
    """And cropping doesn't: what is cut off is no index of its own."""
    width = 3 + before + after
    model = read(
        "(%x: float[2, 4]) -> (%y: float[*])",
        f"""const %w: float[4, 3] = {[[1, 2, 3]] * 4}
        const %u: float[{width}, 5] = {[[1, 2, 3, 4, 5]] * width}
        const %p: int64[4] = [0, {before}, 0, {after}]
        %a = MatMul(%x, %w)
        %b = Pad(%a, %p)
        %y = MatMul(%b, %u)""",
    )
    assert free_axes(analyze(model), "a")[1] == free


@pytest.mark.parametrize(("length", "free"), [("1", True), ("k", False)])
def test_a_scale_is_known_behind_as_many_as_a_run_computes(length: str, free: bool) -> None:
    """Of scales in parts: where the first part's length isn't known, no place behind it is."""
    model = read(
        f"(%x: float[2, 4, 5], %s: float[{length}], %t: float[1]) -> (%y: float[*])",
        f"""const %w: float[3, 4, 1] = {[[[1]] * 4] * 3}
        const %u: float[2, 3, 1] = {[[[1]] * 3] * 2}
        const %one: float[1] = [1]
        %a = Conv(%x, %w)
        %r = Concat(%s, %one, %t) {{axis = 0}}
        %b = Resize(%a, _, %r)
        %y = Conv(%b, %u)""",
    )
    assert free_axes(analyze(model), "a")[1] == free


@pytest.mark.parametrize(
    ("stop", "whole"), [(2**63 - 1, True), (2**31 - 1, True), (10**9, True), (5, False)]
)
def test_a_slice_to_beyond_every_end_is_the_whole_axis(stop: int, whole: bool) -> None:
    """However many indices a run has."""
    model = read(
        "(%x: float[N, 4]) -> (%y: float[*])",
        f"""const %start: int64[1] = [0]
        const %stop: int64[1] = [{stop}]
        %a = Relu(%x)
        %y = Slice(%a, %start, %stop, %start)""",
    )
    axes = analyze(model).axes
    before, after = (
        next(axes[v] for v in model.graph.values() if v.name == name) for name in ("a", "y")
    )
    assert before is not None
    assert after is not None
    assert (dims.resolve(before[0]) == dims.resolve(after[0])) == whole


@pytest.mark.parametrize("operands", ["%x, %m", "%m, %x", "%x, %x"])
def test_products_of_numbers_without_an_axis_are_not_followed(operands: str) -> None:
    """ONNX has none, but a file may; it is said as of any other form that isn't followed."""
    model = parse_model(f"""model <ir_version = 9, opset = ["" = 17]>
graph g (%x: float[], %m: float[3, 3]) -> (%y: float[*]) {{
  %y = MatMul({operands})
}}""")
    ((_, reason),) = analyze(model).unruled
    assert "at least one axis" in reason


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_quantized_operands_is_joined(count: int) -> None:
    operands = ", %s, %z, ".join(["%x"] * count)
    model = read(
        "(%x: uint8[2, 3]) -> (%y: uint8[*])",
        f"""const %s: float[] = 0.5
        const %z: uint8[] = 0
        %y = "com.microsoft"::QLinearConcat(%s, %z, {operands}, %s, %z) {{axis = 1}}""",
    )
    analysis = analyze(model)
    assert not analysis.unruled
    value = next(v for v in model.graph.values() if v.name == "y")
    axes = analysis.axes[value]
    assert axes is not None
    assert [dims.axis_size(axis) for axis in axes] == [2, 3 * count]
