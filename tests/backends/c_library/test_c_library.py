"""C libraries in plain C programs: results, memory, threads, names, wrong calls."""

from __future__ import annotations

import ctypes
import json
import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.options import check_name, name_of_file
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import can_run_here, parse_target, targets
from secateur.cli import main
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from ..tvm.graphs import Array, feeds
from . import models
from .calls import Call, Pool, sizes_of, tensors_of

pytestmark = pytest.mark.skipif(not models.has("gcc", "readelf"), reason="needs gcc")

NATIVE = parse_target("native")


_OWN_PARTS = (
    *("threads_c", "description", "context", "call", "cpu", "arithmetic", "entry", "net_pool"),
    *("digest", "dimensions", "constants"),
)
"""Names that files and variables of a library's sources have."""


def expected(model: onnx.ModelProto, folder: Path, inputs: dict[str, Array]) -> bytes:
    """What the artifact for Python computes."""
    compile_model(from_proto(model), NATIVE, folder / "m.so", copies=math.inf)
    return b"".join(a.tobytes() for a in Runtime(folder / "m.so").run(inputs).values())


@pytest.mark.parametrize("threads", ["none", "caller", "own"])
@pytest.mark.parametrize("make", [models.convolutions, models.integers, models.enlarged])
def test_results_are_those_of_the_artifact(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], threads: str
) -> None:
    model = make()
    inputs = feeds(model)
    folder = models.build(model, tmp_path, "net", threads=threads)
    path = models.program(folder, "net", "gcc", "-pthread")
    wanted = expected(model, tmp_path, inputs)
    for number, pool in ((1, "own"), (3, "own"), (1, "pool"), (3, "pool")):
        done = models.run(path, [*inputs.values()], threads=number, pool=pool)
        assert done.returncode == 0, (number, pool, done.stdout)
        assert path.with_name("out").read_bytes() == wanted, (number, pool)


@pytest.mark.parametrize("samples", [1, 5])
def test_a_batch_has_any_number_of_samples(tmp_path: Path, samples: int) -> None:
    model = models.batch()
    folder = models.build(model, tmp_path, "net", threads="none")
    path = models.program(folder, "net")
    x, w = np.random.default_rng(0).random((samples, 6), np.float32), np.ones(4, np.float32)
    done = models.run(path, [x, w], samples=samples)
    assert done.returncode == 0, done.stdout
    wanted = expected(model, tmp_path, {"x": x, "w": w})
    assert path.with_name("out").read_bytes() == wanted


def test_no_samples(tmp_path: Path) -> None:
    """Nothing is computed, so that a result without samples can't be had."""
    w, none = np.ones(4, np.float32), np.empty((0, 6), np.float32)
    folder = models.build(models.batch(), tmp_path / "both", "net")
    done = models.run(models.program(folder, "net"), [none, w], samples=0)
    assert done.stdout.startswith("65 0 ")
    model = models.text("agraph (float[n, 6] x) => (float[n, 6] y) { y = Relu(x) }")
    folder = models.build(model, tmp_path / "one", "net")
    assert models.run(models.program(folder, "net"), [none], samples=0).returncode == 0


def test_samples_without_elements(tmp_path: Path) -> None:
    """However many: they are no work."""
    model = models.text("agraph (float[n, 0] x) => (float[n, 0] y) { y = Relu(x) }")
    folder = models.build(model, tmp_path, "net")
    done = models.run(models.program(folder, "net"), [], samples=2**31 - 1)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "name",
    [
        *("pool", "interface", "check"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in _OWN_PARTS),
    ],
)
def test_a_library_may_have_a_name_of_its_own_parts(tmp_path: Path, name: str) -> None:
    model = models.convolutions()
    folder = models.build(model, tmp_path, name, threads="own")
    inputs = feeds(model)
    path = models.program(folder, name, "gcc", "-pthread")
    assert models.run(path, [*inputs.values()], threads=3, pool="pool").returncode == 0


