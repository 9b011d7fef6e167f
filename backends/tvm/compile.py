"""Compiling a model into an artifact."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from ...ir.declarations import check_declarations
from ...ir.dependencies.batch import Batch, find_batch
from ...ir.element_count import element_count
from ...ir.errors import SecateurError, UnsupportedError
from ...ir.graph import Node
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.onnx_io import atomic_files, save
from ...ir.partition import Part, partition
from ...ir.reference import Session
from ...ir.scratch import scratch_folder
from ...ir.symbolic.analysis import Admitted
from ...ir.symbolic.expressions import atoms
from ...passes.batch import take_one_sample
from ...passes.inline import InlineFunctions
from ...passes.simplify import simplify_pipeline
from .artifact.bench import BenchData
from .artifact.build import Kernels, build_library
from .artifact.c_library import build_c_library
from .artifact.container import PartFile, write_container
from .artifact.metadata import (
    caches_of,
    container_interface,
    library_interface,
    metadata_of,
    quantized_ends,
    with_samples,
)
from .artifact.options import LibraryOptions
from .bounds import Accesses, Verdicts
from .cache import Cache
from .emission.choices import COPIES, Choices, limit_copies, read_table
from .emission.emission import Emission
from .emission.emit import emit
from .emission.halves import Halves, narrow
from .errors import UnprovenError, UnsupportedNodesError
from .graph.assumed_sizes import assume_sizes
from .graph.expand import expand_definitions
from .graph.open_sizes import check_admitted, data_decide, name_open_sizes
from .graph.subnormal import flush_subnormal
from .lowering.loops.expectations import refuse_sizes_of_inputs
from .lowering.lower import lower
from .plan.memory import ArenaBlock, arena_blocks
from .plan.operations import Plan
from .plan.schedule import Schedule
from .plan.sizes import is_bounded, size_of
from .plan.text import print_plan
from .targets import Target, can_run_here, for_halves
from .tuning.tune import TuneReport, check_tunable, tune

__all__ = ["CompileReport", "can_run_here", "compile_library", "compile_model"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What compilation made.

    `kernels` are the distinct ones, `reused` of them came from the cache, and
    `accesses` what is proven of their accesses to memory. `left` are the nodes left to ONNX
    Runtime, each with the reason. `tuning` says what was measured, if anything was. `arena` is
    where the buffers of an artifact of one part lie over its calls of kernels. `float32` are nodes
    that were to be computed in 16 bits and aren't, with the reason. `subnormal` says by node how
    many weights were too small for a normal float32, and count as zero.
    """

    seconds: float
    kernels: int
    reused: int
    operations: int
    accesses: Accesses
    left: tuple[str, ...]
    tuning: TuneReport | None
    bytes: int
    arena: tuple[ArenaBlock, ...] = ()
    float32: Mapping[str, str] = dataclasses.field(default_factory=dict)
    subnormal: Mapping[str, int] = dataclasses.field(default_factory=dict)


def compile_model(
    model: Model,
    target: Target,
    path: str | os.PathLike[str],
    *,
    copies: float | None = None,
    small: bool = False,
    cache: Cache | None = None,
    tune_minutes: float = 0,
    fallback: bool = False,
    declared_sizes: bool = False,
    dump_plan: str | os.PathLike[str] | None = None,
    sizes: Mapping[str, Admitted] | None = None,
    halves: Halves | None = None,
) -> CompileReport:
    """Compile `model` (unchanged) for `target` into the artifact `path`.

    A first dimension that inputs leave open is a batch where it is proven that its entries
    are independent samples (docs/axes.md): the artifact computes one sample, and `Runtime`
    runs it once for each. All other sizes that inputs leave open, and a batch that `sizes`
    names, stay open: the artifact computes each size that is admitted, by default any from 1
    on, and 0 where that is defined. `sizes` are by the names of the model's symbols, or
    `input.axis` where there is none.

    `copies` is how many times the weights' bytes transformed copies of them may take, by which
    convolutions of float32 are faster and round more: 0 makes none, infinity all that are worth it,
    None stands for `COPIES`.
    `small` prefers few bytes to speed: no such copies, and short code.

    Kernels that `cache`, by default the user's, knows are not compiled again; the result
    is the same. With `tune_minutes` forms and tiles of kernels are measured here for so
    long, and the fastest kept beside the cache, for this and later compilations.

    The artifact is a shared object. With `fallback` nodes that can't be lowered are left
    to ONNX Runtime, and where there are any, it is a container of several parts.

    An input that gives a result its size is refused, or, with `declared_sizes`, the size is
    the declared one, and the artifact fails where the input gives another.

    `dump_plan` is a file for the text of the plan, of each compiled part in turn. `halves` says
    which nodes are computed in 16 bits: products and convolutions, with sums in float32.

    Raises UnsupportedError naming the nodes that can't be lowered, or, without `fallback`,
    the one that mixes samples, and SecateurError where linking or writing fails. The file
    appears whole or not at all.
    """
    start = time.perf_counter()
    path = Path(path)
    work, batch = _prepare(model, declared_sizes, sizes)
    samples = with_samples(batch)
    compiler = _Compiler(
        target,
        cache or Cache.of_user(),
        copies=copies,
        small=small,
        minutes=tune_minutes,
        declared_sizes=declared_sizes,
        dumps=dump_plan is not None,
        sizes=sizes,
        halves=halves,
    )
    with atomic_files(path) as (temporary,):
        try:
            compiler.library(work, samples, temporary)
        except UnsupportedError as error:
            if not fallback:
                raise
            compiler.container(work, samples, error, temporary)
        size = temporary.stat().st_size
        if dump_plan is not None:
            compiler.write_plans(Path(dump_plan))
    return dataclasses.replace(compiler.report, seconds=time.perf_counter() - start, bytes=size)


