"""Simplification case by case: files of small graphs with the operators that must be left.

A file begins with the constants that its cases may read. A case is a name, the graph's
inputs and outputs, nodes, and the operators left: `=> Conv Relu`, with `# opset 13` where
they differ from that opset on. Every case runs in all opsets in which ONNX Runtime runs it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
from onnx import helper

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, to_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.compare import allowed_deviation, deviation
from secateur.passes.simplify import Simplify
from tests.feeds import random_feeds

OPSETS = (7, 11, 13, 17, 20, 23, 24)
TOLERANCE = 2e-6


class Case(NamedTuple):
    """`left`: (first opset, operators) in ascending order."""

    name: str
    text: str
    left: list[tuple[int, str]]

    def expected(self, opset: int) -> str:
        return [operators for since, operators in self.left if since <= opset][-1]


def read_cases(path: Path) -> list[Case]:
    constants, *blocks = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)
    constants = constants.removeprefix("constants\n")
    cases: list[Case] = []
    for block in blocks:
        name, signature, *lines = block.strip().split("\n")
        inputs, _, outputs = signature.partition(" -> ")
        declared = ", ".join(f"{output}: ?" for output in outputs.split(", "))
        body = [line for line in lines if not line.startswith("=>")]
        left = [_left(line) for line in lines if line.startswith("=>")]
        text = f"graph g ({inputs}) -> ({declared}) {{\n{constants}{chr(10).join(body)}\n}}"
        cases.append(Case(name, text, left))
    return cases


def _left(line: str) -> tuple[int, str]:
    operators, _, since = line.removeprefix("=>").partition("# opset ")
    return int(since or 0), operators.strip()


FOLDER = Path(__file__).parent / "simplification"
CASES = [case for path in sorted(FOLDER.glob("*.txt")) for case in read_cases(path)]


def build(case: Case, opset: int, ir_version: int) -> Model:
    """The case's model; before IR version 4 its constants are graph inputs, too."""
    header = f'model <ir_version = {ir_version}, opset = ["" = {opset}]>\n'
    proto = to_proto(parse_model(header + case.text))
    if ir_version < 4:
        proto.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in proto.graph.initializer
        )
    return from_proto(proto)


def is_valid(proto: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def serialized(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


def check(case: Case, opset: int, ir_version: int) -> bool:
    """Whether ONNX Runtime runs the case; if so, all that must hold holds."""
    model = build(case, opset, ir_version)
    original = to_proto(model)
    feeds = [random_feeds(model, default=size) for size in (3, 1)]
    try:
        session = Session(model, optimize=False)
        expected = [session.run(feed) for feed in feeds]
    except SecateurError:
        return False
    Simplify().run(model)
    proto = to_proto(model)
    assert is_valid(proto) or not is_valid(original)
    session = Session(model, optimize=False)
    for feed, outputs in zip(feeds, expected, strict=True):
        actual = session.run(feed)
        assert list(actual) == list(outputs)
        for name, output in outputs.items():
            assert deviation(output, actual[name]) <= allowed_deviation(output, TOLERANCE)
    assert " ".join(node.op_type for node in model.graph.all_nodes()) == case.expected(opset)
    again = from_proto(proto)
    Simplify().run(again)
    assert serialized(to_proto(again)) == serialized(proto)
    return True


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    ran = [check(case, opset, 8) for opset in OPSETS]
    assert any(ran)
    if ran[0]:
        check(case, 7, 3)
