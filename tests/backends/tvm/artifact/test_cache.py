"""The cache of kernels: same bytes with and without, damage, sharing, bounds."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import CompileReport, compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

from ..graphs import Net, feeds, reference


def network(seed: int = 0) -> onnx.ModelProto:
    """Three convolutions of equal shape, one of another, and an operator of plain loops.

    The third convolution's result is not padded, so its kernel is another.
    """
    net = Net(None, seed)
    value = net.node("Conv", "x", net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(5, 8, 1, 1))
    return net.model({"x": (1, 8, 6, 6)}, [net.node("LogSoftmax", value, axis=1)])


def compiled(model: onnx.ModelProto, path: Path, cache: Cache) -> CompileReport:
    return compile_model(from_proto(model), parse_target("native"), path, cache=cache)


@dataclasses.dataclass(frozen=True)
class Filled:
    """A cache that has the network's kernels, and what was compiled with it while it was empty."""

    folder: Path
    report: CompileReport

    @property
    def artifact(self) -> bytes:
        return (self.folder / "a.so").read_bytes()

    def copy(self, folder: Path) -> Cache:
        """A copy of the cache, which a test may spoil."""
        shutil.copytree(self.folder / "cache", folder)
        return Cache.at(folder)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    folder = tmp_path_factory.mktemp("filled")
    return Filled(folder, compiled(network(), folder / "a.so", Cache.at(folder / "cache")))


def small() -> onnx.ModelProto:
    net = Net(None, 0)
    return net.model({"x": (1, 8)}, [net.node("Relu", "x")])


def entries(cache: Cache) -> list[Path]:
    assert cache.folder is not None
    return sorted(p for p in (cache.folder / "objects").rglob("*") if p.is_file())


def objects(cache: Cache) -> list[Path]:
    """The entries that are object files; the others say what is proven of kernels."""
    return [p for p in entries(cache) if b"\x7fELF" in p.read_bytes()]


def test_artifacts_are_the_same_cold_warm_and_without_cache(tmp_path: Path, filled: Filled) -> None:
    cache = filled.copy(tmp_path / "cache")
    paths = [tmp_path / f"{name}.so" for name in ("warm", "without")]
    warm = compiled(network(), paths[0], cache)
    without = compiled(network(), paths[1], Cache.none())
    assert filled.report.reused == without.reused == 0
    assert warm.reused == warm.kernels == filled.report.kernels == len(objects(cache))
    assert filled.artifact == paths[0].read_bytes() == paths[1].read_bytes()
    inputs = feeds(network())
    for name, array in reference(network(), inputs).items():
        np.testing.assert_allclose(Runtime(paths[0]).run(inputs)[name], array, atol=1e-5)


def test_kernels_of_equal_shape_are_compiled_once(tmp_path: Path, filled: Filled) -> None:
    """Within a model, and across models of other weights."""
    conversions = 2  # of layouts, before and after the convolutions
    assert filled.report.kernels == filled.report.operations - 1 + conversions
    other = compiled(network(seed=1), tmp_path / "b.so", filled.copy(tmp_path / "cache"))
    assert other.reused == other.kernels


def test_damaged_objects_are_compiled_again(tmp_path: Path, filled: Filled) -> None:
    """Empty ones, ones of zeros, and ones with a bit that is another."""
    cache = filled.copy(tmp_path / "cache")
    assert len(objects(cache)) >= 6
    others = [path for path in entries(cache) if path not in objects(cache)]
    for kind in (objects(cache), others):
        for number, path in enumerate(kind):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes((b"", b"\0" * 100, bytes(content))[number % 3])
    again = compiled(network(), tmp_path / "b.so", cache)
    assert again.reused == 0
    assert (tmp_path / "b.so").read_bytes() == filled.artifact
    assert compiled(network(), tmp_path / "c.so", cache).reused == filled.report.kernels


def test_objects_under_each_others_names_are_compiled_again(tmp_path: Path, filled: Filled) -> None:
    cache = filled.copy(tmp_path / "cache")
    files = entries(cache)
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)
    again = compiled(network(), tmp_path / "b.so", cache)
    assert again.reused == 0
    assert (tmp_path / "b.so").read_bytes() == filled.artifact
    assert compiled(network(), tmp_path / "c.so", cache).reused == filled.report.kernels


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_what_is_no_file_is_no_object(tmp_path: Path, filled: Filled) -> None:
    cache = filled.copy(tmp_path / "cache")
    for path in [*entries(cache), tmp_path / "cache" / "tuning.json"]:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    with pytest.warns(UserWarning, match="not a regular file, but a FIFO"):
        assert compiled(network(), tmp_path / "b.so", cache).reused == 0
    assert (tmp_path / "b.so").read_bytes() == filled.artifact


def test_targets_do_not_share_objects(tmp_path: Path) -> None:
    cache = Cache.at(tmp_path / "cache")
    model = from_proto(small())
    for target in ("x86-64-v2", "x86-64-v3"):
        report = compile_model(model, parse_target(target), tmp_path / "m.so", cache=cache)
        assert (report.reused, report.kernels) == (0, 1)


_COMPILE = """
import sys
from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import load
model, path, cache = sys.argv[1:]
compile_model(load(model), parse_target("native"), path, cache=Cache.at(cache))
"""


def test_processes_share_a_cache(tmp_path: Path, filled: Filled) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    paths = [tmp_path / f"{i}.so" for i in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _COMPILE, tmp_path / "model.onnx", path, tmp_path / "cache"]
        )
        for path in paths
    ]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    assert paths[0].read_bytes() == paths[1].read_bytes() == filled.artifact
    cache = Cache.at(tmp_path / "cache")
    report = compiled(network(), tmp_path / "again.so", cache)
    assert report.reused == report.kernels == len(objects(cache))  # and nothing temporary


def test_the_size_is_bounded_and_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = dataclasses.replace(Cache.at(tmp_path), limit=1000)
    for index in range(20):
        cache.put(f"{index:02d}abc", bytes(68))  # 100 bytes with the digest
    for age, index in enumerate(range(20)):
        os.utime(tmp_path / "objects" / f"{index:02d}" / "abc", (age, age))
    assert cache.get("00abc") == bytes(68)
    cache.trim()
    left = [i for i in range(20) if cache.get(f"{i:02d}abc") is not None]
    assert left == [0, *range(13, 20)]


def test_a_cache_that_is_asked_for_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateurError, match="can't be written"):
        compiled(network(), tmp_path / "m.so", Cache.at(tmp_path / "file" / "cache"))
    assert not (tmp_path / "m.so").exists()


def test_the_users_cache_may_be_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "file" / "cache"))
    compile_model(from_proto(small()), parse_target("native"), tmp_path / "m.so")
    assert (tmp_path / "m.so").exists()


def test_the_environment_names_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    assert Cache.of_user().folder == tmp_path
    monkeypatch.setenv("SECATEUR_CACHE", "")
    assert Cache.of_user().folder is None
    monkeypatch.delenv("SECATEUR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.of_user().folder == tmp_path / "secateur"
