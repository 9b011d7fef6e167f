"""Packages that extend secateur: the one in examples/, and broken ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.ir.plugins import imported

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples"


def install(package: Path, folder: Path) -> None:
    """What pip would put into `folder`: the package, and what its metadata says."""
    project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]
    name = project["name"].replace("-", "_")
    shutil.copytree(package / name, folder / name)
    info = folder / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(header)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def package(folder: Path, name: str, group: str, value: str, code: str) -> Path:
    """A package of one module that brings one thing along."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "1"\n'
        f'[project.entry-points."secateur.{group}"]\nthing = "{value}"\n'
    )
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True
    )


COMPILED = """
from pathlib import Path
import numpy as np
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.dependencies.analysis import analyze
from secateur.ir.infer import infer_shapes
from secateur.ir.text import parse_model

model = parse_model('''
model <ir_version = 8, opset = ["" = 17, "org.example" = 1]>
graph g (%x: float[5, 3]) -> (%y: float[*]) {
  %r = Relu(%x)
  %y = "org.example"::Softcap(%r) {cap = 2.0}
}
''')
infer_shapes(model)
assert model.graph.outputs[0].shape == (5, 3)
assert not analyze(model).unruled
compile_model(model, parse_target("native"), Path("m.so"))
x = np.linspace(-9, 9, 15).reshape(5, 3).astype(np.float32)
y = Runtime(Path("m.so")).run({"x": x})["y"]
np.testing.assert_allclose(y, 2 * np.tanh(np.maximum(x, 0) / 2), rtol=1e-6)
"""

NAMED = """
from secateur.ir.text import parse_model
from secateur.passes.pipeline import format_pipeline, parse_pipeline

passes = parse_pipeline("name-nodes{prefix=part}")
assert format_pipeline(passes) == "name-nodes{prefix=part}"
model = parse_model('''
model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[5]) -> (%y: float[5]) {
  %a = Relu(%x)
  %y = Neg @mine(%a)
}
''')
result = passes[0].run(model)
assert result.statistics == {"named": 1}
assert [n.name for n in model.graph.nodes] == ["part_Relu_0", "mine"]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(EXAMPLE, folder)
    return folder


def test_the_example_brings_an_operator(installed: Path) -> None:
    pytest.importorskip("tvm")
    result = run(installed, "-c", COMPILED)
    assert result.returncode == 0, result.stderr


def test_the_example_brings_a_pass(installed: Path) -> None:
    result = run(installed, "-c", NAMED)
    assert result.returncode == 0, result.stderr


def test_the_example_brings_a_target(installed: Path) -> None:
    result = run(installed, "-m", "secateur", "targets")
    assert "example-board" in result.stdout
    assert "the board on our desk" in result.stdout


def test_the_example_brings_a_criterion(installed: Path) -> None:
    code = """
import numpy as np
from secateur.passes.prune.importance import find_criterion
assert find_criterion("largest").of_weights(np.array([[1.0, -3.0], [2.0, 0.0]])).tolist() == [3, 2]
"""
    result = run(installed, "-c", code)
    assert result.returncode == 0, result.stderr


def test_the_example_brings_a_metric(installed: Path) -> None:
    code = """
import numpy as np
from secateur.checking.metrics.catalogue import parse_metric
metric = parse_metric("worst-class")
metric.begin(None)
metric.update({"y": np.eye(3)[[0, 1, 1, 2]]}, [0, 1, 2, 2], 4)
assert metric.result() == 0.5
"""
    result = run(installed, "-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("group", "value", "code", "says"),
    [
        ("targets", "bad", "raise RuntimeError('no\\nboard')", "can't be loaded (RuntimeError: no"),
        ("targets", "bad:BOARD", "BOARD = 3", "is no Target, but 3"),
        ("targets", "absent:BOARD", "", "can't be loaded (ModuleNotFoundError"),
        (
            "targets",
            "bad:BOARD",
            "from secateur.backends.tvm.targets import parse_target\n"
            "BOARD = parse_target('x86-64-v2')",
            "another target 'x86-64-v2'",
        ),
    ],
)
def test_a_broken_package_is_one_line(
    tmp_path: Path, group: str, value: str, code: str, says: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(package(tmp_path / "source", "bad", group, value, code), site)
    result = run(site, "-m", "secateur", "targets")
    assert result.returncode == 1
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_a_second_record_of_an_operator_names_the_package(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    code = "from secateur.ir.ops.records import rule\nrule('Relu')(lambda r: None)"
    install(package(tmp_path / "source", "bad", "operators", "bad", code), site)
    script = "from secateur.ir.ops import operators; operators()"
    result = run(site, "-c", script)
    assert "package 'bad': its operators 'thing' (bad) can't be loaded" in result.stderr
    assert "Relu has two records" in result.stderr


def test_functions_are_found_in_the_folder_that_a_command_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python leaves it out for installed commands; what is installed comes first."""
    (tmp_path / "own_functions.py").write_text("def three():\n    return 3\n")
    (tmp_path / "statistics.py").write_text("def mean(values):\n    return 'not this one'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "statistics", raising=False)
    assert imported("own_functions:three", "data")() == 3
    assert imported("statistics:mean", "data")([1, 3]) == 2
    monkeypatch.delitem(sys.modules, "own_functions")
