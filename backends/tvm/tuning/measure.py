"""Times of single kernels and of a model's kernels, and what the machine can do at best."""

from __future__ import annotations

import ctypes
import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ....ir.errors import SecateurError
from ....ir.scratch import scratch_folder
from ....ir.tensor import Array
from ..artifact.entry import scratch_bytes, single_calls
from ..artifact.library import Library, aligned, load_library
from ..artifact.objects import NATIVE, compile_functions, compile_runtime
from ..artifact.toolchain import compile_source, link_shared
from ..cache import Cache
from ..kernels.matrix.reduction import choose
from ..targets import Target
from ..tensorir.builder import KernelBuilder, load
from ..tensorir.digest import digest
from ..tensorir.types import PrimFunc

ROUNDS = 5
SECONDS_PER_ROUND = 4e-3
MOST_RUNS = 30
FLUSHED_BYTES = 4 * 1024 * 1024
_PEAK_STEPS = 100_000
_PEAK_ROUNDS = 20  # of which the best counts: others may use the core in some
_PEAK_ROWS = 2
_PEAK_WEIGHTS = 32


def time_functions(
    functions: Mapping[str, PrimFunc],
    digests: Mapping[str, str],
    target: Target,
    cache: Cache,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Microseconds of each kernel on one thread, on random data.

    They are the least of several rounds, in which all take turns, of a median each. The
    level 2 cache holds other things before each run, as it does in a model.
    """
    with scratch_folder() as folder:
        objects = compile_functions(functions, digests, target, cache, folder)
        path, alone = folder / "kernels.so", folder / "alone.c"
        alone.write_text(single_calls(objects.signatures), encoding="utf-8")
        shutil.copy(NATIVE / "context.h", folder)
        compile_source(target, alone, alone.with_suffix(".o"), freestanding=True)
        runtime = compile_runtime(target, cache, folder, ["threads.c"])
        link_shared(target, [*objects.paths, alone.with_suffix(".o"), *runtime], path)
        library = load_library(path)
    scratch = aligned(scratch_bytes(objects.signatures))
    memory = {name: _arguments(function) for name, function in functions.items()}
    times = dict.fromkeys(functions, float("inf"))
    flushed = np.zeros(FLUSHED_BYTES, np.uint8)
    for _ in range(rounds):
        for name, arrays in memory.items():
            kernel = library[f"{name}_alone"]
            pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
            own = ctypes.c_void_p(scratch.ctypes.data)
            runs = []
            for _ in range(max(3, min(MOST_RUNS, int(SECONDS_PER_ROUND * 1e6 / times[name])))):
                flushed += 1
                start = time.perf_counter()
                kernel(pointers, own)
                runs.append(time.perf_counter() - start)
            times[name] = min(times[name], float(np.median(runs)) * 1e6)
    return times


def _arguments(function: PrimFunc) -> list[Array]:
    """Memory for a kernel: random data; zeros where integers may be positions."""
    random = np.random.default_rng(0)
    result = []
    for buffer in function.params:
        shape, dtype = [int(d) for d in buffer.shape], np.dtype(str(buffer.dtype))
        array = aligned(int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)
        if dtype == np.float32:
            random.random(out=array, dtype=np.float32)
        elif dtype in (np.int8, np.uint8):
            array[...] = random.integers(0, 100, shape, dtype)
        else:
            array[...] = 0
        result.append(array)
    return result


def measure_peak(target: Target, input_dtype: str) -> float:
    """Multiply-accumulates per second of one thread, with all operands in registers.

    The instructions are those by which kernels multiply inputs of the type, in as many results
    as registers hold: `_PEAK_ROWS` activations, each by the same weights. These are others in
    each step, from the level 1 cache: products that no step changes would be made once.
    """
    dot = choose(target, input_dtype)
    lanes, per_step = target.lanes, dot.weights_per_step
    free = target.registers - (_PEAK_ROWS + 1) * dot.parts - dot.temporaries
    columns = max(1, min(8, free // _PEAK_ROWS))
    results = _PEAK_ROWS * columns
    k = KernelBuilder()
    x = k.parameter("X", (64,), input_dtype)
    w = k.parameter("W", (_PEAK_WEIGHTS * columns * per_step,), dot.weight_dtype)
    y = k.parameter("Y", (results * lanes,), dot.accumulator)
    acc = k.local(results * lanes, dot.accumulator)
    for i in range(results):
        k.store(acc, load(y, i * lanes, lanes=lanes), i * lanes, lanes=lanes)
    values = [dot.activation(k, x, row * dot.depth) for row in range(_PEAK_ROWS)]
    with k.loop(_PEAK_STEPS // _PEAK_WEIGHTS, "turn"), k.loop(_PEAK_WEIGHTS, "step") as step:
        for column in range(columns):
            weights = dot.weights(k, w, (step * columns + column) * per_step)
            for row, value in enumerate(values):
                at = (column * _PEAK_ROWS + row) * lanes
                k.store(acc, dot.step(load(acc, at, lanes=lanes), value, weights), at, lanes=lanes)
    for i in range(results):
        k.store(y, load(acc, i * lanes, lanes=lanes), i * lanes, lanes=lanes)
    function = k.finish()
    digests = {"peak": digest(function)}
    times = time_functions({"peak": function}, digests, target, Cache.none(), _PEAK_ROUNDS)
    steps = _PEAK_STEPS // _PEAK_WEIGHTS * _PEAK_WEIGHTS
    return steps * results * lanes * dot.depth / (times["peak"] * 1e-6)


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """What the calls of one kernel cost in a run of the model: the median of several runs.

    `macs` are those of all calls together, by the operators' definitions. `input_dtype`
    is the type of what the kernel reads first.
    """

    kernel: str
    operations: tuple[str, ...]
    input_dtype: str
    calls: int
    microseconds: float
    macs: int


@dataclasses.dataclass(frozen=True)
class NodeTimes:
    """Microseconds of a run of a model, and of the kernels of each of its nodes by label."""

    whole: float
    nodes: dict[str, float]

    def times(self, factor: float) -> NodeTimes:
        return NodeTimes(
            factor * self.whole, {label: factor * t for label, t in self.nodes.items()}
        )


def time_nodes(
    paths: Sequence[Path], feeds: Mapping[str, Array], *, threads: int = 1, seconds: float = 2.0
) -> list[NodeTimes]:
    """Of several shared objects that take the same inputs, measured in turns for some seconds.

    The 10th percentile of all turns: about what the machine takes while nothing else runs on it.
    The least of `seconds` and what `RUNS` turns take is spent. Of `feeds` that hold more samples
    than the artifacts compute the first are taken.
    """
    libraries = [Library(path, threads) for path in paths]
    wanted = {i["name"]: tuple(i["shape"]) for i in libraries[0].metadata["inputs"]}
    feeds = {name: _fitting(name, feeds[name], shape) for name, shape in wanted.items()}
    labels = [[call["operation"] for call in lib.metadata["calls"]] for lib in libraries]
    nodes: list[dict[str, list[float]]] = [{label: [] for label in own} for own in labels]
    whole: list[list[float]] = [[] for _ in libraries]
    for library in libraries:
        library.invoke(feeds)
    start = time.perf_counter()
    for turn in range(RUNS):
        if turn >= FEWEST_RUNS and time.perf_counter() - start > seconds:
            break
        for library, own, spent, runs in zip(libraries, labels, nodes, whole, strict=True):
            library.invoke(feeds)  # which finds what the others left in the caches
            before = time.perf_counter()
            library.invoke(feeds)
            runs.append(time.perf_counter() - before)
            sums = dict.fromkeys(own, 0.0)
            for label, took in zip(own, library.time_calls(feeds), strict=True):
                sums[label] += took
            for label, took in sums.items():
                spent[label].append(took)
    return [
        NodeTimes(_undisturbed(runs), {label: _undisturbed(own) for label, own in spent.items()})
        for runs, spent in zip(whole, nodes, strict=True)
    ]


def _undisturbed(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 10)) * 1e6


def _fitting(name: str, array: Array, shape: tuple[int | str, ...]) -> Array:
    """An input of one sample; sizes that are text are open."""
    if array.ndim == len(shape) > 0 and isinstance(shape[0], int) and len(array) > shape[0]:
        array = array[: shape[0]]
    fits = array.ndim == len(shape) and all(
        isinstance(known, str) or known == size
        for known, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise SecateurError(f"input '{name}' has the shape {array.shape}, not {shape}")
    return array


@dataclasses.dataclass(frozen=True)
class OperatorTime:
    """What the kernels of one node cost in a run, and its multiply-accumulates.

    `of_peak` is the share of what the machine could do in that time on operands in registers; a
    form that multiplies less, as Winograd's, may have more than all. None where nothing is
    multiplied by the instructions that a peak is known of.
    """

    node: str
    op_type: str
    microseconds: float
    macs: int
    of_peak: float | None = None


_PEAK_TYPES = ("float32", "uint8", "int8")


def time_operators(
    path: Path,
    feeds: Mapping[str, Array],
    target: Target,
    *,
    threads: int = 1,
    seconds: float = 1.0,
) -> list[OperatorTime]:
    """Of the nodes of a shared object for a target, in the order in which it computes them."""
    (times,) = time_nodes([path], feeds, threads=threads, seconds=seconds)
    operators: dict[str, str] = {}
    macs: dict[str, int] = {}
    dtypes: dict[str, str] = {}
    for call in Library(path, threads).metadata["calls"]:
        if call["macs"]:
            dtypes[call["operation"]] = call["dtype"]
        operators.setdefault(call["operation"], call["operator"])
        macs[call["operation"]] = macs.get(call["operation"], 0) + call["macs"]
    peaks = {t: measure_peak(target, t) for t in set(dtypes.values()) if t in _PEAK_TYPES}

    def share(label: str, took: float) -> float | None:
        peak = peaks.get(dtypes.get(label, ""))
        return None if peak is None or took <= 0 else macs[label] / (took * 1e-6 * peak * threads)

    return [
        OperatorTime(label, operators[label], took, macs[label], share(label, took))
        for label, took in times.nodes.items()
    ]


RUNS, FEWEST_RUNS = 200, 9
"""Turns at most and at least."""


def profile(
    path: Path, feeds: Mapping[str, Array], threads: int = 1, runs: int = 20
) -> list[KernelTime]:
    """The kernels of a shared object that `compile_model` made, the dearest first."""
    library = Library(path, threads)
    calls = library.metadata["calls"]
    names = {call["kernel"] for call in calls}
    library.invoke(feeds)
    each = []
    for _ in range(runs):
        spent = dict.fromkeys(names, 0.0)
        for call, seconds in zip(calls, library.time_calls(feeds), strict=True):
            spent[call["kernel"]] += seconds
        each.append(spent)
    result = []
    for name in names:
        own = [call for call in calls if call["kernel"] == name]
        result.append(
            KernelTime(
                name,
                tuple(dict.fromkeys(call["operation"] for call in own)),
                own[0]["dtype"],
                len(own),
                float(np.median([run[name] for run in each])) * 1e6,
                sum(call["macs"] for call in own),
            )
        )
    return sorted(result, key=lambda k: (-k.microseconds, k.kernel))
