"""Weights that are packed: every kind of bytes comes back, and damage is found out."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.objects import NATIVE
from secateur.backends.tvm.artifact.packing import MOST_BITS, code_lengths, pack
from secateur.checking.library_runner import LibraryRunner

from ..tvm.graphs import Array, feeds
from . import models
from .test_c_library import expected

pytestmark = pytest.mark.skipif(not models.has("gcc"), reason="needs gcc")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The decoder alone, which stops where it leaves its memory."""
    folder = tmp_path_factory.mktemp("unpack")
    text = (NATIVE / "unpack.c").read_text().replace("int secateur_unpack_1(", "int unpack(")
    (folder / "unpack.c").write_text(text)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    checks = ["-fsanitize=undefined", "-fno-sanitize-recover"]
    command = ["gcc", *flags, *checks, f"-I{NATIVE}", folder / "unpack.c", "-o", folder / "u.so"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "u.so"))


def unpacked(library: ctypes.CDLL, packed: bytes, size: int) -> bytes | None:
    """What is decoded, with bytes around it that must not change; None where it is refused."""
    room = np.full(size + 128, 0xA5, np.uint8)
    done = library.unpack(
        packed,
        ctypes.c_size_t(len(packed)),
        ctypes.c_void_p(room.ctypes.data + 64),
        ctypes.c_size_t(size),
    )
    assert (room[:64] == 0xA5).all()
    assert (room[64 + size :] == 0xA5).all()
    return room[64 : 64 + size].tobytes() if done else None


def laid_out(arrays: list[Array]) -> tuple[bytes, list[tuple[int, Array]]]:
    """Arrays in lines of 64 bytes behind a head, as weights are."""
    content, places = bytearray(bytes(range(64))), []
    for array in arrays:
        places.append((len(content), array))
        content += array.tobytes()
        content += bytes(-len(content) % 64)
    return bytes(content), places


def arrays() -> list[Array]:
    random = np.random.default_rng(0)
    normal = random.standard_normal(5000)
    return [
        normal.astype(np.float32),
        (normal * 20).astype(np.int8),
        random.integers(0, 256, 3000, np.uint8),
        np.full(4000, 7, np.uint8),
        np.zeros((100, 30), np.float32),
        np.arange(3, dtype=np.int64),
        np.where(np.arange(2000) % 1999, 0, 1).astype(np.int16),
        np.empty((0, 4), np.float32),
        (2.0 ** np.arange(-60, 60)).astype(np.float64),
        np.repeat(np.arange(24), 2 ** np.minimum(np.arange(24), 12)).astype(np.uint8),
    ]


def test_all_kinds_of_weights(library: ctypes.CDLL) -> None:
    content, places = laid_out(arrays())
    packed = pack(content, places)
    assert len(packed) < 0.8 * len(content)
    assert unpacked(library, packed, len(content)) == content
    assert unpacked(library, packed, len(content) + 64) == content + bytes([0xA5] * 64)
    assert unpacked(library, packed, len(content) - 1) is None
    assert unpacked(library, pack(b"", []), 0) == b""


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255), st.integers(0, 9)), max_size=5)
)
def test_any_bytes(library: ctypes.CDLL, kinds: list[tuple[int, int, int]]) -> None:
    content, places = laid_out(
        [
            (np.random.default_rng(seed).geometric(0.02 + seed / 12, size) % (top + 1)).astype(
                np.uint8
            )
            for size, top, seed in kinds
        ]
    )
    assert unpacked(library, pack(content, places), len(content)) == content


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 10**9), min_size=256, max_size=256))
def test_codes_are_complete_and_short(counts: list[int]) -> None:
    numbers = np.array(counts, np.int64)
    if (numbers > 0).sum() < 2:
        return
    lengths = code_lengths(numbers)
    assert ((lengths > 0) == (numbers > 0)).all()
    assert lengths.max() <= MOST_BITS
    assert (2.0 ** -lengths[lengths > 0]).sum() == 1
    shares = numbers[numbers > 0] / numbers.sum()
    entropy = -(shares * np.log2(shares)).sum()
    assert entropy <= (shares * lengths[numbers > 0]).sum() < entropy + 1


def test_damage_is_found_out(library: ctypes.CDLL) -> None:
    """Any byte that is another, or missing: nothing is written beside the memory either."""
    content, places = laid_out(arrays())
    packed = pack(content, places)
    random = np.random.default_rng(1)
    for at in [*range(600), *random.integers(0, len(packed), 300)]:
        damaged = bytearray(packed)
        damaged[at] ^= int(random.integers(1, 256))
        assert unpacked(library, bytes(damaged), len(content)) in (None, content)
    for end in (0, 1, 31, 32, 55, 56, 100, len(packed) - 1):
        assert unpacked(library, packed[:end], len(content)) is None
    assert unpacked(library, packed + b"\0", len(content)) is None


_PROGRAM = Path(__file__).parents[3] / "examples" / "device" / "weights.c"


@pytest.mark.parametrize("packed", [False, True])
def test_the_example_maps_or_decodes(tmp_path: Path, packed: bool) -> None:
    model = models.integers()
    options = {"weights_packed": True} if packed else {"weights_apart": True}
    folder = models.build(model, tmp_path / "o", "app_model", threads="none", **options)
    inputs = feeds(model)
    flags = ["-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror", f"-I{folder}"]
    flags += ["-DPACKED"] * packed
    path = tmp_path / "weights"
    command = ["gcc", *flags, _PROGRAM, folder / "libapp_model.a", "-lm", "-o", path]
    subprocess.run(command, check=True)
    file = folder / ("app_model.weights.packed" if packed else "app_model.weights")
    data = b"".join(np.ascontiguousarray(a).tobytes() for a in inputs.values())
    done = subprocess.run([path, file], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected(model, tmp_path, inputs)
    found = LibraryRunner(folder / "app_model.py").run(inputs)
    assert b"".join(a.tobytes() for a in found.values()) == done.stdout
    content = file.read_bytes()
    for wrong in (content[:-1], b"", bytes([content[0] ^ 1]) + content[1:]):
        file.write_bytes(wrong)
        failed = subprocess.run([path, file], input=data, capture_output=True, check=False)
        assert failed.returncode == 1
        assert failed.stderr
