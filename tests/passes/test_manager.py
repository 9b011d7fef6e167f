"""The pass manager: verification, comparison, dumps, and errors that name the pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from secateur.ir.errors import ModelError, SecateurError, UnsupportedError
from secateur.ir.graph import Value
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.text import parse_model
from secateur.passes.base import Context, Pass, PassResult
from secateur.passes.dump import Dump
from secateur.passes.manager import OutputCheck, PassManager


def small() -> Model:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("x", "y")]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Neg", ["r"], ["y"], name="neg"),
    ]
    opset = [helper.make_opsetid("", 17)]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:])
    return from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


@dataclasses.dataclass(frozen=True)
class SetOperator(Pass):
    """Changes what a node computes."""

    node: str = "neg"
    op_type: str = "Abs"

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        for node in model.all_nodes():
            if node.name == self.node:
                node.op_type = self.op_type
        return PassResult(True, {"context": context is not None})


@dataclasses.dataclass(frozen=True)
class Disconnect(Pass):
    """Leaves a node that reads what nothing defines."""

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        model.graph.nodes[1].set_input(0, Value("nowhere"))
        return PassResult(True)


@dataclasses.dataclass(frozen=True)
class Refuse(Pass):
    """Fails by itself."""

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        raise UnsupportedError("node 'relu' (Relu): not today")


FEEDS = {"x": np.array([-1, 2, 3], np.float32)}


def test_records_say_what_ran() -> None:
    seen: list[tuple[int, str]] = []
    manager = PassManager(
        [SetOperator(op_type="Neg"), SetOperator(node="relu", op_type="Relu")],
        check=OutputCheck(FEEDS),
        observe=lambda index, text: seen.append((index, text)),
    )
    records = manager.run(small(), Context())
    texts = ["set-operator{op-type=Neg}", "set-operator{node=relu, op-type=Relu}"]
    assert [r.pass_text for r in records] == texts
    assert seen == list(enumerate(texts))
    assert all(r.seconds >= 0 and r.deviation == 0 for r in records)
    assert records[0].result.statistics == {"context": True}


def test_malformed_result_names_pass_and_node() -> None:
    manager = PassManager([SetOperator(), Disconnect()])
    message = r"pass 'disconnect' \(after set-operator\): left a malformed model: node 'neg' \(Neg"
    with pytest.raises(ModelError, match=message.replace("Neg", "Abs")):
        manager.run(small())


def test_malformed_input_is_not_blamed_on_a_pass() -> None:
    model = small()
    Disconnect().run(model)
    with pytest.raises(ModelError, match=r"^node 'neg'"):
        PassManager([SetOperator()]).run(model)


def test_failure_of_a_pass_keeps_its_type_and_names_it() -> None:
    with pytest.raises(UnsupportedError, match=r"pass 'refuse': node 'relu' \(Relu\): not today"):
        PassManager([Refuse()]).run(small())


def test_changed_outputs_are_noticed() -> None:
    with pytest.raises(SecateurError, match=r"pass 'set-operator'.*changed output 'y' by 2"):
        PassManager([SetOperator()], check=OutputCheck(FEEDS)).run(small())
    PassManager([SetOperator()], check=OutputCheck(FEEDS, tolerance=2.0)).run(small())


def test_dumps_show_the_model_after_each_pass(tmp_path: Path) -> None:
    PassManager([SetOperator()], dump=Dump(tmp_path / "dumps")).run(small())
    names = sorted(p.name for p in (tmp_path / "dumps").iterdir())
    assert names == ["00-input.txt", "01-set-operator.txt"]
    texts = [(tmp_path / "dumps" / name).read_text() for name in names]
    operators = [[n.op_type for n in parse_model(text).graph.nodes] for text in texts]
    assert operators == [["Relu", "Neg"], ["Relu", "Abs"]]
