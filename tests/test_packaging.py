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
