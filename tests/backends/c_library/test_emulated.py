"""C libraries for other machines, run under emulation: linked statically and loaded.

Needs Debian's packages qemu-user and gcc for each machine.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.objects import NATIVE
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.artifact.symbols import LIBC, undefined
from secateur.backends.tvm.artifact.toolchain import compile_source, link_shared
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ..tvm.graphs import feeds
from ..tvm.test_winograd_bytes import convolution, draw, sums
from . import models

pytestmark = pytest.mark.slow

MACHINES = {
    "aarch64": ("aarch64-linux-gnu", ("qemu-aarch64", "-cpu", "cortex-a53")),
    "aarch64-cortex-a72": ("aarch64-linux-gnu", ("qemu-aarch64", "-cpu", "cortex-a72")),
    "aarch64-cortex-a76": ("aarch64-linux-gnu", ("qemu-aarch64", "-cpu", "cortex-a76")),
    "aarch64-neoverse-n1": ("aarch64-linux-gnu", ("qemu-aarch64", "-cpu", "neoverse-n1")),
    "aarch64-neoverse-v2": ("aarch64-linux-gnu", ("qemu-aarch64", "-cpu", "max")),
    "aarch64-android": ("aarch64-linux-gnu", ("qemu-aarch64", "-cpu", "cortex-a53")),
    "armv7-a": ("arm-linux-gnueabihf", ("qemu-arm", "-cpu", "cortex-a9")),
    "armv7-a-cortex-a7": ("arm-linux-gnueabihf", ("qemu-arm", "-cpu", "cortex-a7")),
    "riscv64": ("riscv64-linux-gnu", ("qemu-riscv64",)),
    "riscv64-v": ("riscv64-linux-gnu", ("qemu-riscv64", "-cpu", "rv64,v=true")),
}
"""GCC's name of each target's machine, and the emulator with a CPU that has no more."""


def tools(target: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Compiler, emulator, and emulator of programs that load libraries."""
    triple, emulator = MACHINES[target]
    if not models.has(f"{triple}-gcc", emulator[0]):
        pytest.skip(f"needs {triple}-gcc and {emulator[0]}")
    return f"{triple}-gcc", emulator, (*emulator, "-L", f"/usr/{triple}")


def wanted(model: onnx.ModelProto, folder: Path, inputs: dict[str, Any]) -> bytes:
    compile_model(from_proto(model), parse_target("native"), folder / "m.so", copies=0)
    return b"".join(a.tobytes() for a in Runtime(folder / "m.so").run(inputs).values())


@pytest.mark.parametrize("target", MACHINES)
@pytest.mark.parametrize("make", [models.convolutions, models.integers, models.enlarged])
def test_results_on_other_machines(
    tmp_path: Path, target: str, make: Callable[[], onnx.ModelProto]
) -> None:
    """int8 to the bit."""
    compiler, emulator, loading = tools(target)
    model = make()
    inputs = feeds(model)
    right = np.frombuffer(wanted(model, tmp_path, inputs), np.float32)
    folder = models.build(model, tmp_path, "net", target=target, threads="own")
    static = models.program(folder, "net", compiler, "-static", "-pthread")
    for threads, pool in ((1, "own"), (3, "own"), (3, "pool")):
        done = models.run(static, [*inputs.values()], emulator=emulator, threads=threads, pool=pool)
        assert done.returncode == 0, (done.stdout, done.stderr)
        found = np.fromfile(static.with_name("out"), np.float32)
        if make is models.integers:
            np.testing.assert_array_equal(found, right)
        np.testing.assert_allclose(found, right, atol=1e-4)
    if parse_target(target).system == "android":
        return  # whose loader isn't here
    (folder / "libnet.a").unlink()
    command = [compiler, *models.FLAGS, '-DHEADER="net.h"', "-DMODEL=net", f"-I{folder}"]
    command += [models.RUN, f"-L{folder}", "-lnet", f"-Wl,-rpath,{folder}", "-o", folder / "run"]
    linked = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert linked.returncode == 0, linked.stderr  # -lm too is the library's own need
    done = models.run(folder / "run", [*inputs.values()], emulator=loading)
    assert done.returncode == 0, (done.stdout, done.stderr)
    np.testing.assert_array_equal(np.fromfile(folder / "out", np.float32), found)


@pytest.mark.parametrize("lowest", [-128, -127])
@pytest.mark.parametrize("target", MACHINES)
def test_lowest_numbers(tmp_path: Path, target: str, lowest: int) -> None:
    """Sums of products of the lowest bytes, which pass 16 bits where there are two of -128."""
    compiler, emulator, _ = tools(target)
    model = models.lowest(lowest)
    folder = models.build(model, tmp_path, "net", target=target, threads="none")
    program = models.program(folder, "net", compiler, "-static")
    for number, byte in enumerate((0, 255, 1)):
        inputs = {"x": np.full((1, 24, 7, 7), byte, np.uint8)}
        (tmp_path / str(number)).mkdir()
        right = wanted(model, tmp_path / str(number), inputs)
        done = models.run(program, [*inputs.values()], emulator=emulator)
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert program.with_name("out").read_bytes() == right


