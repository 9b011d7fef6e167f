"""C libraries whose sizes a run fixes: in plain C, C++ and Python programs, and wrong calls."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.bench import BenchData
from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.compile import compile_library
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import parse_target
from secateur.checking.library_runner import LibraryRunner
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session

from ..tvm.graphs import Array
from . import models
from .calls import Call, Tensor, sizes_of, tensors_of
from .test_bindings import program as cpp_program
from .test_emulated import MACHINES, tools

pytestmark = pytest.mark.skipif(not models.has("gcc", "readelf"), reason="needs gcc")


def feeds(samples: int, length: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((samples, length, 6)).astype(np.float32),
        "w": random.standard_normal((1, length)).astype(np.float32),
    }


def wanted(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    return list(Session(from_proto(model)).run(inputs).values())


def run(
    path: Path, inputs: list[Array], emulator: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    given = path.with_name("in")
    given.write_bytes(
        b"".join(np.int64(a.shape).tobytes() + np.ascontiguousarray(a).tobytes() for a in inputs)
    )
    words = [*emulator, str(path), str(given), str(path.with_name("out"))]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)


def results(path: Path, like: list[Array]) -> list[Array]:
    """What a run of `open.c` wrote: arrays of the ranks and types of others."""
    content, found = path.with_name("out").read_bytes(), []
    for array in like:
        shape = np.frombuffer(content, np.int64, array.ndim)
        content = content[shape.nbytes :]
        elements = np.frombuffer(content, array.dtype, int(np.prod(shape)))
        content = content[elements.nbytes :]
        found.append(elements.reshape(shape))
    assert not content
    return found


def check(path: Path, model: onnx.ModelProto, samples: int, length: int, *emulator: str) -> None:
    inputs = feeds(samples, length)
    done = run(path, [*inputs.values()], emulator)
    assert done.returncode == 0, (done.returncode, done.stdout)
    right = wanted(model, inputs)
    for own, other in zip(results(path, right), right, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(), ("length=1..70",), ("length=1..70", "n=1..6")])
def test_every_size_that_is_admitted(tmp_path: Path, sizes: tuple[str, ...]) -> None:
    """Samples are independent, and computed one by one or, where they are named, together."""
    model = models.sequence()
    path = models.program(
        models.build(model, tmp_path, "net", sizes=sizes), "net", source=models.OPEN
    )
    for samples, length in ((1, 1), (3, 7), (2, 16), (5, 33), (1, 70)):
        check(path, model, samples, length)


def test_threads_of_the_library(tmp_path: Path) -> None:
    model = models.sequence()
    folder = models.build(model, tmp_path, "net", threads="own")
    alone, shared = (LibraryRunner(folder / "net.py", threads) for threads in (1, 3))
    for length in (3, 200, 40):
        inputs = feeds(2, length)
        for name, array in alone.run(inputs).items():
            np.testing.assert_array_equal(array, shared.run(inputs)[name])


def test_sizes_that_are_refused_are_named(tmp_path: Path) -> None:
    """Before anything is computed, and by the description, too."""
    model = models.sequence()
    folder = models.build(model, tmp_path, "net", sizes=("length=4..64:4",))
    path = models.program(folder, "net", source=models.OPEN)
    said = json.loads((folder / "net.json").read_text())["size_checks"]
    x, w = feeds(1, 8).values()
    for inputs, text in (
        ([feeds(1, 68)["x"], w], "'length' is from 4 to 64"),
        ([feeds(1, 6)["x"], w[:, :6]], "multiple of 4"),
        ([x, w[:, :4]], "input 'w': axis 1: must be "),
        ([x[:, :, :5], w], "input 'x': axis 2: must be 6"),
        ([x[:, :0], w[:, :0]], "'length' is from 4 to 64"),
    ):
        done = run(path, inputs)
        code, number, words = done.stdout.split(maxsplit=2)
        assert (done.returncode, code) == (1, "6"), done
        assert text in words
        assert said[int(number)]["text"] in words


@pytest.mark.slow
def test_no_workspace_is_larger_than_the_largest(tmp_path: Path) -> None:
    """Of sizes at random, though smaller buffers may leave worse gaps."""
    model = models.text(
        """agraph (float[a, b] x, float[b, c] z) => (float[a, c] y) {
        p = MatMul(x, z)
        q = Softmax <axis = 0> (p)
        t = Transpose(z)
        r = CumSum(t, zero)
        u = MatMul(q, r)
        v = Sqrt(u)
        s = Softmax <axis = 0> (v)
        y = MatMul(s, z)
        }"""
    )
    zero = onnx.numpy_helper.from_array(np.array(0, np.int64), "zero")
    model.graph.initializer.append(zero)
    folder = models.build(model, tmp_path, "net", sizes=("a=1..300", "b=1..40", "c=1..90"))
    library = ctypes.CDLL(str(folder / "libnet.so"))
    library.net_workspace_bytes.restype = ctypes.c_size_t
    runner = LibraryRunner(folder / "net.py")
    largest = library.net_workspace_bytes(None)
    text = (folder / "net.h").read_text()
    assert f"#define NET_WORKSPACE_BYTES {largest}u\n" in text
    random = np.random.default_rng(0)
    sizes = [random.integers(1, (301, 41, 91)) for _ in range(300)]
    found = []
    for a, b, c in [*sizes, (300, 40, 90)]:
        call = _call({"x": np.empty((a, b), np.float32), "z": np.empty((b, c), np.float32)})
        found.append(library.net_workspace_bytes(ctypes.byref(call)))
    assert 0 < min(found) <= max(found) == largest
    inputs = {"x": np.ones((7, 40), np.float32), "z": np.ones((40, 90), np.float32)}
    np.testing.assert_allclose(runner.run(inputs)["y"], wanted(model, inputs)[0], rtol=1e-4)


def _call(inputs: dict[str, Array], outputs: tuple[Array, ...] = ()) -> Any:
    """A call without a workspace."""
    call = Call(1, 0, tensors_of([*inputs.values()]), None, len(inputs), max(1, len(outputs)))
    call.outputs = tensors_of([*outputs]) if outputs else (Tensor * 1)()
    call.kept = (inputs, outputs)
    return call


def _without_dimensions(call: Any) -> None:
    call.inputs[0].dimensions = None


WRONG = {
    "no dimensions": (65, _without_dimensions),
    "rank": (65, lambda c: setattr(c.inputs[0], "rank", 2)),
    "no data": (65, lambda c: setattr(c.inputs[0], "data", None)),
    "few bytes": (65, lambda c: setattr(c.inputs[0], "bytes", c.inputs[0].bytes - 1)),
    "few bytes of the second": (65 | 1 << 8, lambda c: setattr(c.inputs[1], "bytes", 27)),
    "few bytes of a result": (66, lambda c: setattr(c.outputs[0], "bytes", 4)),
    "rank of a result": (66 | 1 << 8, lambda c: setattr(c.outputs[1], "rank", 2)),
    "no workspace": (67, lambda c: setattr(c, "workspace", None)),
    "misaligned workspace": (67, lambda c: setattr(c, "workspace", c.workspace + 8)),
    "no room for tables": (67, lambda c: setattr(c, "workspace_bytes", 64)),
    "version": (64, lambda c: setattr(c, "version", 0)),
    "fewer outputs": (64, lambda c: setattr(c, "output_count", 1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_an_error_and_writes_nothing(library: ctypes.CDLL, name: str) -> None:
    status, spoil = WRONG[name]
    call, outputs = _right_call(library)
    spoil(call)
    assert library.net_run(ctypes.byref(call)) == status
    assert all((r == 9).all() for r in outputs)


def test_a_right_call_is_none(library: ctypes.CDLL) -> None:
    call, outputs = _right_call(library)
    assert library.net_run(ctypes.byref(call)) == 0
    assert not any((r == 9).all() for r in outputs)
    assert library.net_workspace_bytes(None) == 0  # no size has a bound
    assert library.net_shapes(None) == 64
    huge = 2**62
    call.inputs[0].dimensions = sizes_of(1, huge, 6)
    call.inputs[1].dimensions = sizes_of(1, huge)
    assert library.net_shapes(ctypes.byref(call)) & 255 == 6
    assert library.net_workspace_bytes(ctypes.byref(call)) == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = models.build(models.sequence(), tmp_path_factory.mktemp("open"), "net")
    loaded = ctypes.CDLL(str(folder / "libnet.so"))
    loaded.net_workspace_bytes.restype = ctypes.c_size_t
    return loaded


def _right_call(library: ctypes.CDLL) -> tuple[Any, tuple[Array, ...]]:
    outputs = (np.full((2, 7, 4), 9, np.float32), np.full((2, 6, 7), 9, np.float32))
    call = _call(feeds(2, 7), outputs)
    size = library.net_workspace_bytes(ctypes.byref(call))
    room = np.zeros(size + 64, np.uint8)
    call.workspace = room.ctypes.data + -room.ctypes.data % 64
    call.workspace_bytes = size
    call.room = room
    return call, outputs


_CPP = """
#include "net.hpp"
#include <cstdio>
#include <vector>
int main() {
    std::vector<float> x(2 * 3 * 6, 1.0f), w(3, 2.0f);
    secateur_view<const float, 3> given{x, {2, 3, 6}};
    secateur_view<float, 3> y, z;
    secateur::net model;
    model.shapes(given, {w, {1, 3}}, y, z);
    std::vector<float> a(y.dimensions[0] * y.dimensions[1] * y.dimensions[2]);
    std::vector<float> b(z.dimensions[0] * z.dimensions[1] * z.dimensions[2]);
    y.data = a, z.data = b;
    model.run(given, {w, {1, 3}}, y, z);
    std::printf("%zu %zu %g %g ", a.size(), b.size(), a[0], b[35]);
    try {
        model.run(given, {w, {1, 2}}, y, z);
    } catch (const secateur_error &error) {
        std::printf("%d %s", error.status() & 255, error.what());
    }
}
"""


@pytest.mark.skipif(not models.has("g++"), reason="needs g++")
def test_views_in_cpp(tmp_path: Path) -> None:
    folder = models.build(models.sequence(), tmp_path, "net", threads="none")
    done = subprocess.run([cpp_program(folder, _CPP, "net")], capture_output=True, text=True)
    first = wanted(
        models.sequence(), {"x": np.ones((2, 3, 6), np.float32), "w": np.ones((1, 3), np.float32)}
    )[0].ravel()[0]
    assert done.stdout == f"24 36 {first:.6g} 2 6 input 'w': axis 1: must be length"


def test_names_of_sizes_are_written_so_that_any_compiler_takes_them(tmp_path: Path) -> None:
    model = models.text("agraph (float[n, 6] x) => (float[n, 6] y) { y = CumSum(x, zero) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int64), "zero"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = 'a*/"\\\n??/\x1b[31m/*'
    folder = models.build(model, tmp_path, "net")
    models.program(folder, "net", source=models.OPEN)
    if models.has("g++"):
        cpp_program(folder, '#include "net.hpp"\nint main() { secateur::net model; }\n', "net")
    x = np.ones((3, 6), np.float32)
    np.testing.assert_array_equal(LibraryRunner(folder / "net.py").run({"x": x})["y"][2], 3 * x[0])


def test_a_program_that_measures(tmp_path: Path) -> None:
    model, inputs = models.sequence(), feeds(2, 9)
    outputs = dict(zip("yz", wanted(model, inputs), strict=True))
    options = LibraryOptions("net", bench=True)
    bench = BenchData(inputs, outputs, 1e-4)
    compile_library(from_proto(model), parse_target("native"), tmp_path, options, bench=bench)
    done = subprocess.run([tmp_path / "net_bench", "0.1"], capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert done.returncode == 0
    assert said["agrees"]
    assert said["samples"] == 2
    wrong = BenchData({**inputs, "w": inputs["w"][None]}, outputs, 1e-4)
    with pytest.raises(SecateurError, match="another size"):
        compile_library(from_proto(model), parse_target("native"), tmp_path, options, bench=wrong)


def test_a_target_with_little_memory_needs_bounds(tmp_path: Path) -> None:
    board = tmp_path / "board.toml"
    board.write_text('name = "board"\nbase = "aarch64"\nram_bytes = 20000\n')
    options, target = LibraryOptions("net"), parse_target(str(board))
    for sizes, text in (
        ((), "--size length=1..N"),
        (("length=1..4000",), "20,000 bytes of RAM"),
    ):
        with pytest.raises(SecateurError, match=text):
            compile_library(
                from_proto(models.sequence()),
                target,
                tmp_path,
                options,
                sizes=read_admitted(sizes),
            )
    models.build(models.sequence(), tmp_path, "net", str(board), sizes=("length=1..100",))


@pytest.mark.slow
@pytest.mark.parametrize("target", MACHINES)
def test_results_on_other_machines(tmp_path: Path, target: str) -> None:
    compiler, emulator, _ = tools(target)
    model = models.sequence()
    folder = models.build(model, tmp_path, "net", target=target)
    path = models.program(folder, "net", compiler, "-static", source=models.OPEN)
    for samples, length in ((1, 1), (2, 13), (1, 64)):
        check(path, model, samples, length, *emulator)
    x, w = feeds(1, 8).values()
    assert run(path, [x, w[:, :3]], emulator).stdout.startswith("6 ")
