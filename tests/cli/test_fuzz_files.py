"""Mutated files never make a command crash, hang or take much memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz_files.py"
LIMITS = {"seconds": 60.0, "memory": 2 * 10**9}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_files", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_some_mutated_files(script: ModuleType) -> None:
    assert list(script.fuzz(1, 25, **LIMITS)) == []


def test_a_trial_that_ends_its_process(script: ModuleType) -> None:
    """A DFT of no rank: ONNX Runtime ends the process for most of the shapes that are tried."""
    assert list(script.fuzz(90341, 1, **LIMITS)) == []


@pytest.mark.slow
def test_many_mutated_files(script: ModuleType) -> None:
    assert list(script.fuzz(1000, 100, **LIMITS)) == []


def test_a_crash_is_found(script: ModuleType, tmp_path: Path) -> None:
    """The harness sees the end of the process, and a process that takes too long."""
    worker = script.Worker(seconds=60, memory=1)
    model = tmp_path / "model.onnx"
    model.write_bytes(script.mutated(script.seeds()[0], 1))
    problem = worker.run(model, compile=False)
    worker.stop()
    assert problem is not None
    assert "GB" in problem
    impatient = script.Worker(seconds=0.001, memory=2 * 10**9)
    assert "seconds" in str(impatient.run(model, compile=False))
