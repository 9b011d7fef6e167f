"""Threads: chosen at run time, without effect on results or on the calling process."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.emission import work
from secateur.backends.tvm.targets import parse_target
from secateur.backends.tvm.tensorir import builder
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from ..graphs import Net, feeds, quantize, reference
from ..test_networks import SETTINGS, networks

NATIVE = parse_target("native")


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split every kernel, however small."""
    monkeypatch.setattr(work, "PARALLEL_OPERATIONS", 0)


def network(size: int = 33, channels: int = 40) -> onnx.ModelProto:
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(channels, 3, 3, 3), net.weight(channels))
    value = net.node("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    depthwise = net.weight(channels, 1, 3, 3)
    value = net.node("Conv", value, depthwise, group=channels, pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(24, channels, 1, 1))
    return net.model({"x": (1, 3, size, size)}, [value])


def compiled(model: onnx.ModelProto, folder: Path) -> Path:
    compile_model(from_proto(model), NATIVE, folder / "m.so")
    return folder / "m.so"


@given(model=networks(), shares=st.sampled_from([1, 16]))
@settings(SETTINGS, max_examples=10)
@pytest.mark.usefixtures("split")
def test_split_kernels_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto, shares: int
) -> None:
    monkeypatch.setattr(builder, "SHARES", shares)
    path = compiled(quantize(model), tmp_path)
    inputs = feeds(model)
    one, two = (Runtime(path, threads).run(inputs) for threads in (1, 2))
    for name, array in reference(quantize(model), inputs).items():
        np.testing.assert_array_equal(one[name], two[name])
        np.testing.assert_array_equal(one[name], array)


@pytest.mark.parametrize(("size", "channels", "some"), [(5, 8, False), (33, 40, True)])
def test_small_kernels_are_not_split(tmp_path: Path, size: int, channels: int, some: bool) -> None:
    cache = Cache.at(tmp_path)
    model = from_proto(network(size, channels))
    compile_model(model, NATIVE, tmp_path / "m.so", cache=cache)
    files = [p.read_bytes() for p in (tmp_path / "objects").rglob("*") if p.is_file()]
    assert any(b'"bodies": [{' in content for content in files) == some
    assert any(b"secateur_share_threads" in content for content in files) == some


def test_numbers_of_threads_alternate(tmp_path: Path) -> None:
    path = compiled(network(), tmp_path)
    runtimes = [Runtime(path, threads) for threads in (1, 2, 999)]
    assert runtimes[2].threads == len(os.sched_getaffinity(0))
    inputs = feeds(network())
    first = runtimes[0].run(inputs)
    for _ in range(3):
        for runtime in runtimes:
            for name, array in runtime.run(inputs).items():
                np.testing.assert_array_equal(array, first[name])


def test_the_number_is_checked(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="threads: 0 is not a positive number"):
        Runtime(compiled(network(5), tmp_path), 0)


_AFFINITY = """
import os, sys
import numpy as np
from secateur.backends.tvm.artifact.runtime import Runtime
assert "tvm" not in sys.modules
before = os.sched_getaffinity(0)
for threads in (1, 2):
    Runtime(sys.argv[1], threads).run({"x": np.zeros((1, 3, 33, 33), np.float32)})
    tasks = {int(t): os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")}
    assert all(cpus == before for cpus in tasks.values()), tasks
assert "tvm" not in sys.modules
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_nothing_is_bound_to_a_cpu_and_tvm_is_not_needed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _AFFINITY, str(compiled(network(), tmp_path))]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("shared", [False, True])
def test_threads_may_call_at_the_same_time(tmp_path: Path, shared: bool) -> None:
    """With runtimes of their own one has the workers, the others do without."""
    path = compiled(network(), tmp_path)
    inputs = feeds(network())
    common = Runtime(path, 2)
    expected = common.run(inputs)
    wrong: list[int] = []

    def call(caller: int) -> None:
        runtime = common if shared else Runtime(path, 2)
        for _ in range(200):
            for name, array in runtime.run(inputs).items():
                if not np.array_equal(array, expected[name]):
                    wrong.append(caller)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
        assert not caller.is_alive()
    assert not wrong


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_forked_process_does_not_wait_for_lost_workers(tmp_path: Path) -> None:
    runtime = Runtime(compiled(network(), tmp_path), 2)
    inputs = feeds(network())
    expected = runtime.run(inputs)
    assert len(os.listdir("/proc/self/task")) > 1
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(runtime.run(inputs)))
    child.start()
    assert receiver.poll(60)
    for name, array in receiver.recv().items():
        np.testing.assert_array_equal(array, expected[name])
    child.join(timeout=60)
    assert child.exitcode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_processes_forked_during_runs_run_with_workers_of_their_own(tmp_path: Path) -> None:
    """Whoever holds the runtime's lock at the time of the fork does not come along."""
    runtime = Runtime(compiled(network(65), tmp_path), 2)
    inputs = feeds(network(65))
    expected = runtime.run(inputs)
    done = threading.Event()

    def keep_running() -> None:
        while not done.is_set():
            runtime.run(inputs)

    callers = [threading.Thread(target=keep_running) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(100):
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # ends it where it waits for ever
                results = [runtime.run(inputs) for _ in range(3)]
                same = all(np.array_equal(r[n], expected[n]) for r in results for n in expected)
                os._exit(0 if same and len(os.listdir("/proc/self/task")) > 1 else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        for caller in callers:
            caller.join()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("overlap", [False, True])
def test_artifacts_that_nobody_uses_any_more_are_unloaded(tmp_path: Path, overlap: bool) -> None:
    """Replaced again and again, also while the last one is still open."""
    sizes = [33, 35]
    parts = []
    for size in sizes:
        (tmp_path / str(size)).mkdir()
        parts.append(compiled(network(size), tmp_path / str(size)))
    inputs = [feeds(network(size)) for size in sizes]
    expected = [Runtime(p, 2).run(i) for p, i in zip(parts, inputs, strict=True)]
    tasks = len(os.listdir("/proc/self/task"))
    kept = []
    for turn in range(40):
        shutil.copy(parts[turn % 2], tmp_path / "new.so")
        os.replace(tmp_path / "new.so", tmp_path / "often.so")
        runtime = Runtime(tmp_path / "often.so", 2)
        for name, array in runtime.run(inputs[turn % 2]).items():
            np.testing.assert_array_equal(array, expected[turn % 2][name])
        kept = [runtime] if overlap else []
        del runtime
        assert len(os.listdir("/proc/self/task")) <= tasks + 1 + overlap
    del kept
    assert "often.so" not in Path("/proc/self/maps").read_text()
    assert not list(Path(tempfile.gettempdir()).glob(".secateur-*/often.so"))


_MANY_RUNS = """
import os, sys
import numpy as np
from secateur.backends.tvm.artifact.runtime import Runtime
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
runtime = Runtime(sys.argv[1], 2)
inputs = {"x": np.zeros((1, 3, 9, 9), np.float32)}
for _ in range(2_000):
    runtime.run(inputs)
sizes = [resident()]
for _ in range(4):
    for _ in range(25_000):
        runtime.run(inputs)
    sizes.append(resident())
grown = [after - before for before, after in zip(sizes, sizes[1:])]
assert min(grown) < 25_000, grown  # allocators grow once, what leaks a byte a run does each time
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_many_runs_take_no_more_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MANY_RUNS, str(compiled(network(9), tmp_path))]
    assert subprocess.run(command, timeout=600, check=False).returncode == 0
