"""External data: several files, offsets, large models, and writing over what was read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir import external
from secateur.ir.errors import ModelError
from secateur.ir.onnx_io import from_proto, load, save, to_proto
from secateur.ir.reference import Session
from secateur.ir.tensor import Tensor


def write_model(path: Path, arrays: dict[str, np.ndarray], *, one_file: bool = True) -> None:
    """A sum of constants, each kept outside the model."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    nodes, last = [], "x"
    for name in arrays:
        nodes.append(helper.make_node("Add", [last, name], [f"sum_{name}"]))
        last = f"sum_{name}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    initializers = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], initializers))
    onnx.save(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="weights.bin" if one_file else None,
        size_threshold=0,
    )


def elements(path: Path) -> dict[str, np.ndarray]:
    proto = onnx.load(str(path))
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


ARRAYS = {f"w{i}": np.arange(i, i + 300, dtype=np.float32) for i in range(3)}


@pytest.mark.parametrize("one_file", [True, False])
def test_read_and_written_elsewhere(tmp_path: Path, one_file: bool) -> None:
    source, target = tmp_path / "in" / "m.onnx", tmp_path / "out" / "n.onnx"
    source.parent.mkdir()
    target.parent.mkdir()
    write_model(source, ARRAYS, one_file=one_file)
    model = load(source)
    assert to_proto(model) == onnx.load(str(source), load_external_data=False)
    save(model, target)
    assert sorted(p.name for p in target.parent.iterdir()) == ["n.onnx", "n.onnx.data"]
    for name, array in elements(target).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_elements_are_mapped_not_read(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx", ARRAYS)
    tensor = load(tmp_path / "m.onnx").graph.initializers["w1"].const
    assert tensor is not None
    assert isinstance(tensor.numpy(), np.memmap)
    np.testing.assert_array_equal(tensor.numpy(), ARRAYS["w1"])


def test_written_over_itself_and_used_on(tmp_path: Path) -> None:
    """Saving moves the bytes; the model in memory follows them."""
    path = tmp_path / "m.onnx"
    write_model(path, ARRAYS)
    model = load(path)
    save(model, path)
    model = load(path)
    del model.graph.initializers["w0"]  # so that the others move
    user = model.graph.nodes[0]
    user.set_input(1, model.graph.initializers["w1"])
    save(model, path)
    for name in ("w1", "w2"):
        tensor = model.graph.initializers[name].const
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), ARRAYS[name])
        np.testing.assert_array_equal(elements(path)[name], ARRAYS[name])


def test_file_replaced_behind_our_back_is_noticed(tmp_path: Path) -> None:
    write_model(tmp_path / "m.onnx", ARRAYS)
    model = load(tmp_path / "m.onnx")
    (tmp_path / "weights.bin").write_bytes(bytes(10000))
    tensor = model.graph.initializers["w1"].const
    assert tensor is not None
    with pytest.raises(ModelError, match="changed since the model was read"):
        tensor.numpy()
    with pytest.raises(ModelError, match="changed since the model was read"):
        save(model, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_too_large_for_a_message_goes_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kinds of tensors keep their elements, those in subgraphs of one name too."""
    monkeypatch.setattr(external, "EMBED_LIMIT", 4000)
    arrays = {
        "plain": np.arange(600, dtype=np.float32),
        "view": np.arange(1200, dtype=np.float32).reshape(2, 600).T,
        "wide": np.broadcast_to(np.float32(3), (40, 40)),
        "small": np.ones(3, np.float32),
    }
    bodies = []
    for value in (1, 2):
        data = numpy_helper.from_array(np.full(700, value, np.float32), "same_name")
        output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        bodies.append(
            helper.make_graph(
                [helper.make_node("Identity", ["same_name"], ["o"])], "b", [], [output], [data]
            )
        )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    source = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), str(source))
    model = load(source)
    for name, array in arrays.items():
        model.graph.add_initializer(name, Tensor.from_array(array))
    quarter = helper.make_tensor("int4", TensorProto.INT4, [4000], [1, -2] * 2000)
    model.graph.add_initializer("int4", Tensor.from_proto(quarter))
    save(model, tmp_path / "out.onnx")

    found = elements(tmp_path / "out.onnx")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert found["int4"].astype(np.int8).tolist() == [1, -2] * 2000
    proto = onnx.load(str(tmp_path / "out.onnx"), load_external_data=False)
    kept = {t.name for t in proto.graph.initializer if not t.external_data}
    assert kept == {"small"}
    written = onnx.load(str(tmp_path / "out.onnx"))
    values = [numpy_helper.to_array(a.g.initializer[0])[0] for a in written.graph.node[0].attribute]
    assert sorted(values) == [1, 2]
    again = load(tmp_path / "out.onnx")
    save(again, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "out.onnx.data").read_bytes()


def test_constant_node_with_external_data(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.arange(5, dtype=np.float32))
    (tmp_path / "c.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="c.bin")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    proto = helper.make_model(helper.make_graph([node], "g", [], [output]))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = load(tmp_path / "m.onnx")
    assert to_proto(model) == proto
    constant = model.constant(model.graph.outputs[0])
    assert constant is not None
    assert constant.numpy().tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "out").mkdir()
    save(model, tmp_path / "out" / "m.onnx")
    copy = load(tmp_path / "out" / "m.onnx")
    constant = copy.constant(copy.graph.outputs[0])
    assert constant is not None
    assert constant.numpy().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_int8_weights_in_a_file_run_as_those_in_the_model(tmp_path: Path, op_type: str) -> None:
    """Also without zero points, and where two nodes read them."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[4, 16] x) => (float[4, 16] y) {{
        s = Constant <value_float = 0.05> ()
        z = Constant <value = uint8 {{120}}> ()
        a = QuantizeLinear (x, s, z)
        b = DequantizeLinear (a, s, z)
        w = DequantizeLinear <axis = 1> (i, c)
        m = {op_type} (b, w)
        n = QuantizeLinear (m, s, z)
        o = DequantizeLinear (n, s, z)
        v = DequantizeLinear <axis = 1> (i, c)
        y = {op_type} (o, v)
        }}"""
    )
    random = np.random.default_rng(0)
    integers = random.integers(-127, 128, (16, 16)).astype(np.int8)
    scales = random.random(16).astype(np.float32) / 50
    for name, array in (("i", integers), ("c", scales)):
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    within = Session(from_proto(proto))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    apart = Session(load(tmp_path / "m.onnx"))
    x = {"x": random.standard_normal((4, 16)).astype(np.float32)}
    np.testing.assert_array_equal(apart.run(x)["y"], within.run(x)["y"])