def compile_library(
    model: Model,
    target: Target,
    folder: Path,
    options: LibraryOptions,
    *,
    copies: float | None = None,
    small: bool = False,
    cache: Cache | None = None,
    tune_minutes: float = 0,
    declared_sizes: bool = False,
    dump_plan: str | os.PathLike[str] | None = None,
    bench: BenchData | None = None,
    sizes: Mapping[str, Admitted] | None = None,
    halves: Halves | None = None,
) -> CompileReport:
    """Compile `model` (unchanged) for `target` into a C library: `options.files` in `folder`.

    As `compile_model`, but that every node has to be compiled. `bench` is what the program
    measures that `options.bench` asks for. The report's bytes are those of
    the static library. Files that are left by an error are the caller's to remove.
    """
    start = time.perf_counter()
    work, batch = _prepare(model, declared_sizes, sizes)
    compiler = _Compiler(
        target,
        cache or Cache.of_user(),
        copies=copies,
        small=small,
        minutes=tune_minutes,
        declared_sizes=declared_sizes,
        dumps=dump_plan is not None,
        threads=options.threads != "none",
        sizes=sizes,
        halves=halves,
    )
    compiler.c_library(work, with_samples(batch), folder, options, bench)
    if dump_plan is not None:
        compiler.write_plans(Path(dump_plan))
    size = (folder / options.archive).stat().st_size
    return dataclasses.replace(compiler.report, seconds=time.perf_counter() - start, bytes=size)


def prepared_model(
    model: Model, declared_sizes: bool = False, sizes: Mapping[str, Admitted] | None = None
) -> Model:
    """A model (unchanged) as it is compiled, whose nodes `Halves` names."""
    return _prepare(model, declared_sizes, sizes)[0]


def unsupported_nodes(
    model: Model,
    target: Target,
    *,
    declared_sizes: bool = False,
    sizes: Mapping[str, Admitted] | None = None,
) -> list[str]:
    """Why nodes of a model (unchanged) can't be compiled, by the analysis alone; no kernel is
    built. Raises UnsupportedError where that is not about single nodes."""
    work, _ = _prepare(model, declared_sizes, sizes)
    _check_sizes(work)
    if not declared_sizes:
        refuse_sizes_of_inputs(work)
    try:
        lower(work, target, sizes, declared_sizes=declared_sizes)
    except UnsupportedNodesError as error:
        return list(error.all_reasons().values()) or [str(error)]
    return []


def _prepare(
    model: Model, declared_sizes: bool, sizes: Mapping[str, Admitted] | None
) -> tuple[Model, Batch]:
    """A copy as it is compiled, with outputs as empty as they are declared where these count."""
    if sizes:
        check_admitted(model.clone(), sizes)
    work, batch = one_sample(model, sizes or {}, declared_sizes=declared_sizes)
    if declared_sizes:
        _declare_empty(work, model)
        assume_sizes(work)
    return work, batch


