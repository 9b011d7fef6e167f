"""A process without TVM that runs artifacts, and ONNX Runtime, for tests.

Run as a program it answers pickled requests on its standard input. What it runs may crash:
the test that asked sees a `KilledError`, and the next request starts a new process.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
Feeds = dict[str, Any]

ROOT = Path(__file__).parents[3]
SECONDS = 30.0
REFERENCE_BYTES = 1 << 32
"""What ONNX Runtime may take: hostile sizes ask for more."""


class RefusedError(Exception):
    """What the process ran ended with an error."""


class KilledError(Exception):
    """What the process ran ended it, or didn't end."""


class Child:
    """Asks a process, which starts when it is needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self, path: Path, feeds: Feeds, threads: int = 1) -> dict[str, Array]:
        """The results of an artifact, loaded anew."""
        return self._ask("run", str(path), feeds, threads)  # type: ignore[no-any-return]

    def run_guarded(self, path: Path, feeds: Feeds, threads: int = 1) -> dict[str, Array]:
        """As `run`, with pages that nothing may touch around inputs, outputs and arena."""
        return self._ask("run_guarded", str(path), feeds, threads)  # type: ignore[no-any-return]

    def refer(self, model: bytes, feeds: Feeds) -> dict[str, Array]:
        """The results of ONNX Runtime, its optimizations off."""
        return self._ask("refer", model, feeds)  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, *request: Any) -> Any:
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            payload = pickle.dumps(request)
            try:
                process.stdin.write(struct.pack("<q", len(payload)) + payload)
                process.stdin.flush()
            except BrokenPipeError:
                raise self._killed() from None
            if not select.select([process.stdout], [], [], SECONDS)[0]:
                self.close()
                raise KilledError(f"no answer within {SECONDS:.0f} s")
            header = process.stdout.read(8)
            if len(header) < 8:
                raise self._killed()
            refused, answer = pickle.loads(process.stdout.read(struct.unpack("<q", header)[0]))
        if refused:
            raise RefusedError(answer)
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            variables = {**os.environ, "PYTHONPATH": str(ROOT)}
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=variables,
            )
        return self._process

    def _killed(self) -> KilledError:
        assert self._process is not None
        code = self._process.wait(timeout=SECONDS)
        self._process = None
        return KilledError(signal.Signals(-code).name if code < 0 else f"exit code {code}")


# --- in the process ----------------------------------------------------------------


def run(path: str, feeds: Feeds, threads: int) -> dict[str, Array]:
    from secateur.backends.tvm.artifact.runtime import Runtime

    found = Runtime(path, threads).run(feeds)
    foreign = {"tvm", "tvm_ffi"} & set(sys.modules)
    assert not foreign, f"{foreign} imported"
    return found


def run_guarded(path: str, feeds: Feeds, threads: int) -> dict[str, Array]:
    """By the C interface alone, with the data first at one end of its pages, then at the other."""
    library = _libraries.get(path)
    if library is None:
        library = _libraries[path] = ctypes.CDLL(path)
    text = ctypes.addressof(ctypes.c_char.in_dll(library, "secateur_metadata"))
    metadata = json.loads(ctypes.string_at(text))
    found = [_run_at_end(library, metadata, feeds, threads, back) for back in (False, True)]
    for front, back in zip(*found, strict=True):
        np.testing.assert_array_equal(front, back)
    return {o["name"]: array for o, array in zip(metadata["outputs"], found[0], strict=True)}


_libraries: dict[str, ctypes.CDLL] = {}


def _run_at_end(
    library: ctypes.CDLL, metadata: dict[str, Any], feeds: Feeds, threads: int, back: bool
) -> list[Array]:
    inputs, outputs, given = [], [], list[int]()
    for entry in metadata["inputs"]:
        array = np.asarray(feeds[entry["name"]], order="C")
        given += array.shape
        assert str(array.dtype) == entry["dtype"]
        pairs = zip(entry["shape"], array.shape, strict=True)
        assert all(isinstance(known, str) or known == size for known, size in pairs)
        inputs.append(Guarded(array.nbytes, back))
        inputs[-1].write(array.tobytes())
        inputs[-1].seal()
    shapes, arena_bytes, dimensions = _shapes(library, metadata, given)
    for entry, shape in zip(metadata["outputs"], shapes, strict=True):
        size = int(np.prod(shape)) * np.dtype(entry["dtype"]).itemsize
        outputs.append(Guarded(size, back))
        outputs[-1].write(b"\x5a" * size)
    arena = Guarded(arena_bytes, back)
    arena.write(b"\x5a" * arena_bytes)
    status = library.secateur_run(
        (ctypes.c_void_p * len(inputs))(*(m.address for m in inputs)),
        (ctypes.c_void_p * len(outputs))(*(m.address for m in outputs)),
        ctypes.c_void_p(arena.address),
        threads,
        0,
        len(metadata["calls"]) + 1,
        *dimensions,
    )
    if status == 0 and "data_sizes" in metadata:
        sizes = iter(dimensions[1])
        shapes = [[next(sizes) for _ in shape] for shape in shapes]
    results = [
        np.frombuffer(m.read(), o["dtype"])[: int(np.prod(shape))].reshape(shape)
        for m, o, shape in zip(outputs, metadata["outputs"], shapes, strict=True)
    ]
    for memory in (*inputs, *outputs, arena):
        memory.free()
    if status & 255 == 6:
        raise RefusedError(metadata["size_checks"][status >> 8]["text"])
    if status != 0:
        call = metadata["calls"][status >> 8]
        raise RefusedError(f"fault {status & 255} of '{call['operation']}' ({call['operator']})")
    return results


def _shapes(
    library: ctypes.CDLL, metadata: dict[str, Any], given: list[int]
) -> tuple[list[list[int]], int, tuple[Any, ...]]:
    """The outputs' shapes, the arena's bytes, and what the entry takes besides: for open sizes the
    inputs' dimensions, and where data decide sizes room for those of outputs."""
    shapes = [o["shape"] for o in metadata["outputs"]]
    if "size_checks" not in metadata:
        return shapes, metadata["arena_bytes"], ()
    dimensions = (ctypes.c_int64 * max(1, len(given)))(*given)
    found = (ctypes.c_int64 * max(1, sum(map(len, shapes))))()
    arena = ctypes.c_int64()
    status = library.secateur_shapes(dimensions, found, ctypes.byref(arena))
    if status != 0:
        raise RefusedError(metadata["size_checks"][status >> 8]["text"])
    sizes = iter(found)
    room = ((ctypes.c_int64 * len(found))(),) if "data_sizes" in metadata else ()
    return [[next(sizes) for _ in shape] for shape in shapes], arena.value, (dimensions, *room)


