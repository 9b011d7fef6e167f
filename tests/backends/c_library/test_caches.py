"""Caches of a C library that grow where they are, and tensors that must not share memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session

from ..tvm.graphs import Array
from . import models
from .calls import Call, Tensor, sizes_of

pytestmark = pytest.mark.skipif(not models.has("gcc"), reason="needs gcc")

HEADS, SIZE, CAPACITY = 3, 4, 10
BAD_INPUT, BAD_OUTPUT, REFUSED = 65, 66, 6


def joined() -> onnx.ModelProto:
    """Two caches, of rows within heads and of rows that are outermost, and what reads them."""
    return models.text(
        f"""agraph (float[{HEADS}, past, {SIZE}] k, float[past, {SIZE}] v,
        float[{HEADS}, s, {SIZE}] a, float[s, {SIZE}] b)
        => (float[{HEADS}, total, {SIZE}] keys, float[total, {SIZE}] values, float[{SIZE}] sum) {{
        keys = Concat <axis = 1> (k, a)
        values = Concat <axis = 0> (v, b)
        both = Add(keys, values)
        sum = ReduceSum <keepdims = 0> (both, axes)
        }}"""
    )


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    found = joined()
    axes = onnx.numpy_helper.from_array(np.array([0, 1], np.int64), "axes")
    found.graph.initializer.append(axes)
    return found


@pytest.fixture(scope="module")
def library(model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = models.build(model, tmp_path_factory.mktemp("caches"), "net")
    text = (folder / "net.h").read_text()
    assert "#define NET_OUTPUT_1_CONTINUES 1\n" in text
    assert "#define NET_OUTPUT_0_GROWING_AXIS 1\n" in text
    loaded = ctypes.CDLL(str(folder / "libnet.so"))
    loaded.net_workspace_bytes.restype = ctypes.c_size_t
    return loaded


class Rows:
    """A call with `past` rows in caches and `new` ones, in memory with room for `capacity`."""

    def __init__(self, past: int, new: int, capacity: int = CAPACITY, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        shapes = [(HEADS, past, SIZE), (past, SIZE), (HEADS, new, SIZE), (new, SIZE)]
        self.feeds = [random.standard_normal(s).astype(np.float32) for s in shapes]
        self.keys = np.full((HEADS, capacity, SIZE), 9, np.float32)
        self.values = np.full((capacity, SIZE), 9, np.float32)
        self.sum = np.full(SIZE, 9, np.float32)
        self.keys[:, :past], self.values[:past] = self.feeds[:2]
        self.total = past + new
        self.inputs = [self.tensor(a) for a in self.feeds]
        for given, memory in zip(self.inputs, (self.keys, self.values), strict=False):
            given.data, given.bytes = memory.ctypes.data, memory.nbytes
        results = (self.keys, self.values, self.sum)
        self.found = [sizes_of(*[0] * a.ndim) for a in results]
        self.outputs = [self.tensor(a) for a in results]
        for tensor, found in zip(self.outputs, self.found, strict=True):
            tensor.dimensions = found
        self.capacity = capacity

    @staticmethod
    def tensor(array: Array) -> Any:
        return Tensor(array.ctypes.data, array.nbytes, sizes_of(*array.shape), array.ndim)

    def run(self, library: ctypes.CDLL, version: int = 2) -> int:
        inputs, outputs = (Tensor * 4)(*self.inputs), (Tensor * 3)(*self.outputs)
        call = Call(version, 0, inputs, outputs, 4, 3)
        call.capacity = self.capacity
        size = library.net_workspace_bytes(ctypes.byref(call))
        self.room = np.zeros(size + 64, np.uint8)
        call.workspace = self.room.ctypes.data + -self.room.ctypes.data % 64
        call.workspace_bytes = size
        return int(library.net_run(ctypes.byref(call)))

    def wanted(self, model: onnx.ModelProto) -> list[Array]:
        feeds = dict(zip("kvab", self.feeds, strict=True))
        return list(Session(from_proto(model)).run(feeds).values())

    def check(self, model: onnx.ModelProto) -> None:
        keys, values, total = self.wanted(model)
        np.testing.assert_array_equal(self.keys[:, : self.total], keys)
        np.testing.assert_array_equal(self.values[: self.total], values)
        np.testing.assert_allclose(self.sum, total, rtol=1e-5, atol=1e-5)
        assert [*self.found[0]] == [HEADS, self.total, SIZE]
        assert (self.keys[:, self.total :] == 9).all()
        assert (self.values[self.total :] == 9).all()


@pytest.mark.parametrize(("past", "new"), [(1, 1), (3, 2), (6, 4), (9, 1)])
def test_rows_stay_where_they_are(
    library: ctypes.CDLL, model: onnx.ModelProto, past: int, new: int
) -> None:
    """And nothing beyond the new ones is written, up to the last that there is room for."""
    rows = Rows(past, new)
    assert rows.run(library) == 0
    rows.check(model)


def test_caches_of_their_own(library: ctypes.CDLL, model: onnx.ModelProto) -> None:
    """Other memory than the inputs', with room and without: rows are copied there."""
    rows = Rows(4, 3)
    others = [np.full_like(rows.keys, 7), np.full_like(rows.values, 7)]
    others[0][:, :4], others[1][:4] = rows.feeds[:2]
    for given, memory in zip(rows.inputs, others, strict=False):
        given.data = memory.ctypes.data
    rows.keys[:], rows.values[:] = 9, 9
    assert rows.run(library) == 0
    rows.check(model)
    rows = Rows(4, 3, 7)
    rows.inputs = [rows.tensor(a) for a in rows.feeds]
    rows.capacity = 0
    assert rows.run(library, version=1) == 0
    rows.check(model)


