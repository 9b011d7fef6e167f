"""The committed tiny models: complete, loadable, runnable and self-describing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.models.zoo import ZOO, list_models, load_tiny, random_inputs, tiny_path

VARIANTS = ("dynamo", "folded", "kept")
MODELS = list_models()
LIMIT = 400 * 1024


def operators(model: Model) -> set[str]:
    return {node.op_type for node in model.all_nodes()}


def test_every_architecture_is_there_in_every_variant() -> None:
    assert [(name, variant) for name in ZOO for variant in VARIANTS] == MODELS


def test_files_are_small() -> None:
    sizes = {nv: tiny_path(*nv).stat().st_size for nv in MODELS}
    assert max(sizes.values()) < LIMIT
    assert sum(sizes.values()) < 10 * 2**20


@pytest.mark.parametrize(("name", "variant"), MODELS)
def test_runs_on_random_inputs(name: str, variant: str) -> None:
    model = load_tiny(name, variant)
    feeds = random_inputs(model)
    result = Session(model).run(feeds)
    output = result["output"]
    assert np.isfinite(output).all()
    assert 0.1 < output.std() < 50  # neither vanished nor exploded
    assert len(output) == (1 if variant == "folded" else 2)
    for declared in ZOO[name].inputs("tiny"):
        assert feeds[declared.name].shape[1:] == declared.shape[1:]


@pytest.mark.parametrize(("name", "variant"), MODELS)
def test_is_valid(name: str, variant: str) -> None:
    onnx.checker.check_model(onnx.load(tiny_path(name, variant)), full_check=True)


@pytest.mark.parametrize("name", ZOO)
def test_variants_compute_the_same(name: str) -> None:
    """Three exporters' files of one module agree, so each holds the same weights."""
    feeds = random_inputs(load_tiny(name, "folded"))
    results = [Session(load_tiny(name, v)).run(feeds)["output"] for v in VARIANTS]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-3, atol=1e-3)


def test_variants_are_written_differently() -> None:
    for name in ZOO:
        kept, folded = load_tiny(name, "kept"), load_tiny(name, "folded")
        assert not isinstance(kept.graph.inputs[0].shape[0], int)
        assert all(isinstance(size, int) for i in folded.graph.inputs for size in i.shape)
    assert "BatchNormalization" in operators(load_tiny("resnet50", "kept"))
    assert "BatchNormalization" not in operators(load_tiny("resnet50", "folded"))
    assert "Shape" in operators(load_tiny("shufflenet_v1", "kept"))
    assert "Shape" not in operators(load_tiny("shufflenet_v1", "folded"))


def test_unknown_model() -> None:
    with pytest.raises(SecateurError, match=r"no tiny model 'alexnet'"):
        load_tiny("alexnet", "kept")


def model_of(inputs: list[onnx.ValueInfoProto], metadata: dict[str, str] | None = None) -> Model:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [inputs[0].name], ["y"])],
        "g",
        inputs,
        [onnx.helper.make_empty_tensor_value_info("y")],
    )
    proto = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(proto, metadata or {})
    return from_proto(proto)


def tensor(name: str, dtype: int, shape: list[int | str | None]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, dtype, shape)


class TestRandomInputs:
    def test_integers_stay_in_the_declared_range(self) -> None:
        model = model_of(
            [tensor("ids", onnx.TensorProto.INT32, [50, 50])],
            {"secateur.input_range.ids": "3 7"},
        )
        ids = random_inputs(model)["ids"]
        assert ids.dtype == np.int32
        assert set(ids.flatten()) == {3, 4, 5, 6}

    def test_one_symbol_has_one_size(self) -> None:
        model = model_of(
            [
                tensor("a", onnx.TensorProto.FLOAT, ["n", "s", None]),
                tensor("b", onnx.TensorProto.FLOAT16, ["s", "n"]),
            ],
            {"secateur.input_shape.a": "1 5 6"},
        )
        feeds = random_inputs(model)
        assert feeds["a"].shape == (2, 5, 6)
        assert feeds["b"].shape == (5, 2)
        assert feeds["b"].dtype == np.float16
        assert random_inputs(model, sizes={"s": 9})["b"].shape == (9, 2)

    def test_deterministic(self) -> None:
        model = model_of([tensor("a", onnx.TensorProto.FLOAT, [4])])
        np.testing.assert_array_equal(random_inputs(model)["a"], random_inputs(model)["a"])
        assert (random_inputs(model, seed=1)["a"] != random_inputs(model)["a"]).any()

    def test_strings_and_unknown_ranks_are_refused(self) -> None:
        with pytest.raises(SecateurError, match="no tensor of numbers"):
            random_inputs(model_of([tensor("a", onnx.TensorProto.STRING, [4])]))
        unranked = onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, None)
        with pytest.raises(SecateurError, match="no shape"):
            random_inputs(model_of([unranked]))
