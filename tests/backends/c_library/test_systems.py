"""C libraries for systems other than Linux: what can be told of them here."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.symbols import libraries, undefined
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import can_run_here, parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from . import models


@pytest.mark.skipif(not models.has("readelf"), reason="needs readelf")
@pytest.mark.parametrize("target", ["aarch64-android", "armv7-a-android"])
def test_android(tmp_path: Path, target: str) -> None:
    """Bionic's libraries are named, and have all that is needed; segments fit its pages."""
    assert not can_run_here(parse_target(target))
    folder = models.build(models.convolutions(), tmp_path, "net", target=target, threads="own")
    path = folder / "libnet.so"
    said = subprocess.check_output(["readelf", "-dlW", path], text=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", said)
    own = {name for name in libraries(parse_target(target)) if name in needed}
    assert own == set(needed) <= {"libc.so", "libm.so"}
    assert undefined(path) <= {s for n in own for s in libraries(parse_target(target))[n]}
    alignments = [int(line.split()[-1], 0) for line in said.splitlines() if " LOAD " in line]
    assert min(alignments) >= 16384


def test_calls_on_armv7_with_android_take_floats_in_integer_registers(tmp_path: Path) -> None:
    if not models.has("readelf"):
        pytest.skip("needs readelf")
    for target, hard in (("armv7-a-android", False), ("armv7-a", True)):
        folder = models.build(models.batch(), tmp_path / target, "net", target=target)
        said = subprocess.check_output(["readelf", "-A", folder / "libnet.so"], text=True)
        assert ("Tag_ABI_VFP_args: VFP registers" in said) == hard


def members(archive: Path) -> dict[str, bytes]:
    """The files of a static library by name, those of its index left out."""
    content, at = archive.read_bytes(), 8
    assert content[:8] == b"!<arch>\n"
    found = {}
    while at < len(content):
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        start = at + 60
        if name.startswith("#1/"):  # BSD's, before the content
            length = int(name[3:])
            name = content[start : start + length].rstrip(b"\0").decode()
            found[name] = content[start + length : start + size]
        else:
            found[name] = content[start : start + size]
        at = start + size + size % 2
    return {n: c for n, c in found.items() if not n.startswith(("/", "__.SYMDEF"))}


@pytest.mark.parametrize("threads", ["none", "caller", "own"])
def test_apple(tmp_path: Path, threads: str) -> None:
    target = parse_target("apple-m1")
    assert not can_run_here(target)
    model = models.integers()
    folder = models.build(model, tmp_path / "o", "net", target="apple-m1", threads=threads)
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["libnet.a", "net.h", "net.hpp", "net.json", "net.pc"]
    objects = members(folder / "libnet.a")
    assert len(objects) > 3
    for name, content in objects.items():
        magic, machine = struct.unpack_from("<II", content)
        assert (magic, machine) == (0xFEEDFACF, 0x0100000C), name  # 64 bits, ARM
        assert b"_getauxval" not in content
    assert b"_net_run" in objects["secateur_entry.o"]
    with pytest.raises(SecateurError, match="--format library makes a static library"):
        compile_model(from_proto(model), target, tmp_path / "m.so")


@pytest.mark.slow
def test_apple_programs_link(tmp_path: Path) -> None:
    """By Zig's own linker and what it knows of macOS."""
    ziglang = pytest.importorskip("ziglang")
    zig = Path(ziglang.__file__).with_name("zig")
    folder = models.build(models.integers(), tmp_path, "net", target="apple-m1", threads="own")
    flags = ["-std=c99", "-D_ISOC11_SOURCE", '-DHEADER="net.h"', "-DMODEL=net", f"-I{folder}"]
    command = [zig, "cc", "-target", "aarch64-macos", *flags, models.RUN, folder / "libnet.a"]
    done = subprocess.run(
        [*map(str, command), "-o", str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run").read_bytes()[:4] == struct.pack("<I", 0xFEEDFACF)
