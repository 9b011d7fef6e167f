"""Artifacts and C libraries of several targets: which code runs, on which CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.cpu_features import cpu_levels, required_flags
from secateur.backends.tvm.artifact.objects import NATIVE
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import can_run_here, level_here, parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from ...c_library import models
from ..graphs import Net, feeds, quantize

LEVELS = "x86-64-v2,x86-64-v3,x86-64-v4,icelake-server,alderlake"
ORDER = ["icelake-server", "alderlake", "x86-64-v4", "x86-64-v3", "x86-64-v2"]

needs_x86 = pytest.mark.skipif(not can_run_here(parse_target("x86-64-v2")), reason="needs x86-64")
needs_gcc = pytest.mark.skipif(not models.has("gcc", "objdump"), reason="needs gcc and objdump")


def bytes_model() -> onnx.ModelProto:
    """A convolution, a depthwise one and a product of bytes."""
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(16, 8, 1, 1))
    value = net.node("Relu", value)
    value = net.node("Conv", value, net.weight(16, 1, 3, 3), group=16, pads=[1, 1, 1, 1])
    value = net.node("Flatten", value)
    value = net.node("MatMul", value, net.weight(16 * 36, 8))
    return quantize(net.model({"x": (1, 8, 6, 6)}, [value]))


def test_the_best_comes_first() -> None:
    """Whatever the order that they are named in."""
    for names in (LEVELS, ",".join(reversed(LEVELS.split(",")))):
        target = parse_target(names)
        assert [level.name for level in target.levels] == ORDER
        assert target.name == ",".join(ORDER)
    assert parse_target("aarch64, aarch64-cortex-a76").levels[0].name == "aarch64-cortex-a76"
    assert parse_target("x86-64-v3").levels == (parse_target("x86-64-v3"),)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("x86-64-v3,x86-64-v5", "unknown target 'x86-64-v5'; known: native"),
        ("x86-64-v3,", "unknown target ''"),
        (",", "unknown target ''"),
        ("x86-64-v3,\x1b", r"unknown target '\\x1b'"),
        ("x86-64-v3,aarch64", "is for x86_64-linux-gnu, 'aarch64' for aarch64-linux-gnu"),
        ("x86-64-v3,x86-64-v4,x86-64-v3", "'x86-64-v3' is named twice"),
        ("icelake-server,znver4", "'znver4' would never be chosen: 'icelake-server' asks nothing"),
        ("aarch64,aarch64-cortex-a72", "would never be chosen"),
    ],
)
def test_what_can_not_be_one_artifact_is_said(names: str, reason: str) -> None:
    with pytest.raises(SecateurError, match=reason):
        parse_target(names)


def test_a_file_describes_one_target(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("name = 'a'\nbase = 'x86-64-v3,x86-64-v4'")
    with pytest.raises(SecateurError, match="one known target"):
        parse_target(str(tmp_path / "a.toml"))


_CHOICE = """
#include <stdio.h>
#include <stdlib.h>

