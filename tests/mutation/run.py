"""Runs tests on a tree with a mutant in it, in a process that has imported the dependencies.

    python -m tests.mutation.run

reads a line of JSON for each run, `{"tests": [...], "limit": seconds}`, and answers `true` where a
test failed, crashed or took more processor time than the limit. Each run is a fork, so that NumPy,
TVM and ONNX's cases are there at once, and the package itself is imported as it is by then.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time

PRELOADED = (
    "click",
    "hypothesis",
    "numpy",
    "onnx.backend.test",
    "onnx.reference",
    "onnx.shape_inference",
    "onnx_graphsurgeon",
    "onnxruntime",
    "pytest",
    "rich",
    "sklearn",
    "tvm",
)
PATIENCE = 6
"""A run may take this many times its processor time by the clock: others use the machine, too."""


def main() -> None:
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from tests.backend_cases import generated_cases

    generated_cases()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(fails(request["tests"], request["limit"])), flush=True)


def fails(tests: list[str], limit: int) -> bool:
    """Whether pytest, in a fork, stops at a failing test, or doesn't end in its time."""
    child = os.fork()
    if child == 0:
        os._exit(run(tests, limit))
    deadline = time.monotonic() + PATIENCE * limit
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            kill_group(child)
            return status != 0
        time.sleep(0.05)
    kill_group(child)
    os.waitpid(child, 0)
    return True


def kill_group(leader: int) -> None:
    """End what a run has left behind: processes that a test began."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def run(tests: list[str], limit: int) -> int:
    """Exit status of pytest."""
    import pytest

    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    options = [
        "-q",
        "-x",
        "-n",
        "0",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=fixed",
        f"--basetemp={tempfile.gettempdir()}/mutant-{os.getppid()}",  # others' stay as they are
    ]
    try:
        return int(pytest.main([*options, *tests]))
    except BaseException:
        return 1


if __name__ == "__main__":
    main()
