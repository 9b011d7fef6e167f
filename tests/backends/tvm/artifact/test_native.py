"""What artifacts bring along besides their kernels."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact import objects
from secateur.backends.tvm.artifact.build import check_symbols
from secateur.backends.tvm.artifact.symbols import LIBC, undefined
from secateur.backends.tvm.artifact.toolchain import compile_source, link_shared
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target, targets
from secateur.ir.errors import UnsupportedError
from secateur.ir.onnx_io import from_proto

from ..graphs import quantize
from .test_threads import network


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
@pytest.mark.parametrize("target", targets())
def test_artifacts_need_nothing_but_libc(tmp_path: Path, target: str) -> None:
    compile_model(from_proto(quantize(network())), parse_target(target), tmp_path / "m.so")
    command = ["nm", "-D", "--undefined-only", "--format=just-symbols", tmp_path / "m.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = {name.partition("@")[0] for name in found}
    assert names == undefined(tmp_path / "m.so")
    assert names <= LIBC


def test_what_libc_does_not_suffice_for_is_refused(tmp_path: Path) -> None:
    native = parse_target("native")
    (tmp_path / "m.c").write_text("int other(void); int run(void); int run() { return other(); }")
    compile_source(native, tmp_path / "m.c", tmp_path / "m.o")
    link_shared(native, [tmp_path / "m.o"], tmp_path / "m.so")
    with pytest.raises(UnsupportedError, match="would need other, which libc lacks"):
        check_symbols(tmp_path / "m.so", native)


@pytest.fixture(scope="module")
def division(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions, under names of their own, as this machine's code."""
    folder = tmp_path_factory.mktemp("division")
    text = (Path(objects.__file__).with_name("native") / "division.c").read_text()
    for name in ("divsi3", "modsi3", "divdi3", "moddi3"):
        text = text.replace(f"__{name}", f"{name}").replace(f"__u{name}", f"u{name}")
    text = text.replace('visibility("hidden")', 'visibility("default")')
    (folder / "division.c").write_text(text)
    native = parse_target("native")
    compile_source(native, folder / "division.c", folder / "division.o")
    link_shared(native, [folder / "division.o"], folder / "division.so")
    return ctypes.CDLL(str(folder / "division.so"))


@given(st.sampled_from([32, 64]), st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
def test_division(division: ctypes.CDLL, bits: int, signed: bool, data: st.DataObject) -> None:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    number, by = (data.draw(st.integers(low, high)) for _ in range(2))
    assume(by != 0 and (number, by) != (low, -1))
    kind = getattr(ctypes, f"c_{'' if signed else 'u'}int{bits}")
    suffix = "si3" if bits == 32 else "di3"
    prefix = "" if signed else "u"
    quotient = abs(number) // abs(by) * (1 if (number < 0) == (by < 0) else -1)
    for name, expected in (("div", quotient), ("mod", number - quotient * by)):
        function = getattr(division, f"{prefix}{name}{suffix}")
        function.restype, function.argtypes = kind, [kind, kind]
        assert function(number, by) == expected
