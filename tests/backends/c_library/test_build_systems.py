"""CMake, with Make and Ninja, and Make alone build a program from a model, and build again what
changed and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("tvm")

from secateur.cli import main

from ...onnx_runtime import session_of
from ..tvm.graphs import Net, feeds
from . import models

EXAMPLES = Path(__file__).parents[3] / "examples" / "device"

pytestmark = pytest.mark.skipif(not models.has("gcc", "make"), reason="needs gcc and make")


def classifier(seed: int = 0) -> onnx.ModelProto:
    net = Net(None, seed)
    value = net.node("Conv", "x", net.weight(8, 1, 3, 3), net.weight(8))
    value = net.node("Relu", value)
    value = net.node("GlobalAveragePool", value)
    value = net.node("Flatten", value)
    value = net.node("Gemm", value, net.weight(8, 10), net.weight(10))
    return net.model({"x": (1, 1, 8, 8)}, [value])


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The command secateur of this checkout, in a folder whose name has a space."""
    path = tmp_path / "a bin" / "secateur"
    path.parent.mkdir()
    root = Path(__file__).parents[3]
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec "{sys.executable}" -m secateur "$@"\n')
    path.chmod(0o755)
    return path


def run(*words: object, folder: Path | None = None) -> str:
    done = subprocess.run(
        [*map(str, words)], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def classes(program: Path, model: onnx.ModelProto, *emulator: str) -> tuple[int, int]:
    """The program's answer, and ONNX Runtime's."""
    inputs = feeds(model)
    numbers = " ".join(map(str, inputs["x"].reshape(-1).tolist()))
    said = subprocess.run([*emulator, program], input=numbers, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    session = session_of(model)
    return int(said.stdout), int(np.argmax(session.run(None, inputs)[0]))


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
@pytest.mark.parametrize("generator", ["Unix Makefiles", "Ninja"])
def test_cmake(tmp_path: Path, command: Path, generator: str) -> None:
    if generator == "Ninja" and shutil.which("ninja") is None:
        pytest.skip("needs ninja")
    model, build = tmp_path / "the model.onnx", tmp_path / "the build"
    onnx.save(
        classifier(), model, save_as_external_data=True, location="weights", size_threshold=16
    )
    folder = run(command, "cmake-dir").strip()
    run(
        *("cmake", "-G", generator, "-S", EXAMPLES / "cmake", "-B", build),
        *(f"-Dsecateur_DIR={folder}", f"-DSECATEUR_EXECUTABLE={command}", f"-DMODEL={model}"),
    )
    run("cmake", "--build", build)
    found, wanted = classes(build / "classify", classifier())
    assert found == wanted
    library, program = build / "app_model" / "libapp_model.a", build / "classify"
    before = modified(library), modified(program)
    run("cmake", "--build", build)
    assert (modified(library), modified(program)) == before
    time.sleep(1.1)  # some file systems and Make count in seconds
    onnx.save(
        classifier(1), model, save_as_external_data=True, location="weights", size_threshold=16
    )
    os.utime(model, ns=(before[0] - 10**9, before[0] - 10**9))  # only its weights are newer
    run("cmake", "--build", build)
    assert modified(library) > before[0]
    assert modified(program) > before[1]
    found, wanted = classes(build / "classify", classifier(1))
    assert found == wanted


@pytest.mark.slow
@pytest.mark.skipif(not models.has("cmake", "ninja"), reason="needs cmake and ninja")
def test_cmake_with_a_recipe(tmp_path: Path, command: Path) -> None:
    """A changed recipe or its data rebuilds."""
    model, build, recipe = tmp_path / "m.onnx", tmp_path / "build", tmp_path / "a recipe.toml"
    onnx.save(classifier(), model)
    images = np.random.default_rng(0).random((16, 1, 8, 8), np.float32)
    np.savez(tmp_path / "c.npz", x=images)
    recipe.write_text('[data]\ncalibration = "c.npz"\n[quantize]\nscheme = "int8"\n')
    folder = run(command, "cmake-dir").strip()
    run(
        *("cmake", "-G", "Ninja", "-S", EXAMPLES / "cmake", "-B", build, f"-DRECIPE={recipe}"),
        *(f"-Dsecateur_DIR={folder}", f"-DSECATEUR_EXECUTABLE={command}", f"-DMODEL={model}"),
    )
    run("cmake", "--build", build)
    library = build / "app_model" / "libapp_model.a"
    quantized = onnx.load(build / "app_model" / "model.onnx")
    assert any(n.op_type == "QuantizeLinear" for n in quantized.graph.node)
    found, wanted = classes(build / "classify", quantized)
    assert found == wanted
    before = modified(library)
    run("cmake", "--build", build)
    assert modified(library) == before
    recipe.write_text(recipe.read_text() + "[run]\nseed = 1\n")
    run("cmake", "--build", build)
    changed = modified(library)
    assert changed > before
    np.savez(tmp_path / "c.npz", x=2 * images)
    run("cmake", "--build", build)
    assert modified(library) > changed


@pytest.mark.slow
@pytest.mark.skipif(
    not models.has("cmake", "aarch64-linux-gnu-gcc", "qemu-aarch64"), reason="needs a cross gcc"
)
def test_cmake_for_another_machine(tmp_path: Path, command: Path) -> None:
    model, build = tmp_path / "m.onnx", tmp_path / "build"
    onnx.save(classifier(), model)
    folder = run(command, "cmake-dir").strip()
    toolchain = EXAMPLES / "cmake" / "aarch64.cmake"
    run(
        *("cmake", "-S", EXAMPLES / "cmake", "-B", build, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"),
        *(f"-Dsecateur_DIR={folder}", f"-DSECATEUR_EXECUTABLE={command}", f"-DMODEL={model}"),
        "-DSECATEUR_TARGET=aarch64-cortex-a72",
    )
    run("cmake", "--build", build)
    found, wanted = classes(build / "classify", classifier(), "qemu-aarch64")
    assert found == wanted


def test_make(tmp_path: Path, command: Path) -> None:
    folder = tmp_path / "device"
    shutil.copytree(EXAMPLES, folder)
    model = tmp_path / "m.onnx"
    onnx.save(classifier(), model)
    words = ["make", f"MODEL={model}", f"SECATEUR='{command}'"]
    run(*words, folder=folder / "make")
    found, wanted = classes(folder / "make" / "classify", classifier())
    assert found == wanted
    assert "up to date" in run(*words, folder=folder / "make")
    time.sleep(1.1)
    external = {"save_as_external_data": True, "location": "weights", "size_threshold": 16}
    onnx.save(classifier(1), model, **external)
    assert "compile" in run(*words, folder=folder / "make")
    time.sleep(1.1)
    (tmp_path / "weights").touch()
    assert "compile" in run(*words, folder=folder / "make")
    assert "up to date" in run(*words, folder=folder / "make")


@pytest.mark.slow
@pytest.mark.skipif(not models.has("meson", "ninja"), reason="needs meson and ninja")
def test_meson(tmp_path: Path, command: Path) -> None:
    folder, model, build = tmp_path / "meson", tmp_path / "m.onnx", tmp_path / "build"
    shutil.copytree(EXAMPLES / "meson", folder)
    onnx.save(classifier(), model)
    run("meson", "setup", build, folder, f"-Dmodel={model}", f"-Dsecateur={command}")
    run("ninja", "-C", build)
    assert len(set(classes(build / "classify", classifier()))) == 1
    assert "no work to do" in run("ninja", "-C", build)
    time.sleep(1.1)
    external = {"save_as_external_data": True, "location": "weights", "size_threshold": 16}
    onnx.save(classifier(1), model, **external)
    run("ninja", "-C", build)
    assert len(set(classes(build / "classify", classifier(1)))) == 1
    time.sleep(1.1)
    (tmp_path / "weights").touch()
    assert "no work to do" not in run("ninja", "-C", build)
    assert "no work to do" in run("ninja", "-C", build)


@pytest.mark.slow
@pytest.mark.skipif(not models.has("pkg-config"), reason="needs pkg-config")
def test_pkg_config(tmp_path: Path, command: Path) -> None:
    folder, model = tmp_path / "device", tmp_path / "m.onnx"
    shutil.copytree(EXAMPLES, folder)
    onnx.save(classifier(), model)
    run("make", f"MODEL={model}", f"SECATEUR='{command}'", folder=folder / "pkg-config")
    assert len(set(classes(folder / "pkg-config" / "classify", classifier()))) == 1


@pytest.mark.slow
@pytest.mark.skipif(not models.has("bazel"), reason="needs bazel")
@pytest.mark.parametrize("recipe", [False, True])
def test_bazel(tmp_path: Path, command: Path, recipe: bool) -> None:
    """In a sandbox, where the rule has the files that it names and no others; offline."""
    folder = tmp_path / "workspace"
    shutil.copytree(EXAMPLES / "bazel", folder)
    external = {"save_as_external_data": True, "location": "weights", "size_threshold": 16}
    onnx.save(classifier(), folder / "model.onnx", **external)
    attributes = 'data = ["weights"], '
    if recipe:
        np.savez(folder / "c.npz", x=np.random.default_rng(0).random((16, 1, 8, 8), np.float32))
        (folder / "r.toml").write_text(
            '[data]\ncalibration = "c.npz"\n[quantize]\nscheme = "int8"\n'
        )
        attributes = 'data = ["weights", "c.npz"], recipe = "r.toml", '
    build = (folder / "BUILD").read_text()
    given = f'{attributes}secateur = "{command}",'
    (folder / "BUILD").write_text(build.replace('target = "', given + '\n    target = "'))
    rules = run(command, "bazel-dir").strip()
    words = ["bazel", "--batch", f"--output_user_root={tmp_path / 'root'}", "build"]
    words += [f"--override_repository=secateur={rules}", "--action_env=PATH", "//:program"]
    run(*words, folder=folder)
    made = classifier()
    description = (folder / "bazel-bin" / "app_model.files" / "app_model.json").read_text()
    assert ("int8" in description) == recipe
    if not recipe:
        found, wanted = classes(folder / "bazel-bin" / "classify", made)
        assert found == wanted
    subprocess.run(["chmod", "-R", "u+w", tmp_path / "root"], check=True)


def compiled(model: Path, folder: Path) -> Result:
    """What the command says that compiles a model into `folder`/o and writes `folder`/d."""
    words = ["compile", model, "-o", folder / "o", "--target", "native", "--depfile", folder / "d"]
    return CliRunner().invoke(main, [*map(str, words)])


def test_a_depfile_has_names_as_make_reads_them(tmp_path: Path) -> None:
    model = tmp_path / "a $b #c.onnx"
    onnx.save(classifier(), model)
    depfile = tmp_path / "d"
    done = compiled(model, tmp_path)
    assert done.exit_code == 0, done.output
    name = f"{tmp_path}/a\\ $$b\\ \\#c.onnx"
    assert depfile.read_text() == f"{tmp_path}/o/model.so: {name}\n{name}:\n"


@pytest.mark.parametrize("location", ["w;touch x", "a:b", "a=b", "%w", "w\tx", "$(x)", "w|x"])
def test_names_that_mean_something_to_make_are_refused(tmp_path: Path, location: str) -> None:
    """And nothing is written."""
    external = {"save_as_external_data": True, "location": location, "size_threshold": 16}
    onnx.save(classifier(), tmp_path / "net.onnx", **external)
    done = compiled(tmp_path / "net.onnx", tmp_path)
    assert done.exit_code == 1
    assert "Make can't have such a name" in done.stderr
    assert not (tmp_path / "d").exists()
    assert not (tmp_path / "o").exists()
