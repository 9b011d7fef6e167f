"""The bridge to onnx-graphsurgeon: nothing is lost, and a user's edit arrives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

gs = pytest.importorskip("onnx_graphsurgeon")

from secateur.ir.errors import ModelError  # noqa: E402
from secateur.ir.graphsurgeon import from_graphsurgeon, to_graphsurgeon  # noqa: E402
from secateur.ir.onnx_io import from_proto, load, save, to_proto  # noqa: E402
from secateur.ir.reference import Session  # noqa: E402
from secateur.ir.verify import verify  # noqa: E402
from secateur.models.zoo import list_models, load_tiny  # noqa: E402
from secateur.passes.simplify import FoldBatchNormalization, RemoveNoOps  # noqa: E402
from tests.backend_cases import generated_cases  # noqa: E402
from tests.ir.test_ir_roundtrip import everything  # noqa: E402

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL


def test_nothing_is_lost_on_the_way_there_and_back() -> None:
    models = [everything(), *(case.model for case in generated_cases()[::5])]
    models += [to_proto(load_tiny(*which)) for which in list_models()[::3]]
    for proto in models:
        model = from_proto(proto)
        assert to_proto(from_graphsurgeon(to_graphsurgeon(model), model)) == proto


def chain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Identity", ["x"], ["i"], name="nothing"),
        helper.make_node("Conv", ["i", "w"], ["c"], name="conv", doc_string="kept"),
        helper.make_node("BatchNormalization", ["c", "g", "g", "g", "v"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    arrays = {
        "w": np.ones((2, 2, 1, 1), np.float32),
        "g": np.array([0.5, 2], np.float32),
        "v": np.array([1, 3], np.float32),
        "unused": np.zeros(3, np.float32),
    }
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2, 4, 4]) for n in "xy"]
    initializers = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"author": "somebody"})
    return model


def test_an_edit_between_two_passes() -> None:
    """The documented example: the activation is replaced in the library of the user's choice."""
    model = from_proto(chain())
    RemoveNoOps().run(model)

    graph = to_graphsurgeon(model)
    relu = next(node for node in graph.nodes if node.op == "Relu")
    relu.op, relu.attrs = "LeakyRelu", {"alpha": 0.25}
    scale = gs.Constant("scale", np.array([2.0], np.float32))
    scaled = gs.Variable("scaled", dtype=np.float32, shape=["N", 2, 4, 4])
    graph.nodes.append(gs.Node("Mul", "double", inputs=[relu.inputs[0], scale], outputs=[scaled]))
    relu.inputs = [scaled]
    model = from_graphsurgeon(graph, model)

    verify(model)
    FoldBatchNormalization().run(model)
    assert [node.op_type for node in model.graph.nodes] == ["Conv", "LeakyRelu"]
    assert model.graph.nodes[0].extra is not None
    assert model.graph.nodes[0].extra.doc_string == "kept"
    assert "unused" in model.graph.initializers
    assert [p.value for p in model.extra.metadata_props] == ["somebody"]
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 2, 4, 4)
    original = Session(from_proto(chain())).run({"x": x})["y"]
    edited = Session(model).run({"x": x})["y"]
    np.testing.assert_allclose(np.maximum(edited, 0), 2 * original, rtol=1e-5)


def test_weights_stay_where_they_are(tmp_path: Path) -> None:
    proto = chain()
    path = tmp_path / "m.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    model = load(path)
    graph = to_graphsurgeon(model)
    graph.tensors()["g"].values *= 2
    edited = from_graphsurgeon(graph, model)
    kept = edited.graph.initializers["w"].const
    assert kept is model.graph.initializers["w"].const
    changed = edited.graph.initializers["g"].const
    assert changed is not None
    assert changed.numpy().tolist() == [1, 4]
    save(edited, tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_graphsurgeon_can_export_what_it_is_given() -> None:
    exported = gs.export_onnx(to_graphsurgeon(from_proto(chain())))
    onnx.checker.check_model(exported)
    assert numpy_helper.to_array(exported.graph.initializer[0]).shape == (2, 2, 1, 1)


def test_a_graph_from_elsewhere() -> None:
    model = from_graphsurgeon(gs.import_onnx(chain()))
    verify(model)
    assert model.opset == 17
    x = np.ones((1, 2, 4, 4), np.float32)
    np.testing.assert_array_equal(
        Session(model).run({"x": x})["y"], Session(from_proto(chain())).run({"x": x})["y"]
    )


def test_opset_and_new_domains_follow_the_edit() -> None:
    graph = to_graphsurgeon(from_proto(chain()))
    graph.opset = 18
    graph.nodes[-1].domain = "com.example"
    model = from_graphsurgeon(graph, from_proto(chain()))
    assert model.opsets == {"": 18, "com.example": 1}


def test_a_tensor_without_producer_is_named() -> None:
    graph = to_graphsurgeon(from_proto(chain()))
    graph.nodes[-1].inputs = [gs.Variable("nowhere")]
    with pytest.raises(ModelError, match=r"'nowhere', in the inputs of node 'relu' \(Relu\)"):
        from_graphsurgeon(graph, from_proto(chain()))
