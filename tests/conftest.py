"""What holds for all tests: a cache of compiled kernels of this run, one trained model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("fixed")  # the same examples in every run; README.md says how to draw others


WORKERS = 2
"""Processes that run the whole suite, a file at a time each (pytest-xdist)."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the suite out where all of it runs; where files are named, one process is quicker."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    if not whole or not config.pluginmanager.hasplugin("xdist"):
        return
    option = config.option
    if option.numprocesses is None and not option.usepdb and not hasattr(config, "workerinput"):
        option.numprocesses = min(WORKERS, os.cpu_count() or 1)
        option.dist = "loadfile"


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels and tuning results of the user must not decide what tests see.

    The processes of one run share what they compile.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    (folder / "kernels").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(folder / "kernels"))
        yield


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, to be read only, with digits.onnx, calibration.npz and evaluation.npz."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, "-m", "secateur.models.digits", folder], check=True)
    return folder