@pytest.mark.parametrize("copies", [0.01, math.inf])
@pytest.mark.parametrize("target", ["aarch64-cortex-a72", "armv7-a", "armv7-a-cortex-a7"])
def test_sums_of_bytes_by_winograds_scheme(tmp_path: Path, target: str, copies: float) -> None:
    """Extremes of both types, in runs along the channels: sums of a tile pass 32 bits."""
    compiler, emulator, _ = tools(target)
    random = np.random.default_rng(1)
    weights = draw(random, np.int8, (33, 17, 3, 3))
    for dtype in (np.uint8, np.int8):
        model, x = convolution(weights, (16, 5), dtype, 3), draw(random, dtype, (2, 17, 16, 5))
        folder = tmp_path / np.dtype(dtype).name
        models.build(model, folder, "net", target=target, copies=copies, threads="none")
        assert "winograd" in (folder / "libnet.a").read_bytes().decode("latin1")
        program = models.program(folder, "net", compiler, "-static")
        done = models.run(program, [x], emulator=emulator)
        assert done.returncode == 0, (done.stdout, done.stderr)
        found = np.fromfile(program.with_name("out"), np.int32)
        np.testing.assert_array_equal(found, sums(x, weights, 3).reshape(-1))


@pytest.mark.parametrize("target", MACHINES)
def test_nan_shows_in_the_range_of_bytes(tmp_path: Path, target: str) -> None:
    """Wherever it stands: on ARM the larger of two numbers is another instruction."""
    compiler, emulator, _ = tools(target)
    folder = models.build(models.ranged(), tmp_path, "net", target=target, threads="none")
    program = models.program(folder, "net", compiler, "-static")
    for place in (None, 0, 7, 70, 98):
        x = np.linspace(-1, 3, 99, dtype=np.float32)
        if place is not None:
            x[place] = np.nan
        done = models.run(program, [x], emulator=emulator)
        assert done.returncode == 0, (done.stdout, done.stderr)
        found = np.fromfile(program.with_name("out"), np.float32)
        assert np.isnan(found).all() if place is not None else np.allclose(found, x, atol=0.01)


@pytest.mark.parametrize("target", MACHINES)
def test_faults_on_other_machines(tmp_path: Path, target: str) -> None:
    compiler, emulator, _ = tools(target)
    folder = models.build(models.lookup(), tmp_path, "net", target=target)
    path = models.program(folder, "net", compiler, "-static")
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    for indices, code in (([4, 0, -5], 0), ([2**32, 0, 0], 1), ([0, 0, -(2**63)], 1)):
        done = models.run(path, [np.array(indices), table], emulator=emulator)
        assert done.returncode == code, (done.stdout, done.stderr)


