"""What artifacts bring along besides their kernels."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact import objects
from secateur.backends.tvm.artifact.build import check_symbols
from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.artifact.symbols import LIBC, undefined
from secateur.backends.tvm.artifact.toolchain import compile_source, link_shared
from secateur.backends.tvm.compile import compile_library, compile_model
from secateur.backends.tvm.targets import parse_target, targets
from secateur.ir.errors import UnsupportedError
from secateur.ir.onnx_io import from_proto

from ..graphs import quantize
from .test_threads import network


def linked_targets() -> list[Any]:
    """Targets whose artifacts are linked here; all but the first of a system and width of vectors,
    whose code needs no more, run with the slow tests."""
    found, kinds = [], set()
    for name, target in targets().items():
        if target.links:
            kind = (target.llvm()["mtriple"], target.block)
            found.append(pytest.param(name, marks=[pytest.mark.slow] if kind in kinds else []))
            kinds.add(kind)
    return found


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("target", linked_targets())
def test_artifacts_need_nothing_but_libc(tmp_path: Path, target: str) -> None:
    compile_model(from_proto(quantize(network())), parse_target(target), tmp_path / "m.so")
    command = ["nm", "-D", "--undefined-only", "--format=just-symbols", tmp_path / "m.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = {name.partition("@")[0] for name in found}
    assert names == undefined(tmp_path / "m.so")
    assert names <= LIBC


@pytest.mark.skipif(shutil.which("objcopy") is None, reason="needs objcopy and ar")
def test_what_each_object_has_is_in_a_shared_one_once(tmp_path: Path) -> None:
    """TVM puts conversions of float16 into each."""
    model = from_proto(quantize(network()))
    options = LibraryOptions("net", threads="none")
    compile_library(model, parse_target("x86-64-v3"), tmp_path, options)
    subprocess.run(["ar", "x", "libnet.a", "00000.o"], cwd=tmp_path, check=True)
    section = "--only-section=.text.tvm.fp16.conv"
    command = ["objcopy", "-O", "binary", section, "00000.o", "code"]
    subprocess.run(command, cwd=tmp_path, check=True)
    code = (tmp_path / "code").read_bytes()
    assert len(code) > 64
    assert (tmp_path / "libnet.a").read_bytes().count(code[:64]) > 2
    assert (tmp_path / "libnet.so").read_bytes().count(code[:64]) <= 1


def test_what_libc_does_not_suffice_for_is_refused(tmp_path: Path) -> None:
    native = parse_target("native")
    (tmp_path / "m.c").write_text("int other(void); int run(void); int run() { return other(); }")
    compile_source(native, tmp_path / "m.c", tmp_path / "m.o")
    link_shared(native, [tmp_path / "m.o"], tmp_path / "m.so")
    with pytest.raises(UnsupportedError, match="would need other, which libc lacks"):
        check_symbols(tmp_path / "m.so", native)


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions, under names of their own, as this machine's code."""
    folder = tmp_path_factory.mktemp("arithmetic")
    text = (objects.NATIVE / "arithmetic.c").read_text().replace('"hidden"', '"default"')
    text = re.sub(r"\b__(?=u?(div|mod|fix|float|aeabi))", "own_", text)
    (folder / "arithmetic.c").write_text(text)
    native = parse_target("native")
    compile_source(native, folder / "arithmetic.c", folder / "arithmetic.o")
    link_shared(native, [folder / "arithmetic.o"], folder / "arithmetic.so")
    return ctypes.CDLL(str(folder / "arithmetic.so"))


@given(st.sampled_from([32, 64]), st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
def test_division(arithmetic: ctypes.CDLL, bits: int, signed: bool, data: st.DataObject) -> None:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    number, by = (data.draw(st.integers(low, high)) for _ in range(2))
    assume(by != 0 and (number, by) != (low, -1))
    kind = getattr(ctypes, f"c_{'' if signed else 'u'}int{bits}")
    suffix = "si3" if bits == 32 else "di3"
    prefix = "" if signed else "u"
    quotient = abs(number) // abs(by) * (1 if (number < 0) == (by < 0) else -1)
    for name, expected in (("div", quotient), ("mod", number - quotient * by)):
        function = getattr(arithmetic, f"own_{prefix}{name}{suffix}")
        function.restype, function.argtypes = kind, [kind, kind]
        assert function(number, by) == expected
    if bits == 32:
        both = getattr(arithmetic, f"own_aeabi_{'' if signed else 'u'}idivmod")
        both.restype, both.argtypes = ctypes.c_uint64, [kind, kind]
        pair = both(number, by)
        assert kind(pair & 0xFFFFFFFF).value == quotient
        assert kind(pair >> 32).value == number - quotient * by


@given(st.booleans(), st.booleans(), st.data())
@settings(max_examples=500, deadline=None)
def test_integers_to_floats(
    arithmetic: ctypes.CDLL, signed: bool, double: bool, data: st.DataObject
) -> None:
    low, high = (-(1 << 63), (1 << 63) - 1) if signed else (0, (1 << 64) - 1)
    near = st.tuples(st.integers(0, 63), st.integers(-3, 3)).map(lambda p: (1 << p[0]) + p[1])
    halves = st.tuples(st.integers(1, (1 << 25) - 1), st.integers(0, 39)).map(
        lambda p: p[0] << p[1]
    )
    number = data.draw(st.one_of(st.integers(low, high), near, halves))
    assume(low <= number <= high)
    name = f"own_float{'' if signed else 'un'}di{'df' if double else 'sf'}"
    function = getattr(arithmetic, name)
    function.argtypes = [ctypes.c_int64 if signed else ctypes.c_uint64]
    function.restype = ctypes.c_double if double else ctypes.c_float
    exact = np.array(number, np.int64 if signed else np.uint64)
    assert function(number) == exact.astype(np.float64 if double else np.float32)


@given(st.booleans(), st.booleans(), st.data())
@settings(max_examples=500, deadline=None)
def test_floats_to_integers(
    arithmetic: ctypes.CDLL, signed: bool, double: bool, data: st.DataObject
) -> None:
    """Toward zero; where a signed integer has no place, its lowest number."""
    width = 64 if double else 32
    number = data.draw(
        st.one_of(st.floats(width=width), st.floats(-(2.0**63), 2.0**64, width=width))
    )
    name = f"own_fix{'' if signed else 'uns'}{'df' if double else 'sf'}di"
    function = getattr(arithmetic, name)
    function.argtypes = [ctypes.c_double if double else ctypes.c_float]
    function.restype = ctypes.c_int64 if signed else ctypes.c_uint64
    if not math.isfinite(number) or abs(number) >= 2.0 ** (63 if signed else 64):
        assert function(number) == (-(1 << 63) if signed else 1 << 63)
    elif signed or number >= 0:
        assert function(number) == int(number)
