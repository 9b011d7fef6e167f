"""What shared objects of 32 and 64 bits need, and texts that they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.backends.tvm.artifact.symbols import text_at, undefined
from secateur.backends.tvm.artifact.toolchain import compile_source, link_shared
from secateur.backends.tvm.targets import parse_target

SOURCE = """
void *malloc(__SIZE_TYPE__);
double floor(double);
const char before[5] = "1234";
const char secateur_text[] = "the text";
const char after[] = "more";
char written[] = "a text that may change";
void *call(double x) { return malloc((__SIZE_TYPE__)floor(x)); }
"""


@pytest.fixture(params=["x86-64-v2", "armv7-a"])
def library(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    target = parse_target(request.param)
    (tmp_path / "own.c").write_text(SOURCE)
    compile_source(target, tmp_path / "own.c", tmp_path / "own.o", freestanding=True)
    link_shared(target, [tmp_path / "own.o"], tmp_path / "own.so")
    return tmp_path / "own.so"


def test_names_that_are_left_to_others(library: Path) -> None:
    assert undefined(library) == {"malloc", "floor"}


def test_texts_by_their_symbols(library: Path) -> None:
    assert text_at(library, "before") == b"1234"
    assert text_at(library, "secateur_text") == b"the text"
    assert text_at(library, "after") == b"more"
    assert text_at(library, "written") == b"a text that may change"
    assert text_at(library, "malloc") is None
    assert text_at(library, "secateur") is None


@pytest.mark.parametrize("length", [0, 4, 5, 60, 300])
def test_files_that_end_before_their_tables(library: Path, length: int) -> None:
    library.write_bytes(library.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"."):
        text_at(library, "before")


def test_other_files_have_no_symbols(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(1000))
    assert text_at(tmp_path / "zeros", "before") is None