@pytest.mark.parametrize("pool", ["few", "wrong"])
def test_a_pool_that_leaves_out_tasks_is_found_out(tmp_path: Path, pool: str) -> None:
    model = models.convolutions()
    folder = models.build(model, tmp_path, "net")
    path = models.program(folder, "net")
    done = models.run(path, [*feeds(model).values()], threads=3, pool=pool)
    assert (done.returncode, done.stdout.split()[0]) == (1, "70")


def test_what_an_earlier_library_left_goes(tmp_path: Path) -> None:
    onnx.save(models.batch(), tmp_path / "net.onnx")
    words = ["compile", tmp_path / "net.onnx", "-o", tmp_path / "o", "--target", "native"]
    for more in (["--weights-apart"], []):
        done = CliRunner().invoke(main, [*map(str, words), "--format", "library", *more])
        assert done.exit_code == 0, done.output
        assert (tmp_path / "o" / "net.weights").exists() == bool(more)


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = models.integers()
    folder = models.build(model, tmp_path, "net", threads="none", weights_apart=True)
    path = models.program(folder, "net")
    inputs = feeds(model)
    weights = folder / "net.weights"
    assert models.run(path, [*inputs.values()], str(weights)).returncode == 0
    assert path.with_name("out").read_bytes() == expected(model, tmp_path, inputs)
    assert models.run(path, [*inputs.values()]).stdout.startswith("68 0 weights are missing")
    content = weights.read_bytes()
    for wrong in (content[:-64], bytes([content[0] ^ 1]) + content[1:], b""):
        weights.write_bytes(wrong)
        assert models.run(path, [*inputs.values()], str(weights)).stdout.startswith("68 0 ")


def test_a_fault_is_a_status_that_names_the_call(tmp_path: Path) -> None:
    folder = models.build(models.lookup(), tmp_path, "net")
    path = models.program(folder, "net")
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    good = np.array([4, 0, -5])
    assert models.run(path, [good, table]).returncode == 0
    np.testing.assert_array_equal(
        np.fromfile(path.with_name("out"), np.float32).reshape(3, 2), table[good]
    )
    for bad in ([5, 0, 0], [0, 0, -6], [2**32, 0, 0], [0, -(2**63), 0]):
        done = models.run(path, [np.array(bad), table])
        assert done.returncode == 1
        code, call, words = done.stdout.split(maxsplit=2)
        assert (code, words.strip()) == ("1", "an index is out of range")
        calls = json.loads((folder / "net.json").read_text())["calls"]
        assert calls[int(call)]["operator"] == "Gather"


def test_names_of_tensors_are_written_so_that_any_compiler_takes_them(tmp_path: Path) -> None:
    """As C99 and as C++, with warnings as errors; what the names say stays."""
    folder = models.build(models.lookup(), tmp_path, "net", labels=('"', "\n", "猫", "*/"))
    source = folder / "names.cc"
    source.write_text(
        '#include "net.h"\n#include <cstdio>\n'
        'int main() { std::printf("%s|%s|%s|%s", NET_INPUT_0_NAME, net_outputs[0].name,'
        " net_labels[2], net_labels[0]); }\n",
        encoding="utf-8",
    )
    models.program(folder, "net")
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic", source]
    command += [folder / "libnet.a", "-lm", "-o", folder / "names"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([folder / "names"], capture_output=True, check=True).stdout.decode()
    assert said == 'a*/"\\\n%s??/|größe|猫|"'


def test_several_libraries_in_one_program(tmp_path: Path) -> None:
    """They share kernels that are the same, and no other name."""
    for name in ("first", "second"):
        models.build(models.convolutions(), tmp_path, name)
    models.build(models.batch(), tmp_path, "third", threads="own")
    source = tmp_path / "all.c"
    source.write_text(
        "\n".join(f'#include "{n}.h"' for n in ("first", "second", "third"))
        + "\nint main(void) { return first_run(0) == 64 && second_run(0) == 64 && "
        "third_run(0) == 64 && first_workspace_bytes(0) == FIRST_WORKSPACE_BYTES ? 0 : 1; }\n"
    )
    libraries = [tmp_path / f"lib{n}.a" for n in ("first", "second", "third")]
    command = ["gcc", *models.FLAGS, source, *libraries, "-lm", "-pthread", "-o", tmp_path / "all"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "all"], check=False).returncode == 0


