"""Kernels that fail: codes from the kernel to the error, and the runs that follow."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from tvm import tirx

from secateur.backends.tvm.artifact.build import Kernels, build_library
from secateur.backends.tvm.artifact.library import Library
from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.cache import Cache
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.faults import CALL_SHIFT, SAMPLE_LIMIT, Fault, explain
from secateur.backends.tvm.lowering.loops.base import within
from secateur.backends.tvm.plan.schedule import Buffer, KernelCall, Schedule, nbytes
from secateur.backends.tvm.targets import parse_target
from secateur.backends.tvm.tensorir.builder import KernelBuilder, load
from secateur.backends.tvm.tensorir.digest import digest
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto

NATIVE = parse_target("native")
SIZE = 64


def library(functions: list[Any], path: Path, dtype: str = "int64") -> Path:
    """Kernels of (table, numbers, result), called one after the other on the same buffers."""
    table, numbers = Buffer(nbytes((SIZE,), "float32"), 0), Buffer(nbytes((SIZE,), dtype), 1)
    results = [Buffer(nbytes((SIZE,), "float32")) for _ in functions]
    names = [f"kernel{i}" for i in range(len(functions))]
    calls = [KernelCall(n, (table, numbers, y)) for n, y in zip(names, results, strict=True)]
    metadata = {
        "target": NATIVE.name,
        "inputs": [{"name": "table"}, {"name": "numbers"}],
        "outputs": [{"name": n, "shape": [SIZE], "dtype": "float32"} for n in names],
        "calls": [{"operation": f"node{i}", "operator": "Look"} for i in range(len(names))],
    }
    made = dict(zip(names, functions, strict=True))
    digests = {name: digest(function) for name, function in made.items()}
    schedule = Schedule(calls, results)
    writes = dict.fromkeys(names, (2,))
    kernels = Kernels(schedule, made, digests, writes, metadata)
    build_library([kernels], NATIVE, Cache.of_user(), path)
    return path


def look_up(scratch: int, *, parallel: bool, dtype: str = "int64") -> Any:
    """`result[i] = table[numbers[i]]`, by way of scratch memory before and in the loop."""
    k = KernelBuilder()
    table, numbers = k.parameter("t", [SIZE], "float32"), k.parameter("n", [SIZE], dtype)
    result = k.parameter("y", [SIZE], "float32")
    before = k.local(scratch, "float32", "before") if not parallel else None
    with k.loop(SIZE, "i", parallel=parallel) as i:
        inside = k.local(scratch, "float32", "inside")
        index = within(k, load(numbers, i), 0, SIZE)
        with k.loop(scratch, "j") as j:
            k.store(inside, load(table, index) + tirx.Cast("float32", j), j)
            if before is not None:
                k.store(before, load(inside, j), j)
        held = load(before if before is not None else inside, i % scratch)
        k.store(result, held - tirx.Cast("float32", i % scratch), i)
    return k.finish()


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("scratch", [1, 600, 9000])
def test_failing_leaves_nothing_behind(tmp_path: Path, parallel: bool, scratch: int) -> None:
    """Scratch memory in registers, on the thread's stack, and on the heap."""
    path = library([look_up(scratch, parallel=parallel)], tmp_path / "m.so")
    table = np.arange(SIZE, dtype=np.float32)
    good = np.arange(SIZE)[::-1].copy()
    bad = np.where(good % 7 == 3, 2**32 + 1, good)
    for threads in (1, 2):
        runner = Library(path, threads)
        for _ in range(60):
            with pytest.raises(SecateurError, match=r"^node 'node0' \(Look\): an index is out of"):
                runner.invoke({"table": table, "numbers": bad})
            found = runner.invoke({"table": table, "numbers": good})
            np.testing.assert_array_equal(found["kernel0"], table[good])


