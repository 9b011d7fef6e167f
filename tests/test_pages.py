"""Tutorials, how-to pages and notebooks, followed literally in an empty folder; commands of all."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest

from secateur.cli import COMMANDS, main
from tests.notebook import outputs_of, read_cells

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*(DOCS / "tutorials").glob("*.md"), *(DOCS / "how-to").glob("*.md")])
NEEDS = {
    "accuracy-loss": ("sklearn", "jinja2"),
    "add-a-target": ("sklearn",),
    "build-systems": ("sklearn",),
    "classifier": ("sklearn", "PIL", "jinja2"),
    "detector": ("torch", "onnxscript", "PIL"),
    "latency": ("sklearn", "jinja2"),
    "quantize-a-detector": ("torch", "PIL"),
    "speech": ("torch",),
    "text": ("torch",),
    "train-again": ("sklearn", "torch"),
}
TOOLS = r"^(?:.*&& )?(bazel|cmake|make|meson) "
"""What blocks run that not every machine has."""


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and code of a page's blocks; those in lists are indented."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(sh|python)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(code)) for _, language, code in found]


def follow(page: Path, folder: Path) -> str:
    """Run a page's blocks one after the other; what they print."""
    tools = folder / "bin"
    tools.mkdir()
    for name, module in (("python", ""), ("secateur", " -m secateur")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        (tools / name).chmod(0o755)
    place = folder / "place"
    place.mkdir()
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tools), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CHECKOUT": str(ROOT),
        "TEST_TMPDIR": str(folder / "bazel"),  # there Bazel caches, and its server ends soon
    }
    printed = ""
    for language, block in blocks_of(page):
        if not all(shutil.which(tool) for tool in re.findall(TOOLS, block, re.MULTILINE)):
            continue
        command = ["bash", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
        run = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{block}\n{run.stdout}\n{run.stderr}"
        printed += run.stdout
    return printed


def accuracies(printed: str) -> list[dict[str, float]]:
    """First metric of each stage, in percent, of every table of stages."""
    tables: list[dict[str, float]] = []
    for name, value in re.findall(r"^ ?(original|\w+ed|artifact) .*? ([\d.]+) %", printed, re.M):
        if name == "original":
            tables.append({})
        tables[-1][name] = float(value)
    return tables


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, tmp_path: Path) -> None:
    for module in NEEDS[page.stem]:
        pytest.importorskip(module)
    assert len(blocks_of(page)) >= 2
    printed = follow(page, tmp_path)
    place = tmp_path / "place"
    shares = [int(share) for share in re.findall(r"^(\d+)% of \d+", printed, re.MULTILINE)]
    tables = accuracies(printed)
    if page.parent.name == "tutorials":
        assert (place / "out" / "report.html").exists()
        assert tables
        assert tables[0]["original"] > (40 if page.stem == "detector" else 85)
        assert "artifact" in tables[0]
        # some commands make no artifact: what a table ends with is what they made
        assert all([*table.values()][-1] > table["original"] - 6 for table in tables)
    if page.stem == "classifier":
        assert "divided by 255" in printed
        assert shares[0] >= 94
    elif page.stem == "speech":
        assert shares[0] >= 85
    elif page.stem == "text":
        assert len(re.findall(r"^(?:code|prose): ", printed, re.MULTILINE)) == 2
        assert shares[0] >= 80
    elif page.stem == "train-again":
        assert tables[1]["artifact"] > tables[0]["recovered"] - 1
    elif page.stem == "build-systems":
        built = [shutil.which(tool) is not None for tool in ("cmake", "make", "bazel")]
        programs = [
            place / "build" / "classify",
            place / "device" / "make" / "classify",
            place / "device" / "bazel" / "bazel-bin" / "classify",
        ]
        assert [program.exists() for program in programs] == built
    elif page.stem == "latency":
        assert (place / "curve.svg").exists()


# --- commands in text --------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    """Every `secateur` command of the documentation that is more than its name, with its page."""
    found = []
    pages = [page for page in sorted(DOCS.rglob("*.md")) if page.name != "commands.md"]
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        names = "|".join(COMMANDS)
        lines = re.findall(rf"^ *(?:! )?(secateur (?:-\w+ )?(?:{names}) .*)$", text, re.MULTILINE)
        found += [(page.relative_to(ROOT).as_posix(), line) for line in lines]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_of_the_documentation_are_there(page: str, line: str) -> None:
    """Options and values are parsed as they stand; what is in brackets may be left out."""
    line = re.sub(r"\s+#.*|\.\.\.", "", line).replace("[", " ").replace("]", " ")
    words = shlex.split(line)[1:]
    words = [word for word in words if word not in ("-v", "-vv", "-q")]
    command: click.Command | None = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
    assert command is not None, line
    parser = command.make_parser(click.Context(command))
    options, rest, _ = parser.parse_args(list(words))
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    assert len(rest) <= sum(99 if p.nargs < 0 else p.nargs for p in arguments), line
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name in options:
            values = options[parameter.name]
            values = values if isinstance(values, list) else [values]
            placeholder = [v for v in values if isinstance(v, str) and v.isupper()]
            if isinstance(parameter.type, click.Choice) and not placeholder:
                assert all(value in parameter.type.choices for value in values), line


# --- notebooks ---------------------------------------------------------------------------

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def shape_of(outputs: list[dict[str, Any]]) -> list[Any]:
    """What outputs say besides numbers, which time and machines change."""

    def words(text: list[str]) -> str:
        return re.sub(r"[\d.,]+(?: [MG](?=\b))?", "0", "".join(text))

    return [
        {kind: words(text) for kind, text in output["data"].items() if kind != "text/plain"}
        if "data" in output
        else words(output["text"])
        for output in outputs
    ]


def test_notebooks_have_outputs() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        code = [cell for cell in read_cells(path) if cell["cell_type"] == "code"]
        assert all(cell["outputs"] for cell in code)
        assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_what_their_cells_give(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    cells = read_cells(path)
    known = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    for wanted, found in zip(known, outputs_of(cells, tmp_path), strict=True):
        assert shape_of(found) == shape_of(wanted)
