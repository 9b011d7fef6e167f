"""Random graphs over all operators that can be lowered, compiled and held against ONNX Runtime.

    python -m tests.backends.tvm.random_graphs --count 2000 --seed 0

A seed makes one graph, whatever else is drawn. Graphs of neighbouring seeds share operator sets, so
that many become one artifact. What differs is printed as the smallest part of the graph that does.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from secateur.ir.errors import SecateurError

from . import random_images, random_movement
from .joined import Feeds, Joined, Part, compile_parts
from .random_builder import BATCH, FLOATS, Builder, Drawn, ImpossibleError
from .random_nodes import ENTRIES, LEFT_OUT

__all__ = ["ENTRIES", "LEFT_OUT", "random_images", "random_movement"]

Array = Any

GROUP = 16
"""Neighbouring seeds with the same operator sets, all with a batch or none."""
OPSETS = (13, 22, 18, 17, 21, 14, 20, 16, 19, 15, 23, 24)
TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 4e-3}
SIZES = (1, 3, 5)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A drawn graph: its model, and what it is in all runs that were made while drawing."""

    part: Part
    outputs: tuple[Drawn, ...]
    batch: bool
    builder: Builder

    def feeds(self, samples: int) -> Feeds:
        """Inputs of a number of samples."""
        return {v.name: v.array[:samples] if v.sampled else v.array for v in self.builder.inputs}


def settings(seed: int) -> tuple[int, bool]:
    """The operator set of a seed's graph, and whether it has a batch."""
    group = seed // GROUP
    return OPSETS[group % len(OPSETS)], group % 4 == 3


def draw(seed: int) -> Graph:
    """The graph of a seed."""
    opset, batch = settings(seed)
    random = np.random.default_rng(seed)
    builder = Builder(random, opset, batch=batch)
    operators = sorted(ENTRIES.keys() & available(opset))
    count = int(random.integers(3, 13))
    for _ in range(20 * count):
        grow(builder, operators[int(random.integers(len(operators)))])
        if sum(n.op_type != "Constant" for n in builder.nodes) >= count and builder.values:
            break
    return finish(builder, str(seed))


def grow(builder: Builder, op: str) -> bool:
    """Try to add what an entry draws; whether that is possible."""
    lists = (builder.nodes, builder.initializers, builder.inputs, builder.values)
    before = [len(kept) for kept in lists]
    try:
        ENTRIES[op](builder, op)
    except ImpossibleError:
        for kept, size in zip(lists, before, strict=True):
            del kept[size:]
        return False
    return True


@functools.cache
def available(opset: int) -> set[str]:
    """The operators of an operator set."""
    return {s.name for s in onnx.defs.get_all_schemas_with_history()
            if s.domain == "" and s.since_version <= opset}  # fmt: skip


def finish(builder: Builder, name: str) -> Graph:
    """The graph with what nobody reads as outputs, and some of what is read."""
    read = {i for node in builder.nodes for i in node.input}
    made = {o for node in builder.nodes for o in node.output}
    results = [v for v in builder.values if v.name in made]
    outputs = [v for v in results if v.name not in read or builder.chance(0.15)]
    return graph_of(builder, builder.nodes, builder.inputs, outputs, name)


def graph_of(
    builder: Builder,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Drawn],
    outputs: Sequence[Drawn],
    name: str,
) -> Graph:
    """A graph of some of a builder's nodes."""
    read = {i for node in nodes for i in node.input}
    proto = helper.make_graph(
        nodes,
        "random",
        [_info(v) for v in inputs],
        [_info(v) for v in outputs],
        [t for t in builder.initializers if t.name in read],
        value_info=[_info(v) for v in builder.values if v not in inputs and v not in outputs
                    and any(v.name in n.output for n in nodes)],
    )  # fmt: skip
    imports = [helper.make_opsetid("", builder.opset)]
    model = helper.make_model(proto, opset_imports=imports, ir_version=8)
    feeds = {v.name: v.array for v in inputs}
    return Graph(Part(name, model, feeds), tuple(outputs), builder.batch, builder)


def _info(value: Drawn) -> onnx.ValueInfoProto:
    shape: list[int | str | None] = list(value.shape)
    if value.sampled:
        shape[0] = "N" if shape[0] == BATCH else None
    kind = helper.np_dtype_to_tensor_dtype(value.array.dtype)
    return helper.make_tensor_value_info(value.name, kind, shape)