@pytest.mark.parametrize("target", MACHINES)
def test_libraries_name_what_they_need(tmp_path: Path, target: str) -> None:
    """Functions and conversions that not every CPU has, in a program that isn't linked with -lm."""
    compiler, _, loading = tools(target)
    if parse_target(target).system == "android":
        pytest.skip("its loader isn't here; test_systems.py reads what its libraries need")
    model = models.text(
        """agraph (int64[5] i, uint64[5] u, float[5] x, double[5] d) =>
        (float[5] a, float[5] b, double[5] c, double[5] e, int64[5] f, uint64[5] g, float[5] h,
         float[5] k, int64[5] m) {
        a = Cast <to = 1> (i)
        b = Cast <to = 1> (u)
        c = Cast <to = 11> (i)
        e = Cast <to = 11> (u)
        f = Cast <to = 7> (d)
        g = Cast <to = 13> (x)
        h = Round(x)
        k = Sin(x)
        m = Div(i, f)
        }"""
    )
    inputs = {
        "i": np.array([2**53 + 1, -(2**62) - 3, 7, 2**40 + 2**16, -5]),
        "u": np.array([2**64 - 1, 2**63 + 12345, 5, 2**40 + 2**16, 1], np.uint64),
        "x": np.array([1.5, 2.5, 3e9, 4, 5], np.float32),
        "d": np.array([1e18, -7.9, 3.0, 1e10, -2.0]),
    }
    right = wanted(model, tmp_path, inputs)
    folder = models.build(model, tmp_path, "net", target=target)
    loader = folder / "load.c"
    loader.write_text(
        "#include <dlfcn.h>\n#include <stdio.h>\nint main(int n, char **w) {\n"
        "void *l = dlopen(w[n - 1], RTLD_NOW | RTLD_LOCAL);\n"
        'if (!l) puts(dlerror()); return l && dlsym(l, "net_run") ? 0 : 1; }\n'
    )
    command = [compiler, loader, "-ldl", "-o", folder / "load"]
    assert subprocess.run([*map(str, command)], check=False).returncode == 0
    opened = subprocess.run(
        [*loading, folder / "load", folder / "libnet.so"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert opened.returncode == 0, opened.stdout + opened.stderr
    command = [compiler, *models.FLAGS, '-DHEADER="net.h"', "-DMODEL=net", f"-I{folder}"]
    command += [models.RUN, folder / "libnet.so", f"-Wl,-rpath,{folder}", "-o", folder / "run"]
    linked = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert linked.returncode == 0, linked.stderr
    done = models.run(folder / "run", [*inputs.values()], emulator=loading)
    assert done.returncode == 0, (done.stdout, done.stderr)
    found = (folder / "out").read_bytes()
    sine = slice(5 * (4 + 4 + 8 + 8 + 8 + 8 + 4), 5 * (4 + 4 + 8 + 8 + 8 + 8 + 4 + 4))
    np.testing.assert_allclose(
        np.frombuffer(found[sine], np.float32), np.frombuffer(right[sine], np.float32), atol=1e-6
    )
    assert found[: sine.start] + found[sine.stop :] == right[: sine.start] + right[sine.stop :]
    dynamic = subprocess.run(
        ["readelf", "-dW", folder / "libnet.so"], capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"NEEDED.*\[(.*)\]", dynamic)) <= {"libc.so.6", "libm.so.6"}


def test_a_cpu_without_dot_products_is_refused(tmp_path: Path) -> None:
    compiler, _, _ = tools("aarch64-cortex-a76")
    folder = models.build(models.integers(), tmp_path, "net", target="aarch64-cortex-a76")
    path = models.program(folder, "net", compiler, "-static")
    inputs = [*feeds(models.integers()).values()]
    done = models.run(path, inputs, emulator=("qemu-aarch64", "-cpu", "cortex-a72"))
    assert (done.returncode, done.stdout.split()[0]) == (1, "69")


_DIVISION = """
typedef long long l; typedef unsigned long long ul; typedef unsigned u;
l a(l x, l y) { return x / y; } l b(l x, l y) { return x % y; }
ul c(ul x, ul y) { return x / y; } ul d(ul x, ul y) { return x % y; }
u e(u x, u y) { return x / y; } u f(u x, u y) { return x % y; }
int g(int x, int y) { return x / y; } int h(int x, int y) { return x % y; }
"""

_DIVIDING = """
#include <stdint.h>
typedef long long l; typedef unsigned long long ul; typedef unsigned u;
l a(l, l), b(l, l); ul c(ul, ul), d(ul, ul); u e(u, u), f(u, u); int g(int, int), h(int, int);
int main(void) {
    l v[] = {1, -1, 2, -7, 10, 1000003, -1000003, INT32_MAX, INT32_MIN, 1ll << 40, 17 - (1ll << 40),
             INT64_MAX, INT64_MIN + 1, 123456789012345ll, -98765432109876ll};
    int n = sizeof v / sizeof *v, wrong = 0;
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < n; k++) {
            l x = v[i], y = v[k];
            wrong += a(x, y) != x / y || b(x, y) != x % y;
            wrong += c(x, y) != (ul)x / (ul)y || d(x, y) != (ul)x % (ul)y;
            if ((u)y == 0) continue;
            wrong += e(x, y) != (u)x / (u)y || f(x, y) != (u)x % (u)y;
            if ((int)y == -1) continue;
            wrong += g(x, y) != (int)x / (int)y || h(x, y) != (int)x % (int)y;
        }
    }
    return wrong;
}
"""


@pytest.mark.parametrize("target", ["armv7-a", "armv7-a-cortex-a7"])
def test_division_in_c_without_a_compilers_library(tmp_path: Path, target: str) -> None:
    """What an entry computes of sizes: shared objects have all that it takes."""
    compiler, _, loading = tools(target)
    machine = parse_target(target)
    (tmp_path / "own.c").write_text(_DIVISION)
    objects = []
    for source in (tmp_path / "own.c", NATIVE / "arithmetic.c"):
        objects.append(tmp_path / source.with_suffix(".o").name)
        compile_source(machine, source, objects[-1], freestanding=True)
    link_shared(machine, objects, tmp_path / "libown.so")
    assert undefined(tmp_path / "libown.so") <= LIBC
    (tmp_path / "run.c").write_text(_DIVIDING)
    command = [compiler, "run.c", "-L.", "-lown", f"-Wl,-rpath,{tmp_path}", "-o", "run"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert subprocess.run([*loading, str(tmp_path / "run")], check=False).returncode == 0