static unsigned bits[7];
static void secateur_cpuid(unsigned leaf, unsigned subleaf, unsigned *r) {
    r[0] = r[1] = r[2] = r[3] = 0;
    if (leaf == 0) r[0] = 7;
    if (leaf == 1) r[2] = bits[0];
    if (leaf == 7 && subleaf == 0) r[0] = 1, r[1] = bits[1], r[2] = bits[2], r[3] = bits[3];
    if (leaf == 7 && subleaf == 1) r[0] = bits[4];
    if (leaf == 0x80000001u) r[2] = bits[5];
}
static unsigned secateur_xcr0(void) { return bits[6]; }
#define SECATEUR_OTHER_CPU
LEVELS
int main(int count, char **words) {
    (void)count;
    for (int i = 0; i < 7; i++) bits[i] = (unsigned)strtoul(words[i + 1], NULL, 0);
    int levels = sizeof secateur_levels / sizeof *secateur_levels;
    printf("%d", secateur_choose(secateur_levels, levels));
    return 0;
}
"""


@pytest.mark.parametrize(
    ("names", "asks"),
    [
        ("x86-64-v2", False),
        ("x86-64-v3,x86-64-v2", False),
        ("aarch64-neoverse-n1,aarch64", True),
        ("armv7-a", True),
        ("apple-m1", False),
        ("riscv64", False),
        ("riscv64-v", True),
    ],
)
def test_linux_is_asked_of_features_on_other_machines_alone(names: str, asks: bool) -> None:
    """Elsewhere, and where no level needs any, code must not use what a system may lack."""
    assert ("#define SECATEUR_HWCAP" in cpu_levels(parse_target(names).levels)) == asks


@needs_x86
@needs_gcc
def test_a_level_is_chosen_where_the_cpu_has_all_of_it(tmp_path: Path) -> None:
    """On made-up CPUs: each level's own, one bit less of it at a time, and none."""
    target = parse_target(LEVELS)
    table = cpu_levels(target.levels)
    source = tmp_path / "choice.c"
    source.write_text(_CHOICE.replace("LEVELS", table))
    command = ["gcc", "-Wall", "-Werror", f"-I{NATIVE}", source, "-o", tmp_path / "choice"]
    subprocess.run(command, check=True)
    rows = [
        [int(n.rstrip("u"), 0) for n in re.findall(r"0x\w+u", line)] for line in table.splitlines()
    ]
    rows = [row for row in rows if row]
    assert len(rows) == len(ORDER)
    osxsave = 1 << 27

    def chosen(row: list[int]) -> int:
        words = [str(row[0] | osxsave), *map(str, row[1:])]
        return int(subprocess.check_output([tmp_path / "choice", *words]))

    def best(row: list[int]) -> int:
        fits = [all(r & own == own for r, own in zip(row, level, strict=True)) for level in rows]
        return fits.index(True) if True in fits else -1

    for level, row in enumerate(rows):
        assert chosen(row) == best(row) == level
    assert chosen([0] * 7) == -1
    lacking = [
        (level, [v & ~(1 << bit) if k == field else v for k, v in enumerate(rows[level])])
        for level in (0, 1)
        for field, value in enumerate(rows[level])
        for bit in range(32)
        if value >> bit & 1
    ]
    assert len(lacking) > 30
    for level, row in lacking:
        assert chosen(row) == best(row) != level
    everything = [0xFFFFFFFF] * 7
    assert chosen(everything) == 0
    # An operating system that keeps no wide registers, or none at all.
    assert ORDER[chosen([*everything[:6], 0x6])] == "alderlake"
    assert ORDER[chosen([*everything[:6], 0])] == "x86-64-v2"


@needs_x86
def test_an_artifact_runs_the_best_code_that_this_cpu_has(tmp_path: Path) -> None:
    model = bytes_model()
    target = parse_target(LEVELS)
    inputs = feeds(model)
    report = compile_model(from_proto(model), target, tmp_path / "all.so")
    alone = compile_model(from_proto(model), level_here(target), tmp_path / "one.so")
    runtime, one = Runtime(tmp_path / "all.so"), Runtime(tmp_path / "one.so")
    assert (runtime.target, runtime.level) == (target.name, level_here(target).name)
    assert (one.target, one.level) == (level_here(target).name,) * 2
    assert report.kernels > 4 * alone.kernels
    for name, array in one.run(inputs).items():
        np.testing.assert_array_equal(runtime.run(inputs)[name], array)


@needs_x86
def test_equal_weights_lie_in_the_file_once(tmp_path: Path) -> None:
    """Levels with vectors of one width have the same layouts of floats."""
    net = Net(None, 0)
    wide = net.node("MatMul", "x", net.weight(256, 512))
    model = from_proto(net.model({"x": (1, 256)}, [wide]))
    sizes = {
        names: compile_model(model, parse_target(names), tmp_path / "m.so").bytes
        for names in ("x86-64-v3", "x86-64-v3,alderlake", "x86-64-v4,icelake-server")
    }
    weights = 256 * 512 * 4
    assert all(weights < size < 1.2 * weights for size in sizes.values()), sizes


