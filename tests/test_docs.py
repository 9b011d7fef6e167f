"""The documentation: links lead somewhere, and what it shows runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from secateur.ir.onnx_io import load
from secateur.ir.text import parse_model, print_model
from secateur.ir.verify import verify
from tests.ir.test_ir_graphsurgeon import chain

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """What links may name within a page: its headings, as GitHub and MkDocs write them."""
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_are_listed() -> None:
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in listed, f"no line for {name}"


COMPILER = ["artifacts.md", "integer-kernels.md", "open-sizes.md", "tvm.md"]
"""Pages on the compiler that name files; the table on the last one leaves out its folder."""


@pytest.mark.parametrize("page", ["architecture.md", "lexicon.md", *COMPILER])
def test_files_that_pages_name_are_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    roots = (ROOT, ROOT / "backends" / "tvm") if page == "tvm.md" else (ROOT,)
    named = re.findall(r"`([\w/]+(?:\.py|\.c|/))`", text)
    assert named
    assert not [name for name in named if not any((root / name).exists() for root in roots)]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_edit_in_graphsurgeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(chain(), "model.onnx")
    (example,) = blocks("ir.md", "python")
    exec(compile(example, "ir.md", "exec"), {})
    edited = load(tmp_path / "edited.onnx")
    verify(edited)
    assert [node.op_type for node in edited.graph.nodes] == ["Conv", "LeakyRelu"]
    assert [p.value for p in edited.extra.metadata_props] == ["somebody"]


def test_the_operator_that_is_added() -> None:
    """The steps are the code that is there, and what they add works."""
    text = (ROOT / "docs" / "adding-an-operator.md").read_text(encoding="utf-8")
    steps = re.findall(r"^`(\S+\.py)`\n\n```\w+\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert len(steps) == 4
    for path, code in steps:
        assert code in (ROOT / path).read_text(encoding="utf-8"), path


def test_the_operator_that_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    monkeypatch.chdir(tmp_path)
    example = blocks("adding-an-operator.md", "python")[-1]
    exec(compile(example, "adding-an-operator.md", "exec"), {})


@pytest.mark.slow
def test_the_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm")
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 3, 8, 8] input) => (float[1, 4, 4, 4] y) {
        a = Conv (input, w)
        b = Relu (a)
        y = Conv (b, v)
        }"""
    )
    for name, shape in {"w": (16, 3, 3, 3), "v": (4, 16, 3, 3)}.items():
        array = np.random.default_rng(0).random(shape, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, "model.onnx")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    known = {"array": np.ones((1, 3, 8, 8), np.float32)}
    exec(compile(example, "README.md", "exec"), known)
    assert known["outputs"]["y"].shape == (1, 4, 4, 4)
    pruned = load(tmp_path / "pruned.onnx").graph.initializers["w"].const
    assert pruned is not None
    assert pruned.shape[0] < 16


@pytest.mark.slow
def test_the_example_of_the_zoo() -> None:
    known: dict[str, Any] = {}
    (example,) = blocks("zoo.md", "python")
    exec(compile(example, "zoo.md", "exec"), known)
    assert known["feeds"]


def test_the_example_of_the_text_form() -> None:
    text = (ROOT / "docs" / "ir.md").read_text(encoding="utf-8")
    found = re.search(r"^    model <.*?^    }$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    example = re.sub(r"^    ", "", found[0], flags=re.MULTILINE) + "\n"
    assert print_model(parse_model(example)) == example
