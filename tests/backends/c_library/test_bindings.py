"""C libraries in programs in C++20 and from Python, and several models in one program."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ..tvm.graphs import Array
from . import models

pytestmark = pytest.mark.skipif(not models.has("g++"), reason="needs g++")

FLAGS = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-pedantic")


def program(folder: Path, source: str, *names: str, flags: tuple[str, ...] = ()) -> Path:
    """A C++ program of the libraries `names` in `folder`."""
    path, text = folder / "program", folder / "program.cc"
    text.write_text(source, encoding="utf-8")
    libraries = [folder / f"lib{name}.a" for name in names]
    command = ["g++", *FLAGS, *flags, text, *libraries, "-lm", "-pthread", "-o", path]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def wanted(model: onnx.ModelProto, folder: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    compile_model(from_proto(model), parse_target("native"), folder / "m.so", copies=math.inf)
    return Runtime(folder / "m.so").run(inputs)


_BATCH = """
#include "net.hpp"
#include <cstdio>
#include <vector>
int main() {
    std::vector<float> x(18), y(12), w{1, 2, 3, 4}, z(4);
    for (int i = 0; i < 18; i++) x[i] = static_cast<float>(i);
    secateur::net model;
    secateur::net moved(std::move(model));
    moved.run(x, w, y, z);
    for (float each : y) std::printf("%g ", each);
    for (float each : z) std::printf("%g ", each);
    std::span<const float> all(x);
    int few = moved.try_run(all.first(17), w, y, z);
    int other = moved.try_run(all.first(12), w, y, z);
    int constant = moved.try_run(x, all.first(5), y, z);
    std::printf("%d %d %d ", few, other, constant);
    try {
        moved.run(x, w, y, std::span<float>(z).first(3));
    } catch (const secateur_error &error) {
        std::printf("%d %s", error.status(), error.what());
    }
}
"""


def test_spans_say_how_many_samples_there_are(tmp_path: Path) -> None:
    folder = models.build(models.batch(), tmp_path, "net", threads="none")
    said = subprocess.run([program(folder, _BATCH, "net")], capture_output=True, text=True)
    assert said.returncode == 0
    x, w = np.arange(18, dtype=np.float32).reshape(3, 6), np.arange(1, 5, dtype=np.float32)
    right = wanted(models.batch(), tmp_path, {"x": x, "w": w})
    numbers = said.stdout.split(maxsplit=19)
    np.testing.assert_array_equal(np.float32(numbers[:12]).reshape(3, 4), right["y"])
    np.testing.assert_array_equal(np.float32(numbers[12:16]), right["z"])
    assert numbers[16:19] == ["65", "66", str(65 | 1 << 8)]
    assert (
        numbers[19]
        == f"{66 | 1 << 8} an output's address, alignment, dimensions or bytes are wrong"
    )


_SEVERAL = """
#include "first.hpp"
#include "second.hpp"
#include "third.h"
#include <cstdio>
alignas(64) static std::byte memory[SECOND_WORKSPACE_BYTES];
static float image[4800], one[38400], two[38400];
int main() {
    for (int i = 0; i < 4800; i++) image[i] = static_cast<float>(i % 17) / 17.0f;
    secateur::first first;
    secateur::second second(memory);
    int status = first.try_run(image, one);
    if (status == 0) status = second.try_run(image, two);
    if (status == 0) status = first.try_run(image, one);
    for (const secateur_model *m : {&first_model, &second_model, &third_model}) {
        std::printf("%s %zu %zu\\n", m->name, m->input_count, m->output_count);
    }
    std::FILE *file = std::fopen("out", "wb");
    std::fwrite(one, 1, sizeof one, file);
    std::fwrite(two, 1, sizeof two, file);
    std::fclose(file);
    return status;
}
"""


def test_several_models_in_one_program_without_exceptions(tmp_path: Path) -> None:
    """Models that share kernels, in turns, one of them in memory of the program's."""
    made = (models.convolutions(), models.integers(), models.batch())
    for name, model in zip(("first", "second", "third"), made, strict=True):
        models.build(model, tmp_path, name, threads="own" if name == "third" else "caller")
    path = program(tmp_path, _SEVERAL, "first", "second", "third", flags=("-fno-exceptions",))
    said = subprocess.run([path], cwd=tmp_path, capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "first 1 1\nsecond 1 1\nthird 2 2\n")
    image = (np.arange(4800) % 17).astype(np.float32) / np.float32(17)
    inputs = {"x": image.reshape(1, 3, 40, 40)}
    right = [next(iter(wanted(m, tmp_path, inputs).values())) for m in made[:2]]
    assert (tmp_path / "out").read_bytes() == b"".join(r.tobytes() for r in right)


def test_a_header_of_another_model_is_found_out(tmp_path: Path) -> None:
    folder = models.build(models.batch(), tmp_path, "net")
    header = folder / "net.h"
    digest = header.read_text().split('NET_DIGEST "')[1][:64]
    header.write_text(header.read_text().replace(digest, "0" * 64))
    source = _BATCH.replace("moved.run(x, w, y, z);", "if (moved.try_run(x, w, y, z)) return 3;")
    assert subprocess.run([program(folder, source, "net")], check=False).returncode == 3


_PYTHON = """
import sys
import numpy as np
sys.path.insert(0, "made")
import net
model = net.Model()
x, w = np.arange(18, dtype=np.float32).reshape(6, 3).T, np.arange(1, 5, dtype=np.float32)
results = model.run({"x": x, "w": w})
assert results["y"].shape == (3, 4), results
np.savez("out.npz", **results)
print([repr(t) for t in model.inputs], model.labels)
for wrong in (
    {"x": x}, {"x": x, "w": w.astype(np.float64)}, {"x": x, "w": w[:3]}, {"x": x[:, :5], "w": w},
    {"x": np.float32(1), "w": w},
):
    try:
        model.run(wrong)
    except net.ModelError as error:
        print(error.status & 255, error)
"""


@pytest.mark.parametrize("apart", [False, True])
def test_the_module_for_python(tmp_path: Path, apart: bool) -> None:
    """In a process that knows nothing of secateur."""
    models.build(models.batch(), tmp_path / "made", "net", labels=("a", "猫"), weights_apart=apart)
    (tmp_path / "use.py").write_text(_PYTHON)
    said = subprocess.run(
        [sys.executable, "-B", "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0] == (
        "[\"Tensor('x', float32, (1, 6), a batch)\", \"Tensor('w', float32, (4,))\"] ['a', '猫']"
    )
    assert [line.split()[0] for line in lines[1:]] == ["0", "0", "65", "65", "65"]
    x = np.arange(18, dtype=np.float32).reshape(6, 3).T
    inputs = {"x": np.ascontiguousarray(x), "w": np.arange(1, 5, dtype=np.float32)}
    right = wanted(models.batch(), tmp_path, inputs)
    with np.load(tmp_path / "out.npz") as found:
        for name, value in right.items():
            np.testing.assert_array_equal(found[name], value)
    library, other = tmp_path / "made" / "net.py", "0" * 64
    text = library.read_text()
    library.write_text(text.replace(text.split('DIGEST = "')[1][:64], other))
    said = subprocess.run(
        [sys.executable, "-B", "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "libnet.so is of another model than net.py" in said.stderr