@needs_x86
def test_open_sizes(tmp_path: Path) -> None:
    model = models.text(
        """agraph (float[1, n, 8] x) => (float[1, n, 8] y) <float[8] w = {1,2,3,4,5,6,7,8}> {
        a = Mul(x, w)
        y = Softmax(a)
        }"""
    )
    compile_model(
        from_proto(model), parse_target("x86-64-v2,x86-64-v3,x86-64-v4"), tmp_path / "m.so"
    )
    runtime = Runtime(tmp_path / "m.so")
    for size in (0, 1, 5, 64):
        x = np.random.default_rng(0).random((1, size, 8), np.float32)
        powers = np.exp(x * np.arange(1, 9, dtype=np.float32))
        right = powers / powers.sum(-1, keepdims=True)
        np.testing.assert_allclose(runtime.run({"x": x})["y"], right, rtol=1e-5)
    with pytest.raises(SecateurError, match="'x': shape"):
        runtime.run({"x": np.zeros((1, 5, 7), np.float32)})


@needs_x86
def test_parts_left_to_onnx_runtime(tmp_path: Path) -> None:
    model = models.text(
        """agraph (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) {
        a = Tanh(x)
        y = Exp(a)
        text = Cast <to = 8> (y)
        z = Cast <to = 1> (text)
        }"""
    )
    target = parse_target("x86-64-v2,x86-64-v3")
    report = compile_model(from_proto(model), target, tmp_path / "m.so", fallback=True)
    assert report.kernels > 0
    assert report.left
    runtime = Runtime(tmp_path / "m.so")
    assert (runtime.target, runtime.level) == (target.name, level_here(target).name)
    x = np.random.default_rng(0).random((2, 3), np.float32)
    np.testing.assert_allclose(runtime.run({"x": x})["y"], np.exp(np.tanh(x)), rtol=1e-5)


def test_tuning_is_for_one_target() -> None:
    model = from_proto(bytes_model())
    with pytest.raises(SecateurError, match="one target at a time"):
        compile_model(model, parse_target("x86-64-v2,x86-64-v3"), "m.so", tune_minutes=1)


def test_the_metadata_of_each_level(tmp_path: Path) -> None:
    folder = models.build(bytes_model(), tmp_path, "net", target=LEVELS)
    said = json.loads((folder / "net.json").read_text())
    assert said["target"] == ",".join(ORDER)
    assert [level["target"] for level in said["levels"]] == ORDER
    for level in said["levels"]:
        assert set(level["cpu_flags"]) == required_flags(parse_target(level["target"]))
        assert level["calls"]
    assert '{"icelake-server", "alderlake"' in (folder / "net.h").read_text()
    other = models.build(bytes_model(), tmp_path / "other", "net", target="x86-64-v2,x86-64-v3")
    assert json.loads((other / "net.json").read_text())["digest"] != said["digest"]


@needs_x86
@needs_gcc
def test_each_level_has_its_instructions(tmp_path: Path) -> None:
    """Of those that only better CPUs have, worse levels have none, entry and runtime neither."""
    folder = models.build(bytes_model(), tmp_path, "net", target=LEVELS, threads="own")
    said = json.loads((folder / "net.json").read_text())
    kernels = {
        call["kernel"]: level["target"] for level in said["levels"] for call in level["calls"]
    }
    text = subprocess.check_output(["objdump", "-d", folder / "libnet.a"], text=True)
    found: dict[str, str] = dict.fromkeys([*ORDER, "other"], "")
    for function in re.split(r"\n(?=[0-9a-f]+ <)", text):
        name = re.match(r"[0-9a-f]+ <(\w+)>", function)
        if name is not None:
            kernel = re.sub(r"(_\d+)?(_body)?$", "", name[1])
            level = kernels.get(name[1]) or kernels.get(kernel) or "other"
            found[level] += function
    assert re.search(r"vpdpbusd .*%zmm", found["icelake-server"])
    assert re.search(r"vpdpbusd .*%ymm", found["alderlake"])
    assert "%zmm" in found["x86-64-v4"]
    assert "%ymm" in found["x86-64-v3"]
    for level in ("x86-64-v4", "x86-64-v3", "x86-64-v2", "other"):
        assert "vpdpbusd" not in found[level]
    for level in ("alderlake", "x86-64-v3", "x86-64-v2", "other"):
        assert "%zmm" not in found[level]
        assert "%k1" not in found[level]
    for level in ("x86-64-v2", "other"):
        assert "%ymm" not in found[level]