def one_sample(
    model: Model, sizes: Mapping[str, Admitted] | None = None, *, declared_sizes: bool = False
) -> tuple[Model, Batch]:
    """A copy as it is compiled: simplified, for one sample where it is proven to have a batch
    that isn't among `sizes`, which stay open, and data decide no sizes.

    Calls of the model's functions are put in place first, so that samples are followed through.
    """
    work = model.clone()
    if sizes:
        name_open_sizes(work)
    InlineFunctions().run(work)
    check_declarations(work)
    expand_definitions(work)
    for step in simplify_pipeline():
        step.run(work)
    infer_shapes(work)
    if not declared_sizes and data_decide(work, sizes or {}):
        return work, Batch(())
    batch = find_batch(work)
    if sizes and any(v.shape is not None and v.shape[0] in sizes for v in batch.inputs):
        return work, Batch(())
    if batch.is_proven:
        take_one_sample(work, batch)
    return work, batch


def _declare_empty(work: Model, model: Model) -> None:
    """Let outputs be as empty as they are declared, where inference finds no other sizes.

    It takes a declared 0 for a size that the exporter didn't know.
    """
    for output, declared in zip(work.graph.outputs, model.graph.outputs, strict=True):
        sizes, given = output.shape, declared.shape
        if sizes is None or given is None or len(sizes) != len(given) or output.dtype is None:
            continue
        pairs = zip(sizes, given, strict=True)
        found = [0 if own == 0 and not isinstance(size, int) else size for size, own in pairs]
        output.set_tensor_type(output.dtype, found)


MOST_ELEMENTS = 2**31 - 1
"""Elements of one tensor: kernels count them in 32 bits."""


def _check_sizes(model: Model) -> None:
    """Raise UnsupportedError where a tensor is too large for kernels, or for any machine."""
    for value in model.graph.values():
        sizes = [size for size in value.shape or () if isinstance(size, int)]
        if 0 not in sizes and element_count(sizes, MOST_ELEMENTS) is None:
            node = value.producer
            where = f"node '{node.label}' ({node.op_type}): result" if node is not None else "input"
            raise UnsupportedError(
                f"{where} '{value.name}' of {'x'.join(map(str, sizes))} elements is too large to "
                "compile; --input-shape gives inputs other sizes"
            )


@dataclasses.dataclass(frozen=True)
class _EmittedModel:
    """What a graph became before anything was compiled to machine code."""

    emission: Emission
    metadata: dict[str, Any]
    accesses: Accesses
    operations: int
    tuning: TuneReport | None
    float32: Mapping[str, str]

    def kernels(self) -> Kernels:
        """What artifacts are built from."""
        emission = self.emission
        metadata = {
            **self.metadata,
            "accesses": dataclasses.asdict(self.accesses),
            "calls": emission.describe_calls(),
        }
        writes = {name: verdict.writes for name, verdict in emission.proofs.items()}
        return Kernels(emission.schedule, emission.functions, emission.digests, writes, metadata)