def test_the_call_that_failed_is_named(tmp_path: Path) -> None:
    functions = []
    for limit in (SIZE, 10):
        k = KernelBuilder()
        k.parameter("t", [SIZE], "float32")
        numbers, result = k.parameter("n", [SIZE], "int64"), k.parameter("y", [SIZE], "float32")
        with k.loop(SIZE, "i") as i:
            number = within(k, load(numbers, i), 0, limit, Fault.LIMIT)
            k.store(result, tirx.Cast("float32", number), i)
        functions.append(k.finish())
    runner = Library(library(functions, tmp_path / "m.so"), 1)
    table = np.zeros(SIZE, np.float32)
    for number, node in ((SIZE, 0), (10, 1)):
        with pytest.raises(SecateurError, match=f"'node{node}'.* more work than"):
            runner.invoke({"table": table, "numbers": np.full(SIZE, number)})
    runner.invoke({"table": table, "numbers": np.full(SIZE, 9)})


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_integers_are_compared_before_they_are_cut(tmp_path: Path, dtype: str) -> None:
    runner = Library(
        library([look_up(1, parallel=False, dtype=dtype)], tmp_path / "m.so", dtype), 1
    )
    table = np.arange(SIZE, dtype=np.float32)
    info = np.iinfo(dtype)
    for number in (0, 1, SIZE - 1, SIZE, -1, info.min, info.max, 2**32 + 1, 2**62, 2**63):
        if not info.min <= number <= info.max:
            continue
        feeds = {"table": table, "numbers": np.full(SIZE, number, dtype)}
        if 0 <= number < SIZE:
            assert (runner.invoke(feeds)["kernel0"] == number).all()
            continue
        with pytest.raises(SecateurError, match="index is out of range"):
            runner.invoke(feeds)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_are_compared_before_they_are_cut(tmp_path: Path, dtype: str) -> None:
    runner = Library(
        library([look_up(1, parallel=False, dtype=dtype)], tmp_path / "m.so", dtype), 1
    )
    table = np.arange(SIZE, dtype=np.float32)
    for number in (0.0, -0.9, 5.9, SIZE - 0.5, SIZE, -1.0, 6e4, -6e4, np.inf, -np.inf, np.nan):
        feeds = {"table": table, "numbers": np.full(SIZE, number, dtype)}
        if -1 < number < SIZE:
            assert (runner.invoke(feeds)["kernel0"] == np.trunc(number)).all()
            continue
        with pytest.raises(SecateurError, match="index is out of range"):
            runner.invoke(feeds)


def test_statuses_are_explained() -> None:
    for fault in Fault:
        assert explain(fault | 5 << CALL_SHIFT) == (5, fault.text)
    assert explain(99 | 1 << CALL_SHIFT) == (1, "it returned 99")
    assert len({fault.text for fault in Fault}) == len(Fault)


def gather(batch: int | str = 1) -> Any:
    """Two embeddings' sum."""
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["a"], name="words"),
        helper.make_node("Gather", ["table", "j"], ["b"], name="places"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, [batch, 3]) for n in "ij"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3, 4])]
    table = helper.make_tensor("table", TensorProto.FLOAT, [8, 4], np.arange(32.0))
    graph = helper.make_graph(nodes, "g", inputs, outputs, [table])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_model_names_node_and_operator(tmp_path: Path) -> None:
    compile_model(from_proto(gather("N")), NATIVE, tmp_path / "m.so")
    runtime = Runtime(tmp_path / "m.so")
    good = np.array([[0, -1, 7]] * 3)
    bad = np.array([[0, 1, 2], [0, 8, 2], [0, 1, 2]])
    with pytest.raises(SecateurError, match=r"^sample 1: node 'words' \(Gather\): an index is"):
        runtime.run({"i": bad, "j": good})
    with pytest.raises(SecateurError, match=r"^sample 1: node 'places' \(Gather\): an index is"):
        runtime.run({"i": good, "j": bad})
    table = np.arange(32, dtype=np.float32).reshape(8, 4)
    np.testing.assert_array_equal(runtime.run({"i": good, "j": good})["y"], 2 * table[good])


def test_callers_at_the_same_time_fail_on_their_own(tmp_path: Path) -> None:
    path = library([look_up(600, parallel=True)], tmp_path / "m.so")
    table = np.arange(SIZE, dtype=np.float32)
    wrong: list[Any] = []

    def call(number: int) -> None:
        runner = Library(path, 2)
        feeds = {"table": table, "numbers": np.full(SIZE, number)}
        for _ in range(300):
            try:
                wrong.extend(x for x in runner.invoke(feeds)["kernel0"] if x != number)
                failed = False
            except SecateurError:
                failed = True
            if failed != (number >= SIZE):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(n,)) for n in (3, SIZE, 5, 2**40)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
        assert not caller.is_alive()
    assert not wrong


@pytest.mark.parametrize("axis", [0, 1])
def test_a_limit_is_the_last_number_that_is_served(tmp_path: Path, axis: int) -> None:
    """Samples of a bin of RoiAlign along one axis, which follow from the box."""
    node = helper.make_node("RoiAlign", ["x", "boxes", "batch"], ["y"], output_height=1)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("batch", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])],
    )
    opset = [helper.make_opsetid("", 16)]
    model = from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))
    compile_model(model, NATIVE, tmp_path / "m.so")
    runtime = Runtime(tmp_path / "m.so")
    feeds = {"x": np.ones((1, 1, 4, 4), np.float32), "batch": np.zeros(1, np.int64)}
    for samples in (SAMPLE_LIMIT, SAMPLE_LIMIT + 1):
        boxes = np.ones((1, 2, 2), np.float32)
        boxes[:, 0] = 0
        boxes[0, 1, axis] = samples
        feeds["boxes"] = boxes.reshape(1, 4)
        if samples == SAMPLE_LIMIT:
            assert np.isfinite(runtime.run(feeds)["y"]).all()
        else:
            with pytest.raises(SecateurError, match="RoiAlign"):
                runtime.run(feeds)
