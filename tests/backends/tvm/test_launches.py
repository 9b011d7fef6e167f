"""The thread runtime by itself: every task of a loop runs once, also in forked processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import secateur.backends.tvm.artifact as artifact

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
]

SOURCE = Path(__file__).with_name("launches.c")
RUNTIME = Path(artifact.__file__).with_name("native") / "threads.c"


def run(folder: Path, flags: list[str], launches: int, threads: int, forks: int) -> None:
    """`launches` of each of three callers."""
    program = folder / "launches"
    include = f'-DRUNTIME="{RUNTIME}"'
    command = ["gcc", "-O1", "-g", "-pthread", *flags, include, SOURCE, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "sanitize" in str(flags) and "cannot find" in built.stderr:
        pytest.skip("needs the sanitizer's library")
    assert built.returncode == 0, built.stderr
    arguments = [program, str(launches), str(threads), str(forks)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("threads", [2, 5])
def test_every_task_runs_once_and_children_have_workers(tmp_path: Path, threads: int) -> None:
    run(tmp_path, [], 3000, threads, 40)


def test_no_data_race(tmp_path: Path) -> None:
    run(tmp_path, ["-fsanitize=thread"], 500, 3, 0)


@pytest.mark.slow
def test_many_launches(tmp_path: Path) -> None:
    run(tmp_path, [], 134_000, 4, 100)


@pytest.mark.slow
def test_no_data_race_in_many_launches(tmp_path: Path) -> None:
    run(tmp_path, ["-fsanitize=thread"], 11_400, 4, 0)
