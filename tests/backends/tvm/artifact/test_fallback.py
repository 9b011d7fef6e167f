"""Nodes that can't be lowered: named all at once, or left to ONNX Runtime."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.container import is_container
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import CompileReport, compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError, UnsupportedError
from secateur.ir.onnx_io import from_proto

from ....onnx_runtime import session_of

Array = Any
SHAPE = (1, 4, 6, 6)
SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


class Mixed:
    """Builds a model whose values all have one shape, of operators of both kinds."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {"minus": np.array([-1])}
        self.values = ["x"]

    def add(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def conv(self, a: str, b: str) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = self.random.standard_normal((4, 4, 3, 3)).astype("float32") / 6
        return self.add("Conv", [a, name], pads=[1, 1, 1, 1])

    def tanh_of_sum(self, a: str, b: str) -> str:
        return self.add("Tanh", [self.add("Add", [a, b])])

    def through_strings(self, a: str, b: str) -> str:
        """Static shapes, but a type that kernels lack."""
        text = self.add("Cast", [a], to=TensorProto.STRING)
        return self.add("Cast", [text], to=TensorProto.FLOAT)

    def by_unique(self, a: str, b: str) -> str:
        """A value whose size depends on the data."""
        different = self.add("Unique", [self.add("Reshape", [a, "minus"])])
        return self.add("Sub", [b, self.add("ReduceMax", [different])])

    def by_loop(self, a: str, b: str) -> str:
        """A node whose body captures a value, run a number of times known at run time."""
        before, after, go = (f"{name}{len(self.nodes)}" for name in ("before", "after", "go"))
        body = helper.make_graph(
            [
                helper.make_node("Sub", [before, a], [after]),
                helper.make_node("Identity", [go], [go + "_on"]),
            ],
            "body",
            [
                helper.make_tensor_value_info(f"count{len(self.nodes)}", TensorProto.INT64, ()),
                helper.make_tensor_value_info(go, TensorProto.BOOL, ()),
                helper.make_tensor_value_info(before, TensorProto.FLOAT, SHAPE),
            ],
            [
                helper.make_tensor_value_info(go + "_on", TensorProto.BOOL, ()),
                helper.make_tensor_value_info(after, TensorProto.FLOAT, SHAPE),
            ],
        )
        count = self.add("Cast", ["flag"], to=TensorProto.INT64)
        return self.add("Loop", [count, "", b], body=body)

    def by_condition(self, a: str, b: str) -> str:
        """A node whose branches capture values, which can be compiled."""
        branches = {}
        for name, op_type in (("then_branch", "Mul"), ("else_branch", "Sub")):
            inner = f"{name}{len(self.nodes)}"
            graph = helper.make_graph(
                [helper.make_node(op_type, [a, b], [inner])],
                name,
                [],
                [helper.make_tensor_value_info(inner, TensorProto.FLOAT, SHAPE)],
            )
            branches[name] = graph
        return self.add("If", ["flag"], **branches)

    def by_sequence(self, a: str, b: str) -> str:
        """A value that is no tensor, which may lie between two parts."""
        sequence = self.add("SequenceConstruct", [a, b])
        position = self.add("Cast", ["flag"], to=TensorProto.INT64)
        return self.add("SequenceAt", [sequence, position])

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "mixed",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE),
                helper.make_tensor_value_info("flag", TensorProto.BOOL, ()),
            ],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in outputs],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        return model


KINDS = (
    "conv",
    "tanh_of_sum",
    "through_strings",
    "by_unique",
    "by_loop",
    "by_condition",
    "by_sequence",
)


@st.composite
def models(draw: Any) -> onnx.ModelProto:
    mixed = Mixed(draw(st.integers(0, 9)))
    for _ in range(draw(st.integers(1, 8))):
        a, b = (draw(st.sampled_from(mixed.values[-3:])) for _ in range(2))
        mixed.values.append(getattr(mixed, draw(st.sampled_from(KINDS)))(a, b))
    outputs = draw(st.sets(st.sampled_from(mixed.values[1:]), max_size=2))
    return mixed.model(sorted({*outputs, mixed.values[-1]}))


def check(model: onnx.ModelProto, path: Path, threads: int = 1) -> None:
    """The artifact computes what ONNX Runtime computes."""
    session = session_of(model)
    runtime = Runtime(path, threads)
    for flag in (True, False):
        x = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
        inputs = {"x": x, "flag": np.array(flag)}
        found = runtime.run(inputs)
        names = [o.name for o in session.get_outputs()]
        used = {i.name for i in session.get_inputs()}
        expected = session.run(names, {k: v for k, v in inputs.items() if k in used})
        assert list(found) == names
        for name, array in zip(names, expected, strict=True):
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4)


def compiled(model: onnx.ModelProto, path: Path, fallback: bool = True) -> CompileReport:
    return compile_model(from_proto(model), parse_target("native"), path, fallback=fallback)


@given(model=models())
@SETTINGS
def test_mixed_models_compute_the_same(model: onnx.ModelProto, tmp_path: Path) -> None:
    report = compiled(model, tmp_path / "m.so")
    assert is_container(tmp_path / "m.so") == bool(report.left)
    check(model, tmp_path / "m.so")


