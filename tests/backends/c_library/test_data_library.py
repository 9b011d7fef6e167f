"""C libraries of models whose data decide sizes: outputs have memory for the largest, and runs
write the dimensions that they have."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.checking.library_runner import LibraryRunner
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session

from ..tvm.graphs import Array
from . import models
from .calls import Call, Tensor, sizes_of, tensors_of
from .test_emulated import tools
from .test_open_library import results, run

pytestmark = pytest.mark.skipif(not models.has("gcc", "readelf"), reason="needs gcc")

MODEL = """agraph (float[{rows}, 6] x, int64[1] k) =>
    (float[c] found, int64[2, c] places, float[{rows}, t] most, float[1] sum) {{
    places = NonZero(x)
    turned = Transpose(places)
    found = GatherND(x, turned)
    squares = Mul(found, found)
    sum = ReduceSum(squares)
    most, which = TopK(x, k)
}}"""


def feeds(rows: int, share: float, k: int) -> dict[str, Array]:
    random = np.random.default_rng(rows)
    kept = random.random((rows, 6)) < share
    x = np.where(kept, random.standard_normal((rows, 6)), 0).astype(np.float32)
    return {"x": x, "k": np.asarray([k], np.int64)}


@pytest.mark.parametrize("rows", ["5", "n"])
def test_programs(tmp_path: Path, rows: str) -> None:
    """In C, in memory between guards of just the bytes that the library asks for, and in Python."""
    model = models.text(MODEL.format(rows=rows))
    folder = models.build(model, tmp_path, "net", sizes=("n=1..40",) if rows == "n" else ())
    path = models.program(folder, "net", source=models.OPEN)
    session, runner = Session(from_proto(model), optimize=False), LibraryRunner(folder / "net.py")
    counts = (5,) if rows == "5" else (1, 5, 40)
    for count in counts:
        for share, k in ((0.0, 1), (0.3, 6), (1.0, 3), (0.5, 0)):
            inputs = feeds(count, share, k)
            right = session.run(inputs)
            done = run(path, [*inputs.values()])
            assert done.returncode == 0, (done.returncode, done.stdout)
            found = results(path, [*right.values()])
            module = runner.run(inputs)
            for (name, array), own in zip(right.items(), found, strict=True):
                assert own.shape == module[name].shape == array.shape
                np.testing.assert_allclose(own, array, rtol=1e-5)
                np.testing.assert_allclose(module[name], array, rtol=1e-5)


def test_statuses(tmp_path: Path) -> None:
    """Numbers that aren't admitted, by what holds them; memory below the largest is refused before
    anything is written."""
    folder = models.build(models.text(MODEL.format(rows="5")), tmp_path, "net")
    runner = LibraryRunner(folder / "net.py")
    for k in (-1, 7, 2**40):
        with pytest.raises(SecateurError, match=r"input 'k': value\(k\) must be"):
            runner.run(feeds(5, 0.5, k))
    library = ctypes.CDLL(str(folder / "libnet.so"))
    library.net_workspace_bytes.restype = ctypes.c_size_t
    inputs = feeds(5, 0.1, 2)
    shapes = ((30,), (2, 30), (5, 6), (1,))
    for index, (dtype, shape) in enumerate(zip("fqff", shapes, strict=True)):
        outputs = [np.full(s, 9, d) for d, s in zip("fqff", shapes, strict=True)]
        call = Call(1, 0, tensors_of([*inputs.values()]), tensors_of(outputs), 2, 4)
        size = library.net_workspace_bytes(ctypes.byref(call))
        room = np.zeros(size + 64, np.uint8)
        call.workspace = room.ctypes.data + -room.ctypes.data % 64
        call.workspace_bytes = size
        assert library.net_run(ctypes.byref(call)) == 0
        assert call.outputs[0].dimensions[0] < 30
        for output in outputs:
            output[:] = 9
        call.outputs[index].bytes = np.dtype(dtype).itemsize * (int(np.prod(shape)) - 1)
        assert library.net_run(ctypes.byref(call)) == 66 | index << 8
        assert all((output == 9).all() for output in outputs)
    found = [sizes_of(0), sizes_of(0, 0), sizes_of(0, 0), sizes_of(0)]
    asked = [Tensor(None, 0, sizes, len(sizes)) for sizes in found]
    call.outputs = (Tensor * 4)(*asked)
    assert library.net_shapes(ctypes.byref(call)) == 0
    assert [tuple(sizes) for sizes in found] == list(shapes)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64-cortex-a72", "armv7-a", "riscv64"])
def test_other_machines(tmp_path: Path, target: str) -> None:
    compiler, emulator, _ = tools(target)
    model = models.text(MODEL.format(rows="5"))
    folder = models.build(model, tmp_path, "net", target=target)
    path = models.program(folder, "net", compiler, "-static", source=models.OPEN)
    session = Session(from_proto(model), optimize=False)
    for share, k in ((0.0, 1), (0.3, 6), (1.0, 0)):
        inputs = feeds(5, share, k)
        right = [*session.run(inputs).values()]
        done = run(path, [*inputs.values()], emulator)
        assert done.returncode == 0, (done.returncode, done.stdout)
        for own, array in zip(results(path, right), right, strict=True):
            np.testing.assert_allclose(own, array, rtol=1e-5)
    assert run(path, [*feeds(5, 0.5, 7).values()], emulator).stdout.startswith("6 ")
