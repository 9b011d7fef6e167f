"""Parts of pruning by themselves: weights of groups, exchanges, scores, readers, reports."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from secateur.ir.axes.dims import Dim
from secateur.ir.dependencies.analysis import Analysis, analyze
from secateur.ir.infer import infer_shapes
from secateur.ir.model import Model
from secateur.ir.text import parse_model
from secateur.passes.prune import find_groups, inspect_groups, readers, recovery
from secateur.passes.prune.allocation import Allocation, Goal, allocate
from secateur.passes.prune.budget import CostModel, shared_constants
from secateur.passes.prune.groups import Group
from secateur.passes.prune.importance import group_scores
from secateur.passes.prune.readers import find_readers
from secateur.passes.prune.scores import _softmax_follows

Array = Any


def read(interface: str, nodes: str, **weights: Array) -> Model:
    """A model of some nodes, with weights as constants."""
    constants = "\n".join(
        f"const %{name}: {'float' if array.dtype.kind == 'f' else 'int64'}{list(array.shape)} = "
        f"{array.tolist()}"
        for name, array in weights.items()
    )
    head = 'model <ir_version = 8, opset = ["" = 17, "com.microsoft" = 1]>\n'
    model = parse_model(f"{head}graph g {interface} {{\n{constants}\n{nodes}\n}}")
    infer_shapes(model)
    return model


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape)


def free(analysis: Analysis) -> list[Group]:
    return [group for group in find_groups(analysis) if group.lock is None]


# --- what is counted ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float", "double"])
def test_constants_have_their_bytes(dtype: str) -> None:
    """Of no, one and several elements."""
    model = read(
        f"(%x: {dtype}[2, 3], %e: {dtype}[0, 3]) -> (%y: {dtype}[2, 3], %z: {dtype}[0, 3])",
        f"""const %none: {dtype}[0, 3] = []
        const %one: {dtype}[1] = [1]
        const %number: {dtype}[] = 2
        const %three: {dtype}[3] = [1, 2, 3]
        %a = Add(%x, %one)
        %b = Mul(%a, %number)
        %y = Add(%b, %three)
        %z = Add(%e, %none)""",
    )
    found = shared_constants(analyze(model))
    assert sorted(constant.elements for constant in found) == [0, 1, 1, 3]
    for constant in found:
        tensor = constant.value.const
        assert tensor is not None
        assert constant.elements * constant.item_bytes == tensor.nbytes


# --- groups and what is shown of them ----------------------------------------------------


def fused_attention() -> Model:
    return read(
        "(%x: float[1, 3, 6]) -> (%y: float[1, 3, 5])",
        """%a = "com.microsoft"::Attention(%x, %w, %bias) {num_heads = 2}
        %y = MatMul(%a, %v)""",
        w=normal(6, 24),
        bias=normal(24),
        v=normal(8, 5),
    )


def test_an_index_may_stand_for_several_elements_everywhere() -> None:
    """A head of fused attention is as many elements as it has, wherever it is."""
    model = fused_attention()
    weights = {group.dims[0].size: group.weight for group in free(analyze(model))}
    assert weights == {2: 4, 4: 2}


PERCEPTRON = """%a = MatMul(%x, %w0)
    %b = Relu(%a)
    %c = MatMul(%b, %w1)
    %d = Relu(%c)
    %y = MatMul(%d, %w2)"""


def perceptron(*widths: int) -> Model:
    pairs = itertools.pairwise(widths)
    return read(
        f"(%x: float[N, {widths[0]}]) -> (%y: float[N, {widths[-1]}])",
        PERCEPTRON,
        **{f"w{i}": normal(*pair) for i, pair in enumerate(pairs)},
    )


def test_what_a_step_of_a_locked_group_would_save_is_shown() -> None:
    model = perceptron(4, 6, 5, 3)
    groups = {group.size: group for group in inspect_groups(model)}
    ignored = {group.size: group for group in inspect_groups(model, ignore=["w0"])}
    assert groups[6].lock is None
    assert ignored[6].lock is not None
    for kept in (groups[6], ignored[6]):
        assert (kept.parameters_per_step, kept.macs_per_step) == (4 + 5, 4 + 5)


# --- widths ------------------------------------------------------------------------------


def allocated(*widths: int, keep: float, align: int = 1) -> tuple[Allocation, CostModel, float]:
    """An allocation of a perceptron, what it costs, and what it may."""
    analysis = analyze(perceptron(*widths))
    groups = find_groups(analysis)
    scores = group_scores(groups)
    found = allocate(analysis, groups, scores, Goal("macs", keep))
    model = CostModel(analysis, "macs")
    return found, model, keep * model.full


@pytest.mark.parametrize("count", [1, 2, 5, 100])
@pytest.mark.parametrize("take", [0, 1])
@pytest.mark.parametrize("keep", [0.8, 0.6, 0.3])
def test_an_exchange_takes_what_it_says_and_gives_all_that_this_saves(
    keep: float, take: int, count: int
) -> None:
    found, model, target = allocated(7, 24, 18, 5, keep=keep)
    give, sizes = 1 - take, (24, 18)
    exchanged = found.exchange(take, count, give)
    taken = min(found.removed[take] + count, sizes[take] - 1)
    if exchanged is None:
        given = [
            n for n in range(found.removed[give]) if cost(model, found, take, taken, n) <= target
        ]
        assert not given
        return
    assert exchanged.removed[take] == taken
    assert exchanged.removed[give] < found.removed[give]
    kept = {dim: len(indices) for dim, indices in exchanged.selection.kept.items()}
    assert model.cost(kept) <= target
    less = exchanged.removed[give] - 1
    assert less < 0 or cost(model, found, take, taken, less) > target


def cost(model: CostModel, found: Allocation, take: int, taken: int, given: int) -> int:
    """What it costs to remove so much of one group and of the other."""
    sizes = (24, 18)
    dims = sorted(found.selection.kept, key=lambda dim: -(dim.size or 0))
    left = {dims[take]: sizes[take] - taken, dims[1 - take]: sizes[1 - take] - given}
    return model.cost(left)


def test_nothing_is_exchanged_with_itself() -> None:
    found, _, _ = allocated(7, 24, 18, 5, keep=0.6)
    assert found.exchange(0, 1, 0) is None


# --- importance --------------------------------------------------------------------------


def test_groups_of_a_convolution_are_scored_by_their_own_weights() -> None:
    """What it reads and what it makes, where each of its groups may keep other channels."""
    first, second = normal(8, 3, 1, 1), np.zeros((8, 4, 1, 1))
    second[:4] = np.arange(1, 17).reshape(4, 4, 1, 1)
    second[4:] = 100 * np.arange(1, 17).reshape(4, 4, 1, 1)[::-1, ::-1]
    model = read(
        "(%x: float[1, 3, 2, 2]) -> (%y: float[1, 2, 2, 2])",
        """%a = Conv(%x, %w)
        %b = Conv(%a, %grouped) {group = 2}
        %y = Conv(%b, %last)""",
        w=np.ones_like(first),
        grouped=second,
        last=np.ones((2, 8, 1, 1)),
    )
    analysis = analyze(model)
    groups = free(analysis)
    scores = group_scores(groups, "l1")
    blocks = next(p.blocks for p in analysis.parameters.values() if p.value.name == "grouped")
    assert len(blocks) == 2
    for number, (out, inner, *_) in enumerate(blocks):
        weights = second[4 * number : 4 * number + 4, :, 0, 0]
        for axis, along in ((out, 1), (inner, 0)):
            ((dim,),) = axis
            share = weights.sum(axis=along) / weights.sum()
            # Beside it a layer of ones, in which this block has half of the channels.
            np.testing.assert_allclose(scores[dim], share + np.full(4, 1 / 8), rtol=1e-6)


def readers_of(model: Model, **inputs: Array) -> list[Any]:
    analysis = analyze(model)
    dims = [dim for group in free(analysis) for dim in group.dims]
    return find_readers(analysis, dims, [{n: a.astype(np.float32) for n, a in inputs.items()}])


def test_each_channel_of_a_depthwise_transposed_convolution_has_a_reader() -> None:
    model = read(
        "(%x: float[N, 3, 4, 4]) -> (%y: float[N, 2, 4, 4])",
        """%a = Conv(%x, %w)
        %b = ConvTranspose(%a, %depthwise) {group = 5, pads = [1, 1, 1, 1]}
        %y = Conv(%b, %last)""",
        w=normal(5, 3, 1, 1),
        depthwise=normal(5, 1, 3, 3),
        last=normal(2, 5, 1, 1),
    )
    found = readers_of(model, x=normal(6, 3, 4, 4))
    indices = [sorted({*map(int, labels)}) for r in found for labels in r.labels.values()]
    assert [0, 1, 2, 3, 4] in indices
    assert all([channel] in indices for channel in range(5))


def test_errors_at_an_output_count_as_the_share_of_its_variance() -> None:
    model = perceptron(4, 6, 5, 3)
    x = normal(400, 4)
    last = readers_of(model, x=x)[-1]
    assert last.weights.shape == (5, 3)
    w0, w1, w2 = (normal(*shape) for shape in ((4, 6), (6, 5), (5, 3)))
    y = np.maximum(np.maximum(x @ w0, 0) @ w1, 0) @ w2
    assert last.importance == pytest.approx(1 / y.var(axis=0).sum(), rel=1e-3)


def test_taps_of_wide_convolutions_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each channel as the mean of its taps, with the sum of its weights."""
    monkeypatch.setattr(readers, "WIDEST", 35)
    weights = normal(2, 4, 3, 3)
    model = read(
        "(%x: float[N, 5, 3, 3]) -> (%y: float[N, 2, 1, 1])",
        "%a = Conv(%x, %w)\n%y = Conv(%a, %wide)",
        w=np.eye(4, 5)[:, :, None, None],
        wide=weights,
    )
    x = normal(300, 5, 3, 3)
    (reader,) = readers_of(model, x=x)
    means = x[:, :4].mean(axis=(2, 3))
    np.testing.assert_allclose(reader.mean, means.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(reader.covariance, np.cov(means.T, bias=True), atol=1e-4)
    np.testing.assert_allclose(reader.weights, weights.sum(axis=(2, 3)).T, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(1,), (7,), (8,), (9, 4), (4, 12)])