def test_every_node_is_named(tmp_path: Path) -> None:
    mixed = Mixed()
    value = mixed.conv(mixed.through_strings("x", "x"), "x")
    value = mixed.by_loop(value, mixed.through_strings(value, value))
    model = mixed.model([value])
    with pytest.raises(UnsupportedError) as caught:
        compiled(model, tmp_path / "m.so", fallback=False)
    for node in model.graph.node:
        itself = node.op_type == "Cast" and node.attribute[0].i == TensorProto.STRING
        assert (f"'{node.name}'" in str(caught.value)) == itself, str(caught.value)
    assert not (tmp_path / "m.so").exists()


def test_the_parts_are_few_and_what_can_be_compiled_is(tmp_path: Path) -> None:
    """Two independent nodes that are left over run together."""
    mixed = Mixed()
    first = mixed.through_strings(mixed.conv("x", "x"), "x")
    second = mixed.through_strings(mixed.conv("x", "x"), "x")
    model = mixed.model([mixed.conv(mixed.tanh_of_sum(first, second), "x")])
    report = compiled(model, tmp_path / "m.so")
    names = ("n_v1", "n_v2", "n_v4", "n_v5")
    assert len(report.left) == len(names)
    assert all(any(f"'{name}'" in text for text in report.left) for name in names)
    with zipfile.ZipFile(tmp_path / "m.so") as archive:
        assert sorted(archive.namelist()) == [
            "manifest.json",
            "part0.so",
            "part1.onnx",
            "part2.so",
        ]
    check(model, tmp_path / "m.so", threads=2)


def test_nothing_may_be_left_to_compile(tmp_path: Path) -> None:
    mixed = Mixed()
    model = mixed.model([mixed.through_strings("x", "x")])
    report = compiled(model, tmp_path / "m.so")
    assert (report.kernels, len(report.left)) == (0, 2)
    check(model, tmp_path / "m.so")


def test_without_need_there_is_no_container(tmp_path: Path) -> None:
    mixed = Mixed()
    model = mixed.model([mixed.conv("x", "x")])
    compiled(model, tmp_path / "with.so")
    compiled(model, tmp_path / "without.so", fallback=False)
    assert (tmp_path / "with.so").read_bytes() == (tmp_path / "without.so").read_bytes()


def test_containers_are_the_same_every_time(tmp_path: Path) -> None:
    mixed = Mixed()
    model = mixed.model([mixed.through_strings(mixed.conv("x", "x"), "x")])
    for name in ("a.so", "b.so"):
        compiled(model, tmp_path / name)
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()


def test_strings_go_in_and_out(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["text"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Exp", ["number"], ["e"]),
            helper.make_node("Cast", ["e"], ["out"], to=TensorProto.STRING),
        ],
        "strings",
        [helper.make_tensor_value_info("text", TensorProto.STRING, (2,))],
        [helper.make_tensor_value_info("out", TensorProto.STRING, (2,))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    report = compiled(model, tmp_path / "m.so")
    assert len(report.left) == 2
    runtime = Runtime(tmp_path / "m.so")
    assert runtime.inputs == {"text": ("object", (2,))}
    assert runtime.run({"text": np.array(["0", "1"])})["out"][0] == "1"
    with pytest.raises(SecateurError, match="'text': float32 given"):
        runtime.run({"text": np.zeros(2, np.float32)})


def test_sequences_of_tensors_of_several_sizes_come_out(tmp_path: Path) -> None:
    """And numbers between parts, which a session may give as scalars."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["text"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Exp", ["numbers"], ["e"]),
            helper.make_node("SplitToSequence", ["e", "lengths"], ["out"]),
            helper.make_node("SplitToSequence", ["text", "lengths"], ["texts"]),
            helper.make_node("Cast", ["one"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Exp", ["number"], ["exp"]),
        ],
        "sequences",
        [
            helper.make_tensor_value_info("text", TensorProto.STRING, (5,)),
            helper.make_tensor_value_info("one", TensorProto.STRING, ()),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, (2,)),
        ],
        [
            helper.make_tensor_sequence_value_info("out", TensorProto.FLOAT, None),
            helper.make_tensor_sequence_value_info("texts", TensorProto.STRING, None),
            helper.make_tensor_value_info("exp", TensorProto.FLOAT, ()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    compiled(model, tmp_path / "m.so")
    feeds = {
        "text": np.array(["0", "1", "2", "-1", "3"], object),
        "one": np.array("2", object),
        "lengths": np.array([4, 1]),
    }
    found = Runtime(tmp_path / "m.so").run(feeds)
    assert isinstance(found["out"], list)
    assert [part.shape for part in found["out"]] == [(4,), (1,)]
    expected = session_of(model).run(None, feeds)
    for part, other in zip(found["out"], expected[0], strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-6)
    assert [list(part) for part in found["texts"]] == [["0", "1", "2", "-1"], ["3"]]
    np.testing.assert_allclose(found["exp"], expected[2], rtol=1e-6)


def test_batches_of_any_size_run(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["t"], to=TensorProto.STRING),
        helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["f"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "batched",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 3))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    compiled(model, tmp_path / "m.so")
    x = np.array([[1, -2, 3], [-4, 5, 6]], np.float32)
    found = Runtime(tmp_path / "m.so").run({"x": x})["y"]
    np.testing.assert_array_equal(found, np.maximum(x, 0))


def test_running_needs_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = Mixed()
    compiled(mixed.model([mixed.through_strings("x", "x")]), tmp_path / "m.so")
    monkeypatch.setitem(sys.modules, "secateur.ir.reference", None)
    with pytest.raises(SecateurError, match="install the package 'onnxruntime'"):
        Runtime(tmp_path / "m.so")
