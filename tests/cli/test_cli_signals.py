"""Commands that are interrupted or killed leave nothing half-written, and in the end nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model of kernels enough to compile for seconds, and one for scratch."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for index in range(12):
        channels = 8 + index
        shape = (channels + 1, channels, 3, 3)
        weights.append(
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"w{index}")
        )
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"y{index}"], pads=[1] * 4))
        last = f"y{index}"
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, [1, 8, 12, 12])],
        [info(last, TensorProto.FLOAT, None)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "place").mkdir()
    return tmp_path


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command that signals end, also where these tests run in the background."""
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
        "runpy.run_module('secateur', run_name='__main__', alter_sys=True)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=place,
        env={**os.environ, "TMPDIR": str(place / "tmp"), "SECATEUR_CACHE": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def compiling(place: Path) -> subprocess.Popen[str]:
    """A compilation that is under way: its first objects are there."""
    process = start(place, "compile", "m.onnx", "-o", "place/out", "--target", "x86-64-v3")
    deadline = time.monotonic() + 60
    while not list(place.glob("tmp/.secateur-*/*.o")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def left(place: Path) -> list[str]:
    """What the command has written; other libraries keep files of their own in `tmp`."""
    scratch = (place / "tmp").glob(".secateur-*")
    return [p.name for p in [*scratch, *(place / "place").iterdir()]]


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)],
)
def test_signals_end_a_command_with_their_code_and_one_line(
    place: Path, number: signal.Signals
) -> None:
    process = compiling(place)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == CODES[number]
    assert not out
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert not left(place)


_STUCK = """
import ctypes
from pathlib import Path
from secateur.cli import signals
from secateur.ir.scratch import scratch_folder
signals.GRACE = 0.2
with signals.interruptible(), scratch_folder(Path("place")):
    print("ready", flush=True)
    libc = ctypes.CDLL(None)
    mutex = (ctypes.c_long * 16)()
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)  # waits for ever, whatever signals come
"""


def test_native_code_that_does_not_return_is_left(place: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", _STUCK]
    process = subprocess.Popen(command, cwd=place, env=environment, stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "Error: terminated\n")
    assert not left(place)


@pytest.mark.slow
def test_what_a_killed_command_leaves_is_removed_by_the_next(place: Path) -> None:
    process = compiling(place)
    process.kill()
    process.communicate()
    assert left(place)
    done = start(place, "compile", "m.onnx", "-o", "place/out", "--target", "x86-64-v3")
    done.communicate(timeout=120)
    assert done.returncode == 0
    assert left(place) == ["out"]


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_half_written_output(place: Path) -> None:
    def run() -> subprocess.Popen[str]:
        return start(place, "compile", "m.onnx", "-o", "place/out", "--target", "x86-64-v3")

    begun = time.monotonic()
    run().communicate()
    whole = time.monotonic() - begun
    expected = (place / "place/out/model.so").read_bytes()
    chance = random.Random(0)
    for turn in range(24):
        if turn % 2:  # else the output of an earlier run is there to be replaced
            (place / "place/out/model.so").unlink(missing_ok=True)
        process = run()
        time.sleep(chance.uniform(0, 1.1 * whole))
        process.kill()
        process.communicate()
        written = place / "place/out/model.so"
        assert not written.exists() or written.read_bytes() == expected
    run().communicate()
    assert left(place) == ["out"]


@pytest.mark.parametrize("megabytes", [300, pytest.param(420, marks=pytest.mark.slow), 900])
def test_too_little_address_space_is_one_line(place: Path, megabytes: int) -> None:
    """Libraries bear it badly: they must neither abort nor leave a traceback."""
    command = f"ulimit -v {megabytes * 1024}; exec {sys.executable} -m secateur compile m.onnx"
    done = subprocess.run(
        ["sh", "-c", f"{command} -o out --target native --no-cache"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    if done.returncode == 1:
        assert len(done.stderr.splitlines()) == 1
        assert "the address space is limited" in done.stderr
        assert not (place / "out").exists()