class _Compiler:
    """Compiles graphs with the same options; `report` sums up what it made, `plans` their text."""

    def __init__(
        self,
        target: Target,
        cache: Cache,
        *,
        copies: float | None,
        small: bool,
        minutes: float,
        declared_sizes: bool,
        dumps: bool,
        threads: bool = True,
        sizes: Mapping[str, Admitted] | None = None,
        halves: Halves | None = None,
    ) -> None:
        self.sizes, self.halves = sizes, halves
        if halves is not None:
            target = for_halves(target, halves.dtype)
        self.target = _as_small(target) if small else target
        self.cache, self.minutes = cache, minutes
        self.copies = 0.0 if small else COPIES if copies is None else copies
        self.declared_sizes, self.threads = declared_sizes, threads
        if minutes > 0:
            check_tunable(target)
        self.dumps, self.plans = dumps, list[str]()
        self.report = CompileReport(0, 0, 0, 0, Accesses(), (), None, 0)

    def library(self, model: Model, samples: Set[str], path: Path) -> None:
        """A shared object of the whole model, which changes. Raises UnsupportedError."""
        made = self._emit_levels(model, samples)
        kernels = [level.kernels() for level in made]
        self._check_ram(kernels)
        reused = build_library(kernels, self.target, self.cache, path)
        self._check_flash(path)
        self._report(made, reused)

    def c_library(
        self,
        model: Model,
        samples: Set[str],
        folder: Path,
        options: LibraryOptions,
        bench: BenchData | None,
    ) -> None:
        """A C library of the whole model, which changes. Raises UnsupportedError."""
        made = self._emit_levels(model, samples)
        kernels = [level.kernels() for level in made]
        self._check_ram(kernels)
        reused = build_c_library(kernels, self.target, self.cache, folder, options, bench)
        built = f"lib{options.name}.so" if options.shared else options.archive
        self._check_flash(folder / built)
        self._report(made, reused)

    def _check_ram(self, levels: Sequence[Kernels]) -> None:
        """Raise SecateurError where a run takes more memory than the target has, or may take any
        amount."""
        most, name = self.target.ram_bytes, self.target.name
        if most is None:
            return
        shapes = levels[0].schedule.open
        if shapes is not None:
            sizes = [size_of(d) for shape in shapes.inputs for d in shape]
            endless = [a.key for a in atoms(sizes) if not a.op and not is_bounded(a)]
            if endless:
                raise SecateurError(
                    f"{name} has {most:,} bytes of RAM, and a run may take any amount: "
                    f"--size {endless[0]}=1..N says how large '{endless[0]}' may be"
                )
        needed = max(kernels.most_arena_bytes() or 0 for kernels in levels)
        if needed > most:
            raise SecateurError(
                f"a run takes {'up to ' * (shapes is not None)}{needed:,} bytes "
                f"besides inputs and outputs, and {name} has {most:,} bytes of RAM"
            )

    def _check_flash(self, file: Path) -> None:
        """Raise SecateurError where a shared object is larger than the target's memory for it."""
        most, size = self.target.flash_bytes, file.stat().st_size
        if most is not None and size > most:
            raise SecateurError(
                f"the model takes {size:,} bytes of code and weights, "
                f"and {self.target.name} has {most:,} bytes of flash"
            )

    def write_plans(self, path: Path) -> None:
        """The text of the plans of all parts."""
        with atomic_files(path) as (text,):
            text.write_text("\n".join(self.plans), encoding="utf-8")

    def _emit_levels(self, model: Model, samples: Set[str]) -> list[_EmittedModel]:
        """Kernels and their schedule, for each of the target's levels. The model changes. Raises
        UnsupportedError."""
        _check_sizes(model)
        if not self.declared_sizes:
            refuse_sizes_of_inputs(model)
        zeroed = flush_subnormal(model)
        for label, count in zeroed.items():
            log.debug("%s: %d weights below the smallest normal float32 made zero", label, count)
        self.report = dataclasses.replace(
            self.report, subnormal={**self.report.subnormal, **zeroed}
        )
        first, *others = self.target.levels
        copies = [model.clone() for _ in others]
        made = [self._emit(model, samples, first)]  # whose errors name the model's own nodes
        return [*made, *(self._emit(c, samples, o) for c, o in zip(copies, others, strict=True))]

    def _emit(self, model: Model, samples: Set[str], target: Target) -> _EmittedModel:
        """Kernels and their schedule. Where it isn't proven for open sizes that a fast one stays
        within its buffers, its node becomes plain loops. The model changes."""
        is_open = name_open_sizes(model) or data_decide(model, self.sizes or {})
        again = model.clone() if is_open and not self.declared_sizes else None
        plain: dict[str, None] = {}
        plans = list(self.plans)
        while True:
            try:
                return self._emit_with(model, samples, target, plain.keys())
            except UnprovenError as error:
                if again is None or not error.label or error.label in plain:
                    raise
                log.debug("%s; plain loops take its place", error)
                plain[error.label] = None
                model, self.plans = again.clone(), list(plans)

    def _emit_with(
        self, model: Model, samples: Set[str], target: Target, plain: Set[str]
    ) -> _EmittedModel:
        quantized = quantized_ends(model)
        left: dict[str, str] = {}
        plan = lower(
            model,
            target,
            self.sizes,
            lambda p: left.update(self._narrow(p, target)),
            declared_sizes=self.declared_sizes,
            plain=plain,
        )
        if self.dumps:
            self.plans.append(print_plan(plan, target.name))
        choices, tuning = self._choices(plan, target)
        emission = emit(plan, target, choices, Verdicts(self.cache), threads=self.threads)
        interface = library_interface(plan, quantized)
        metadata = metadata_of(interface, target, samples)
        if plan.sequences:
            metadata["sequences"] = plan.sequences
        if plan.caches:
            metadata["caches"] = caches_of(plan)
        accesses = Accesses.of(emission.proofs.values())
        return _EmittedModel(emission, metadata, accesses, len(plan.operations), tuning, left)

    def _narrow(self, plan: Plan, target: Target) -> dict[str, str]:
        """Let a plan compute in 16 bits what is to be, and say what isn't."""
        if self.halves is None:
            return {}
        return narrow(plan, self.halves, target, Choices(target, winograd=self.copies > 0))

    def _report(self, levels: Sequence[_EmittedModel], reused: int) -> None:
        arena = self._arena(levels[0].emission.schedule)
        operations = sum(made.operations for made in levels)
        kernels = sum(len(made.emission.functions) for made in levels)
        log.info("%d operations, %d kernels, %d from the cache", operations, kernels, reused)
        for made in levels:
            before, tuning = self.report, made.tuning
            self.report = dataclasses.replace(
                before,
                accesses=before.accesses.plus(made.accesses),
                tuning=tuning if before.tuning is None else before.tuning.and_then(tuning),
            )
        self.report = dataclasses.replace(
            self.report,
            kernels=self.report.kernels + kernels,
            reused=self.report.reused + reused,
            operations=self.report.operations + operations,
            arena=arena,
            float32={**self.report.float32, **levels[0].float32},
        )

    def _arena(self, schedule: Schedule) -> tuple[ArenaBlock, ...]:
        """Where buffers lie in the arena of the first part, if that is known before a run."""
        if self.report.kernels or self.report.left or schedule.open is not None:
            return ()
        return arena_blocks(schedule)

    def container(
        self, model: Model, samples: Set[str], error: UnsupportedError, path: Path
    ) -> None:
        """A container of the model, whose compilation as a whole failed with `error`.

        What part of the model fails, is found by trying: a part that can't be compiled
        leaves the nodes that are to blame, or else all of its own, to ONNX Runtime.
        """
        empty = self.report
        left: dict[Node, str] = {}
        if isinstance(error, UnsupportedNodesError):
            left.update(error.all_reasons())
        while True:
            self.report = dataclasses.replace(empty, left=tuple(left.values()))
            self.plans = []
            parts = partition(model, left)
            with scratch_folder() as folder:
                files, failures = self._parts(parts, folder)
                if not failures:
                    metadata = metadata_of(container_interface(model), self.target, samples)
                    write_container(path, metadata, files, folder)
                    return
            left.update(failures)

    def _parts(
        self, parts: Sequence[Part], folder: Path
    ) -> tuple[list[PartFile], Mapping[Node, str]]:
        """Write every part to a file; or, at the first that can't be compiled, the reasons."""
        files = []
        for index, part in enumerate(parts):
            graph = part.model.graph
            name = f"part{index}.so" if part.compiled else f"part{index}.onnx"
            inputs = tuple(v.name for v in graph.inputs)
            outputs = tuple(v.name for v in graph.outputs)
            files.append(PartFile(name, part.compiled, inputs, outputs))
            if part.compiled:
                try:
                    self.library(part.model, set(), folder / name)
                except UnsupportedError as error:
                    return [], _blame(part, error)
            else:
                save(part.model, folder / name)
                Session(part.model)  # which says at once what ONNX Runtime lacks, too
        return files, {}

    def _choices(self, plan: Plan, target: Target) -> tuple[Choices, TuneReport | None]:
        table, tuning = self.cache.table, None
        if self.minutes > 0:
            spent = self.report.tuning.seconds / 60 if self.report.tuning is not None else 0
            minutes = max(0, self.minutes - spent)
            by_winograd = self.copies > 0
            measured, tuning = tune(plan, target, minutes, table, self.cache, winograd=by_winograd)
        else:
            measured = read_table(table, target)
        chosen = {key: m.choice for key, m in measured.items()}
        choices = Choices(target, chosen, self.copies > 0)
        return limit_copies(plan, choices, self.copies), tuning


def _as_small(target: Target) -> Target:
    """A target, and each of its levels, for which code is to be short."""
    variants = tuple(dataclasses.replace(level, small=True) for level in target.variants)
    return dataclasses.replace(target, small=True, variants=variants)


def _blame(part: Part, error: UnsupportedError) -> dict[Node, str]:
    """Map a part's compile failure back to nodes of the full model."""
    if isinstance(error, UnprovenError):
        nodes = {o for o in part.origin.values() if o.label == error.label}
        if nodes:
            return dict.fromkeys(nodes, str(error))
    if isinstance(error, UnsupportedNodesError):
        found = {part.origin[n]: r for n, r in error.all_reasons().items() if n in part.origin}
        if found:
            return found
    return {node: f"node '{node.label}' ({node.op_type}): {error}" for node in part.origin.values()}
