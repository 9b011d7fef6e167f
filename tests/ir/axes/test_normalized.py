"""Pruning axes that statistics run over: the reference takes them over the kept indices."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from secateur.cli import main
from secateur.ir.dependencies.analysis import analyze
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto, save, to_proto
from secateur.ir.reference import Session
from secateur.models import zoo
from secateur.passes.prune import PruneChannels
from secateur.passes.prune.apply import apply_selection
from secateur.passes.prune.groups import find_groups
from secateur.passes.prune.masking import mask

from .oracle import prune_at_random, random_selection

RNG = np.random.default_rng(0)
WIDTH = 12
EPSILON = np.float32(1e-5)


def layer_norm(h, p):
    mean = h.mean(-1, keepdims=True)
    return (h - mean) / np.sqrt(h.var(-1, keepdims=True) + EPSILON) * p["scale"] + p["bias"]


def rms_norm(h, p):
    return h / np.sqrt((h * h).mean(-1, keepdims=True) + EPSILON) * p["scale"]


NORMALIZATIONS = {
    "LayerNormalization": (
        [helper.make_node("LayerNormalization", ["h", "scale", "bias"], ["n"], epsilon=1e-5)],
        layer_norm,
    ),
    "RMSNormalization": (
        [helper.make_node("RMSNormalization", ["h", "scale"], ["n"], epsilon=1e-5)],
        rms_norm,
    ),
    "decomposed": (
        [
            helper.make_node("ReduceMean", ["h", "last"], ["mean"]),
            helper.make_node("Sub", ["h", "mean"], ["d"]),
            helper.make_node("Mul", ["d", "d"], ["dd"]),
            helper.make_node("ReduceMean", ["dd", "last"], ["var"]),
            helper.make_node("Add", ["var", "epsilon"], ["ve"]),
            helper.make_node("Sqrt", ["ve"], ["std"]),
            helper.make_node("Div", ["d", "std"], ["q"]),
            helper.make_node("Mul", ["q", "scale"], ["s"]),
            helper.make_node("Add", ["s", "bias"], ["n"]),
        ],
        layer_norm,
    ),
}


def build(name):
    """x @ a -> normalization -> @ b, with every parameter of the normalization."""
    parameters = {
        "a": RNG.standard_normal((4, WIDTH)),
        "b": RNG.standard_normal((WIDTH, 3)),
        "scale": RNG.uniform(0.5, 1.5, WIDTH),
        "bias": RNG.standard_normal(WIDTH),
        "epsilon": np.array(EPSILON),
    }
    parameters = {k: v.astype(np.float32) for k, v in parameters.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        *NORMALIZATIONS[name][0],
        helper.make_node("MatMul", ["n", "b"], ["y"]),
    ]
    read = {i for node in nodes for i in node.input}
    initializers = [numpy_helper.from_array(v, k) for k, v in parameters.items() if k in read]
    if "last" in read:
        initializers.append(numpy_helper.from_array(np.array([-1]), "last"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return model, parameters


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_locked_unless_asked_for(name):
    proto, _ = build(name)
    model = from_proto(proto)
    infer_shapes(model)
    locks = [str(g.lock) for g in find_groups(analyze(model)) if g.size == WIDTH]
    assert locks
    assert all("over this axis" in lock for lock in locks)


@pytest.mark.parametrize("name", NORMALIZATIONS)
@pytest.mark.parametrize("seed", range(5))
def test_statistics_are_those_of_the_kept_indices(name, seed):
    proto, p = build(name)
    rng = np.random.default_rng(seed)
    model = from_proto(proto)
    infer_shapes(model)
    analysis = analyze(model, prune_normalized=True)
    selection = random_selection(find_groups(analysis), rng)
    (kept,) = selection.kept.values() or [np.arange(WIDTH)]
    apply_selection(analysis, selection)
    onnx.checker.check_model(to_proto(model), full_check=True)
    x = rng.standard_normal((2, 4)).astype(np.float32)
    actual = Session(model).run({"x": x})["y"]
    sliced = {k: v[..., kept] for k, v in p.items() if k in ("a", "scale", "bias")}
    expected = NORMALIZATIONS[name][1](x @ sliced["a"], sliced) @ p["b"][kept]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


GROUPED = {
    "GroupNormalization": helper.make_node(
        "GroupNormalization", ["h", "scale", "bias"], ["n"], num_groups=4, epsilon=1e-5
    ),
    "ReduceMean": helper.make_node("ReduceMean", ["h", "axis"], ["n"], keepdims=0),
}  # fmt: skip


def grouped(name):
    """A convolution, statistics over its channels, and a consumer of what they give."""
    weights = {
        "a": RNG.standard_normal((WIDTH, 3, 1, 1)),
        "scale": RNG.uniform(0.5, 1.5, WIDTH),
        "bias": RNG.standard_normal(WIDTH),
        "b": RNG.standard_normal((2, WIDTH, 1, 1)),
    }
    initializers = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([1]), "axis"))
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        GROUPED[name],
        helper.make_node("Conv", ["n", "b"], ["y"])
        if name == "GroupNormalization"
        else helper.make_node("Identity", ["n"], ["y"]),
    ]
    read = {i for node in nodes for i in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [t for t in initializers if t.name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("name", [*NORMALIZATIONS, *GROUPED])
@pytest.mark.parametrize("seed", range(3))
def test_the_masked_original_takes_statistics_over_kept_indices(name, seed):
    """So that what the pass makes can be checked, as every other pruned model is."""
    model = from_proto(grouped(name) if name in GROUPED else build(name)[0])
    rng = np.random.default_rng(seed)
    shape = model.graph.inputs[0].shape
    feeds = {"x": rng.standard_normal(shape).astype(np.float32)}
    result = prune_at_random(model, rng, prune_normalized=True)
    assert result.selection.kept or seed
    (expected,) = Session(mask(result.original, result.record), optimize=False).run(feeds).values()
    (actual,) = Session(result.pruned, optimize=False).run(feeds).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny", "bert", "gqa_decoder"])
def test_transformers_pass_the_check(name, tmp_path):
    source = tmp_path / "model.onnx"
    save(zoo.load_tiny(name, "kept"), source)
    command = ["prune", str(source), "-o", str(tmp_path / "pruned.onnx")]
    done = CliRunner().invoke(main, [*command, "--ratio", "0.3", "--normalized"])
    assert done.exit_code == 0, done.output
    assert "Checked: pruned model against channel-masked original" in done.output


def test_the_pass_has_an_option_for_it():
    proto, _ = build("LayerNormalization")
    whole, narrow = from_proto(proto), from_proto(proto)
    PruneChannels(ratio=0.5).run(whole)
    PruneChannels(ratio=0.5, normalized=True).run(narrow)
    assert whole.graph.initializers["a"].const.shape == (4, WIDTH)
    assert narrow.graph.initializers["a"].const.shape == (4, WIDTH // 2)