CPUS = {"Nehalem": "x86-64-v2", "Haswell": "x86-64-v3", "core2duo": None}
"""Of qemu's CPUs, which refuse all instructions that they lack, the level that each runs."""


@needs_x86
@pytest.mark.skipif(not models.has("gcc", "qemu-x86_64"), reason="needs gcc and qemu-x86_64")
def test_libraries_on_other_cpus(tmp_path: Path) -> None:
    """What a CPU can't run is never chosen: emulated CPUs refuse it as real ones do."""
    model = bytes_model()
    inputs = feeds(model)
    compile_model(from_proto(model), parse_target("x86-64-v2"), tmp_path / "m.so")
    right = b"".join(a.tobytes() for a in Runtime(tmp_path / "m.so").run(inputs).values())
    folder = models.build(model, tmp_path, "net", target=LEVELS, threads="own")
    path = models.program(folder, "net", "gcc", "-static", "-pthread")
    asking = tmp_path / "level.c"
    asking.write_text('#include "net.h"\nint main(void) { return net_level() & 255; }')
    command = ["gcc", asking, folder / "libnet.a", "-lm", "-static", "-o", tmp_path / "level"]
    subprocess.run(command, check=True)
    for cpu, level in CPUS.items():
        emulator = ("qemu-x86_64", "-cpu", cpu)
        number = subprocess.run([*emulator, tmp_path / "level"], check=False).returncode
        done = models.run(path, [*inputs.values()], emulator=emulator, threads=2)
        if level is None:
            assert (number, done.stdout.split()[0]) == (255, "69"), cpu
        else:
            assert ORDER[number] == level
            assert done.returncode == 0, (cpu, done.stdout, done.stderr)
            assert path.with_name("out").read_bytes() == right


@needs_x86
@pytest.mark.skipif(not models.has("gcc"), reason="needs gcc")
def test_the_library_as_a_module_of_python(tmp_path: Path) -> None:
    folder = models.build(bytes_model(), tmp_path, "net", target=LEVELS)
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import net; print(net.Model().level)"
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.strip() == level_here(parse_target(LEVELS)).name


_INVOKE = """
import sys
from pathlib import Path
import numpy as np
from secateur.backends.tvm.artifact.library import Library
folder = Path(sys.argv[1])
results = Library(folder / "m.so", 1).invoke(dict(np.load(folder / "in.npz")))
np.savez(folder / "out.npz", **results)
"""


@pytest.mark.slow
@needs_x86
@needs_gcc
@pytest.mark.skipif(
    not can_run_here(parse_target("x86-64-v3")) or can_run_here(parse_target("alderlake")),
    reason="needs a CPU with AVX2 and without AVX-VNNI",
)
@pytest.mark.parametrize("make", [bytes_model, models.integers, lambda: models.lowest(-128)])
def test_code_for_avx_vnni_computes_the_same(tmp_path: Path, make: object) -> None:
    """Its one instruction that this CPU lacks is emulated."""
    assert callable(make)
    model = make()
    inputs = feeds(model)
    compile_model(from_proto(model), parse_target("x86-64-v3"), tmp_path / "m.so")
    right = Runtime(tmp_path / "m.so").run(inputs)
    compile_model(from_proto(model), parse_target("alderlake"), tmp_path / "m.so")
    np.savez(tmp_path / "in.npz", **inputs)
    source, emulator = Path(__file__).with_name("vnni.c"), tmp_path / "vnni.so"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, source, "-o", emulator], check=True)
    command = [sys.executable, "-c", _INVOKE, str(tmp_path)]
    plain = subprocess.run(command, capture_output=True, check=False)
    assert plain.returncode == -4  # SIGILL: it is there
    environment = {**os.environ, "LD_PRELOAD": str(emulator)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")
    for name, array in right.items():
        np.testing.assert_array_equal(found[name], array)