class Guarded:
    """Memory between two pages that nothing may touch, at the beginning or end of its own."""

    def __init__(self, size: int, back: bool) -> None:
        page = mmap.PAGESIZE
        self.size = size
        inner = -(-max(size, 1) // page) * page
        self._whole = inner + 2 * page
        self._base = _libc.mmap(None, self._whole, _NOTHING, _PRIVATE, -1, 0)
        assert self._base not in (None, ctypes.c_void_p(-1).value)
        self._inner = (self._base + page, inner)
        self.address = self._base + page + (inner - size if back else 0)
        assert _libc.mprotect(*self._inner, mmap.PROT_READ | mmap.PROT_WRITE) == 0

    def write(self, content: bytes) -> None:
        ctypes.memmove(self.address, content, len(content))

    def read(self) -> bytes:
        return ctypes.string_at(self.address, self.size)

    def seal(self) -> None:
        """Let nothing write to it."""
        assert _libc.mprotect(*self._inner, mmap.PROT_READ) == 0

    def free(self) -> None:
        _libc.munmap(self._base, self._whole)


_NOTHING = 0
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def refer(model: bytes, feeds: Feeds) -> dict[str, Array]:
    import onnxruntime

    session = _sessions.get(model)
    if session is None:
        resource.setrlimit(resource.RLIMIT_AS, (REFERENCE_BYTES, REFERENCE_BYTES))
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        _sessions[model] = session
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


_sessions: dict[bytes, Any] = {}


def serve() -> None:
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed goes elsewhere
    actions = {"run": run, "run_guarded": run_guarded, "refer": refer}
    while len(header := source.read(8)) == 8:
        name, *arguments = pickle.loads(source.read(struct.unpack("<q", header)[0]))
        try:
            answer = (False, actions[name](*arguments))
        except Exception as error:  # whatever an artifact or ONNX Runtime raises
            answer = (True, str(error) or type(error).__name__)
        payload = pickle.dumps(answer)
        target.write(struct.pack("<q", len(payload)) + payload)
        target.flush()


if __name__ == "__main__":
    serve()