@pytest.mark.parametrize("moves", [(1, 1), (2, 3), (3, 1)])
def test_a_group_has_as_many_widths_as_its_steps_leave(
    sizes: tuple[int, ...], moves: tuple[int, ...]
) -> None:
    """Every dim keeps an index."""
    move = {Dim(size): n for size, n in zip(sizes, moves, strict=False)}
    steps = 0
    while all(size - (steps + 1) * n >= 1 for size, n in zip(sizes, moves, strict=False)):
        steps += 1
    assert Group("g", move).size == steps + 1


@pytest.mark.parametrize(
    ("error", "spread", "share"),
    [(1.0, 4.0, 0.25), (0.0, 4.0, 0.0), (0.0, 0.0, 0.0), (1e-9, 0.0, 1.0), (np.nan, 1.0, np.inf),
     (1.0, np.inf, np.inf)],
)  # fmt: skip
def test_the_share_of_an_error(error: float, spread: float, share: float) -> None:
    """Of what doesn't vary nothing is missing, or all."""
    assert recovery._share(error, spread) == share


@pytest.mark.parametrize(
    ("nodes", "follows"),
    [
        ("%y = Softmax(%s)", True),
        ("%y = Softmax(%s) {axis = -1}", True),
        ("%y = Softmax(%s) {axis = 2}", True),
        ("%y = Softmax(%s) {axis = 1}", False),
        ("%y = Softmax(%s) {axis = -2}", False),
        ("%b = Div(%s, %number)\n%c = Add(%b, %mask)\n%y = Softmax(%c) {axis = 2}", True),
        ("%b = Relu(%s)\n%y = Softmax(%b)", False),
        ("%b = Softmax(%s)\n%y = Add(%b, %s)", False),
        ("%y = Mul(%s, %number)", False),
    ],
)
def test_which_products_a_softmax_over_the_last_axis_follows(nodes: str, follows: bool) -> None:
    model = read(
        "(%a: float[2, 3, 4], %z: float[2, 4, 5]) -> (%y: float[2, 3, 5])",
        f"const %number: float[] = 2\n%s = MatMul(%a, %z)\n{nodes}",
        mask=normal(3, 5),
    )
    product = next(node for node in model.graph.nodes if node.op_type == "MatMul")
    assert _softmax_follows(product) == follows


def test_groups_are_named_after_their_weights() -> None:
    """With a number where several have the same."""
    found = [group.name for group in find_groups(analyze(perceptron(4, 6, 5, 3)))]
    assert found == ["w1", "w2", "w0", "w2#2"]
    model = fused_attention()
    assert [group.name for group in free(analyze(model))] == ["v", "v#2"]