# --- checking ----------------------------------------------------------------------


@dataclasses.dataclass
class Findings:
    """What became of some seeds: the number that equal, and the others with reasons."""

    equal: int = 0
    refused: dict[int, str] = dataclasses.field(default_factory=dict)
    wrong: dict[int, str] = dataclasses.field(default_factory=dict)
    crashed: dict[int, str] = dataclasses.field(default_factory=dict)

    def add(self, other: Findings) -> None:
        self.equal += other.equal
        self.refused.update(other.refused)
        self.wrong.update(other.wrong)
        self.crashed.update(other.crashed)


def check(seeds: Iterable[int], folder: Path, *, shrink: bool = True) -> Findings:
    """Compile the graphs of some seeds and compare what they compute."""
    findings = Findings()
    graphs = {seed: draw(seed) for seed in seeds}
    for batch in (False, True):
        chosen = {str(s): g for s, g in graphs.items() if g.batch == batch}
        refused: dict[str, str] = {}
        parts = [g.part for g in chosen.values()]
        path = folder / ("batch" if batch else "static")
        path.mkdir(parents=True)
        for joined in compile_parts(parts, path, GROUP, refused):
            for name, difference in differences(joined, chosen):
                if difference is None:
                    findings.equal += 1
                else:
                    text = smallest(chosen[name], folder / name) if shrink else ""
                    findings.wrong[int(name)] = f"{difference}\n{text}"
        findings.refused.update({int(name): reason for name, reason in refused.items()})
    return findings


def differences(joined: Joined, graphs: dict[str, Graph]) -> Iterator[tuple[str, str | None]]:
    """Each part of an artifact, and what differs from ONNX Runtime."""
    found: dict[str, str | None] = dict.fromkeys(p.name for p in joined.parts.values())
    chosen = {prefix: graphs[part.name] for prefix, part in joined.parts.items()}
    for samples in SIZES if any(g.batch for g in chosen.values()) else (BATCH,):
        feeds = {prefix: graph.feeds(samples) for prefix, graph in chosen.items()}
        try:
            results = joined.run(feeds)
        except SecateurError as error:
            if len(chosen) == 1:
                (graph,) = chosen.values()
                found[graph.part.name] = f"refused while running: {error}"
                break
            yield from _each_alone(joined, graphs, error)
            return
        for prefix, graph in chosen.items():
            expected = graph.part.reference(feeds[prefix])
            if expected is None:
                found[graph.part.name] = "ONNX Runtime refuses the graph"
                continue
            for value in graph.outputs:
                difference = compare(value, results[prefix][value.name], expected[value.name])
                if difference and not found[graph.part.name]:
                    found[graph.part.name] = f"{samples} samples: {difference}" if graph.batch \
                        else difference  # fmt: skip
    yield from found.items()


def _each_alone(
    joined: Joined, graphs: dict[str, Graph], error: SecateurError
) -> Iterator[tuple[str, str | None]]:
    """As `differences`, of artifacts of one part: the one that fails ends no other."""
    with tempfile.TemporaryDirectory() as folder:
        for prefix, part in joined.parts.items():
            for alone in compile_parts([part], Path(folder) / prefix.strip("/")):
                yield from differences(alone, graphs)