@pytest.mark.parametrize("threads", ["none", "caller"])
def test_nothing_is_kept_and_nothing_allocated(tmp_path: Path, threads: str) -> None:
    """No data that a program can write, and of libc only what computes and copies."""
    model = models.convolutions()
    for made in (model, models.lookup(), models.enlarged()):
        folder = models.build(made, tmp_path, "net", threads=threads)
        archive = str(folder / "libnet.a")
        sections = subprocess.run(["readelf", "-SW", archive], capture_output=True, text=True)
        for name, size in re.findall(
            r"\] (\.(?:data|bss|tdata|tbss)\S*) +\w+ +\w+ \w+ (\w+)", sections.stdout
        ):
            assert int(size, 16) == 0 or name.startswith(".data.rel.ro"), name
        names = subprocess.run(["nm", "-u", str(folder / "libnet.so"), "-D"], capture_output=True)
        needed = set(re.findall(r" U (\w+)", names.stdout.decode()))
        assert needed <= {"memcpy", "memset", "memmove", "getauxval"}


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = models.build(models.integers(), tmp_path / "a", "net")
    second = models.build(models.integers(), tmp_path / "b", "net")
    files = sorted(p.name for p in first.iterdir())
    assert files == ["libnet.a", "libnet.so", "net.h", "net.hpp", "net.json", "net.pc", "net.py"]
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_quantization_parameters_of_inputs_and_outputs(tmp_path: Path) -> None:
    model = models.text(
        """agraph (uint8[1, 4] x) => (int8[1, 4] y)
        <float s = {0.5}, uint8 z = {7}, float t = {0.25}, int8 o = {-3}> {
        a = DequantizeLinear(x, s, z)
        b = Relu(a)
        y = QuantizeLinear(b, t, o)
        }"""
    )
    folder = models.build(model, tmp_path, "net")
    header = (folder / "net.h").read_text()
    for line in ("INPUT_0_SCALE 0.5", "INPUT_0_ZERO_POINT 7", "OUTPUT_0_SCALE 0.25"):
        assert f"#define NET_{line}\n" in header
    fields = json.loads((folder / "net.json").read_text())
    assert [fields["outputs"][0][k] for k in ("scale", "zero_point")] == [0.25, -3]


# --- wrong calls, through the shared library ---


_WRONG: dict[str, tuple[int, Callable[[Call], None]]] = {
    "version": (64, lambda c: setattr(c, "version", 3)),
    "no inputs": (64, lambda c: setattr(c, "inputs", None)),
    "no outputs": (64, lambda c: setattr(c, "outputs", None)),
    "fewer inputs": (64, lambda c: setattr(c, "input_count", 1)),
    "more outputs": (64, lambda c: setattr(c, "output_count", 3)),
    "no data": (65, lambda c: setattr(c.inputs[0], "data", None)),
    "misaligned": (65, lambda c: setattr(c.inputs[0], "data", c.inputs[0].data + 1)),
    "few bytes": (65, lambda c: setattr(c.inputs[0], "bytes", 47)),
    "rank": (65, lambda c: setattr(c.inputs[0], "rank", 1)),
    "sizes": (65, lambda c: setattr(c.inputs[0], "dimensions", sizes_of(2, 5))),
    "more samples than bytes": (65, lambda c: setattr(c.inputs[0], "dimensions", sizes_of(3, 6))),
    "samples beyond all": (65, lambda c: setattr(c.inputs[0], "dimensions", sizes_of(2**61, 6))),
    "negative samples": (65, lambda c: setattr(c.inputs[0], "dimensions", sizes_of(-1, 6))),
    "second input": (65 | 1 << 8, lambda c: setattr(c.inputs[1], "data", None)),
    "no result": (66, lambda c: setattr(c.outputs[0], "data", None)),
    "misaligned result": (66, lambda c: setattr(c.outputs[0], "data", c.outputs[0].data + 2)),
    "small result": (66 | 1 << 8, lambda c: setattr(c.outputs[1], "bytes", 15)),
    "rank of result": (66, lambda c: setattr(c.outputs[0], "rank", 1)),
    "no workspace": (67, lambda c: setattr(c, "workspace", None)),
    "small workspace": (67, lambda c: setattr(c, "workspace_bytes", c.workspace_bytes - 1)),
    "misaligned workspace": (67, lambda c: setattr(c, "workspace", c.workspace + 8)),
    "pool without threads": (70, lambda c: setattr(c, "pool", ctypes.pointer(Pool(None, 0, 1)))),
    "pool without function": (70, lambda c: setattr(c, "pool", ctypes.pointer(Pool(None, 2, 0)))),
}