def test_an_outermost_axis_needs_no_capacity(library: ctypes.CDLL, model: onnx.ModelProto) -> None:
    rows = Rows(4, 3, 7)
    rows.capacity = 0
    rows.inputs[0] = rows.tensor(rows.feeds[0])
    assert rows.run(library) == 0
    rows.check(model)


def _without_capacity(rows: Rows) -> None:
    rows.capacity = 0


def _small(rows: Rows) -> None:
    rows.capacity = rows.total - 1


def _negative(rows: Rows) -> None:
    rows.capacity = -1


def _shifted(rows: Rows) -> None:
    rows.inputs[0].data += 4
    rows.inputs[0].bytes -= 4
    rows.capacity = rows.total


def _crossed(rows: Rows) -> None:
    rows.outputs[1].data = rows.inputs[0].data


def _over_another_input(rows: Rows) -> None:
    rows.outputs[2].data = rows.inputs[3].data


def _over_the_other_result(rows: Rows) -> None:
    rows.outputs[2].data = rows.outputs[0].data + 16


def _few_bytes(rows: Rows) -> None:
    rows.outputs[0].bytes -= 1


def _few_bytes_of_an_input(rows: Rows) -> None:
    rows.inputs[1].bytes -= 1


WRONG = {
    "no capacity where heads lie around the rows": (BAD_OUTPUT, _without_capacity),
    "too small a capacity": (REFUSED, _small),
    "a negative capacity": (REFUSED, _negative),
    "memory that is shifted": (BAD_OUTPUT, _shifted),
    "the memory of another cache": (BAD_OUTPUT | 1 << 8, _crossed),
    "memory of an input that isn't continued": (BAD_OUTPUT | 2 << 8, _over_another_input),
    "memory of another result": (BAD_OUTPUT | 2 << 8, _over_the_other_result),
    "fewer bytes than the capacity takes": (BAD_OUTPUT, _few_bytes),
    "fewer bytes of an input than the capacity takes": (BAD_INPUT | 1 << 8, _few_bytes_of_an_input),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_memory_is_an_error_and_writes_nothing(library: ctypes.CDLL, name: str) -> None:
    status, spoil = WRONG[name]
    rows = Rows(4, 3)
    before = [rows.keys.copy(), rows.values.copy(), rows.sum.copy(), *map(np.copy, rows.feeds)]
    spoil(rows)
    found = rows.run(library)
    assert found == status or found & 255 == status == REFUSED
    after = [rows.keys, rows.values, rows.sum, *rows.feeds]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