def compare(value: Drawn, actual: Array, expected: Array) -> str | None:
    """What differs: integers exactly, floats by more than rounding, as it grew on the way."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return f"{value.name}: {actual.dtype}{actual.shape}, not {expected.dtype}{expected.shape}"
    if str(expected.dtype) not in FLOATS:
        different = actual != expected
    else:
        a, e = actual.astype(np.float64), expected.astype(np.float64)
        scale = float(np.abs(value.array.astype(np.float64)).max(initial=0.0))
        moved = max(float(np.abs(r.astype(np.float64) - value.array).max(initial=0.0))
                    for r in value.runs[1:3])  # fmt: skip
        kind = "float16" if value.rough else str(expected.dtype)
        different = ~(np.abs(a - e) <= TOLERANCE[kind] * max(scale, 1e-30) + 4 * moved)
    if not different.any():
        return None
    at = tuple(int(i[0]) for i in np.nonzero(different)) if expected.ndim else ()
    return (
        f"{value.name}{list(at)}: {actual[at]!r}, not {expected[at]!r} "
        f"({int(different.sum())} of {different.size} differ)"
    )


def smallest(graph: Graph, folder: Path) -> str:
    """The text of a small part of the graph that differs by itself, on the values that it reads."""
    builder = graph.builder
    values = {v.name: v for v in builder.values}
    producers = {o: node for node in builder.nodes for o in node.output if o}
    order = {id(node): i for i, node in enumerate(builder.nodes)}
    for node in builder.nodes:
        chosen = [node]
        for depth in range(1, 4):
            for name in [i for n in chosen for i in n.input if i in producers]:
                fixed = name not in values  # a constant of a node
                if (fixed or depth > 1) and producers[name] not in chosen:
                    chosen.append(producers[name])
            if node.op_type in ("Constant", "Identity") and node.output[0] not in values:
                break
            nodes = sorted(chosen, key=lambda n: order[id(n)])
            made = {o for n in nodes for o in n.output}
            read = dict.fromkeys(i for n in nodes for i in n.input if i and i not in made)
            inputs = [values[i] for i in read if i in values]
            outputs = [values[o] for o in node.output if o]
            part = graph_of(builder, nodes, inputs, outputs, f"{node.name}_{depth}")
            difference = _alone(part, inputs, folder / f"{node.name}_{depth}")
            if difference:
                return f"{difference}\n{onnx.printer.to_text(part.part.model)}"
    return onnx.printer.to_text(graph.part.model)


def _alone(graph: Graph, inputs: Sequence[Drawn], folder: Path) -> str | None:
    """What differs where a graph is compiled alone, on given inputs."""
    folder.mkdir(parents=True)
    if graph.batch:
        graph.builder.inputs[:] = [*graph.builder.inputs, *(v for v in inputs)]
    for joined in compile_parts([graph.part], folder):
        (prefix,) = joined.parts
        feeds = {v.name: v.array for v in inputs}
        try:
            results = joined.run({prefix: feeds})[prefix]
        except SecateurError as error:
            return str(error)
        expected = graph.part.reference(feeds)
        for value in graph.outputs if expected is not None else ():
            difference = compare(value, results[value.name], expected[value.name])
            if difference:
                return difference
    return None


# --- many of them ------------------------------------------------------------------


def _chunk(seeds: Sequence[int]) -> Findings:
    with tempfile.TemporaryDirectory() as folder:
        return check(seeds, Path(folder))


class _Worker:
    """A process of its own, started anew where it ended."""

    def __init__(self) -> None:
        self.pool: concurrent.futures.ProcessPoolExecutor | None = None

    def check(self, seeds: Sequence[int]) -> Findings:
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
        try:
            return self.pool.submit(_chunk, seeds).result()
        except Exception as error:  # whatever a test of this kind is to find
            if isinstance(error, BrokenProcessPool):
                self.pool = None
            if len(seeds) == 1:
                return Findings(crashed={seeds[0]: f"{type(error).__name__}: {error}"})
            findings = Findings()
            for seed in seeds:
                findings.add(self.check([seed]))
            return findings


def run(count: int, start: int, workers: int) -> Findings:
    """Check `count` graphs from a seed on, in so many processes."""
    seeds = range(start, start + count)
    chunks = [seeds[i : i + GROUP] for i in range(0, count, GROUP)]
    findings = Findings()
    idle = [_Worker() for _ in range(workers)]

    def step(chunk: Sequence[int]) -> Findings:
        worker = idle.pop()
        try:
            return worker.check(chunk)
        finally:
            idle.append(worker)

    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        for number, found in enumerate(threads.map(step, chunks)):
            findings.add(found)
            _report(found)
            print(f"{min(count, (number + 1) * GROUP)} of {count}", file=sys.stderr, flush=True)
    for worker in idle:
        if worker.pool is not None:
            worker.pool.shutdown()
    return findings


def _report(findings: Findings) -> None:
    for kind in ("crashed", "wrong", "refused"):
        for seed, reason in getattr(findings, kind).items():
            opset, batch = settings(seed)
            print(f"seed {seed} {kind} (opset {opset}{', batch' * batch}): {reason}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    found = run(given.count, given.seed, given.workers)
    print(
        f"{found.equal} equal, {len(found.refused)} refused, {len(found.wrong)} wrong, "
        f"{len(found.crashed)} crashed"
    )
    return 1 if found.wrong or found.crashed else 0


if __name__ == "__main__":
    sys.exit(main())