def _call(library: ctypes.CDLL) -> tuple[Call, list[Array]]:
    """A right call of the library of `models.batch` with two samples, and its results."""
    x, w = np.ones((2, 6), np.float32), np.zeros(4, np.float32)
    results = [np.full((2, 4), 9, np.float32), np.full(4, 9, np.float32)]
    size = library.net_workspace_bytes(None)
    room = np.zeros(size + 64, np.uint8)
    start = room.ctypes.data + -room.ctypes.data % 64

    call = Call(1, 0, tensors_of([x, w]), tensors_of(results), 2, 2, start, size)
    call.kept = (x, w, room)
    return call, results


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = models.build(models.batch(), tmp_path_factory.mktemp("batch"), "net")
    loaded = ctypes.CDLL(str(folder / "libnet.so"))
    loaded.net_workspace_bytes.restype = ctypes.c_size_t
    loaded.net_error_text.restype = ctypes.c_char_p
    return loaded


@pytest.mark.parametrize("name", _WRONG)
def test_a_wrong_call_is_an_error_and_writes_nothing(library: ctypes.CDLL, name: str) -> None:
    status, spoil = _WRONG[name]
    call, results = _call(library)
    spoil(call)
    assert library.net_run(ctypes.byref(call)) == status
    assert all((r == 9).all() for r in results)
    assert b"unknown" not in library.net_error_text(status)


def test_a_right_call_is_none(library: ctypes.CDLL) -> None:
    call, results = _call(library)
    assert library.net_run(ctypes.byref(call)) == 0
    assert not any((r == 9).all() for r in results)
    assert library.net_run(None) == 64
    assert library.net_error_text(63) == b"unknown status"


def test_another_cpu_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """A workspace as another run left it is taken for a CPU that was checked; a new one not."""
    wide = [t for t in targets().values() if t.machine == NATIVE.machine]
    lacking = [t for t in wide if not can_run_here(t)]
    if not lacking:
        pytest.skip("this CPU has everything")
    folder = models.build(models.batch(), tmp_path, "net", target=lacking[-1].name)
    loaded = ctypes.CDLL(str(folder / "libnet.so"))
    loaded.net_workspace_bytes.restype = ctypes.c_size_t
    call, _ = _call(loaded)
    assert loaded.net_run(ctypes.byref(call)) == 69


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1a",
        "a-b",
        "a b",
        "ä",
        "int",
        "class",
        "main",
        "secateur_x",
        "a" * 65,
        "../x",
        "a\n",
        "m",
        "stdio",
        "json",
        "co_await",
        "linux",
    ],
)
def test_names_that_c_cannot_have(name: str) -> None:
    with pytest.raises(SecateurError, match="name "):
        check_name(name)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        *[
            ("m", "model_m"),
            ("resnet-8 (x)", "resnet_8_x"),
            ("8net", "model_8net"),
            ("猫", "model"),
        ],
        *[
            ("int", "model_int"),
            ("x" * 90, "x" * 57),
            ("..", "model"),
            ("pool", "pool"),
            ("math", "model_math"),
        ],
    ],
)
def test_a_library_is_named_after_its_file(stem: str, name: str) -> None:
    assert name_of_file(stem) == name
