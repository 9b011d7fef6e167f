"""What is distributed: the linked folders arrive as subpackages, and the result works."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ir", "passes", "backends", "models")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    tree = tmp_path_factory.mktemp("tree") / "secateur"
    skipped = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=skipped)
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, tree], check=True)
    return out


def package_files() -> set[str]:
    """Files of the package by their path in it, but for the zoo, which is test data."""
    own = {p.relative_to(ROOT / "secateur") for p in (ROOT / "secateur").rglob("*") if p.is_file()}
    linked = {p.relative_to(ROOT) for f in FOLDERS for p in (ROOT / f).rglob("*") if p.is_file()}
    return {
        f"secateur/{path}"
        for path in own | linked
        if "__pycache__" not in path.parts and path.parts[:2] != ("models", "zoo")
    }


def test_wheel_holds_the_whole_package(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert len(names) == len(set(names))
    assert set(names) == package_files()


def test_sdist_holds_every_file_once(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"pyproject.toml", "README.md", "LICENSE"} <= set(names)
    assert package_files() <= set(names)


def test_installed_wheel_works(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, tmp_path / "site", wheel], check=True)
    code = (
        "import sys; sys.path.insert(0, 'site'); import secateur.ir.graph, secateur.cli; "
        "print(secateur.__file__); secateur.cli.main(['--version'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    where, version = run.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert "version" in version


SMALL = """
import numpy as np, onnx.parser
model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
g (float[2, 4] x) => (float[2, 3] y) { a = MatMul(x, w) y = Relu(a) }''')
w = np.random.default_rng(0).random((4, 3)).astype(np.float32)
model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
onnx.save(model, "m.onnx")
import secateur
report = secateur.optimize("m.onnx", "out", target="native", cache=False)
x = np.ones((2, 4), np.float32)
found = secateur.Runtime("out/model.so").run({"x": x})["y"]
np.testing.assert_allclose(found, np.maximum(x @ w, 0), rtol=1e-5)
"""


def interpreter(version: str) -> str | None:
    """A Python of that version that runs, by any name on the path."""
    for name in (f"python{version}", *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        path = shutil.which(name)
        if path is None:
            continue
        code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        run = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if run.stdout.strip() == version:
            return path
    return None


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_wheel_runs_on_each_python_that_is_there(
    distributions: Path, tmp_path: Path, version: str
) -> None:
    (wheel,) = distributions.glob("*.whl")
    path = interpreter(version)
    if path is None:
        pytest.skip(f"no Python {version}")
    subprocess.run([path, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    found = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", wheel],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution" in found.stderr or "Could not fetch" in found.stderr:
        pytest.skip(f"what it needs can't be installed: {found.stderr[-300:]}")
    assert found.returncode == 0, found.stderr
    run = subprocess.run(
        [python, "-c", SMALL], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    doctor = [python, "-m", "secateur", "doctor"]
    text = subprocess.run(doctor, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"python {version}." in text.lower() or version in text
