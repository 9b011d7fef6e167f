"""The main job: ONNX in; simplified, pruned, quantized and compiled model with a report out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backends.tvm.artifact.options import LibraryOptions
from ..backends.tvm.cache import Cache
from ..backends.tvm.targets import can_run_here, level_here, parse_target
from ..checking.agreement import compare
from ..checking.checks import check_equivalent, check_feeds, check_file
from ..checking.drawing import draw
from ..checking.drop import judge_of
from ..checking.evaluation import evaluate_report
from ..checking.independence import check_independent
from ..checking.layers import compare_layers
from ..checking.library_runner import LibraryRunner
from ..checking.measure import describe_model, environment, latencies, measure_stage
from ..checking.metrics.catalogue import kind_of_labels
from ..checking.runners import Narrowing, Runner
from ..checking.running import open_model
from ..checking.thumbnails import thumbnails
from ..data.batches import batch_sizes
from ..data.datasets import (
    UNLABELLED,
    Dataset,
    DataSource,
    load_dataset,
    prepared,
    source_files,
)
from ..data.embedding import as_pixels, embed, embedded_note
from ..data.npz import DataError
from ..data.preprocessing import Preprocessing
from ..data.random_inputs import random_feeds
from ..ir.errors import SecateurError
from ..ir.external import external_files
from ..ir.model import Model
from ..ir.onnx_io import atomic_files, save
from ..ir.reference import Session
from ..ir.tensor import Array
from ..passes.base import Context
from ..passes.batch import inspect_batch
from ..passes.dump import Dump
from ..passes.quantize import SCHEMES
from ..passes.quantize.restore import already_quantized
from ..passes.simplify.input_elements import InputShape
from ..reporting.html import has_templates, report_page
from ..reporting.markdown import to_markdown
from ..reporting.report import Artifact, Report, Stage
from .bench import bench_data
from .choices import PrecisionName
from .depfile import make_rule
from .device_times import split_latency
from .kept_steps import KeptSteps, forget, kept_folder, run_facts
from .latency import Machine
from .output import output_folder
from .precision import choose_precision, target_for, with_precision
from .progress import Progress, Silent
from .pruning import prune_model
from .settings import ARTIFACT, FILES, UNEVALUATED, Settings
from .steps import (
    Step,
    StepResult,
    quantize_step,
    recover_step,
    run_step,
    simplify_step,
    step_warnings,
)

log = logging.getLogger(__name__)


def optimize(
    model: Model | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    target: str,
    input_shapes: Mapping[str, InputShape] | None = None,
    freeze_defaults: bool = False,
    input_values: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    macs: float | None = None,
    params: float | None = None,
    bytes: float | str | None = None,
    latency: float | str | None = None,
    ratio: float | None = None,
    quantize: str | None = None,
    quantization: Mapping[str, Any] | None = None,
    calibration: DataSource | None = None,
    evaluation: DataSource | None = None,
    preprocess: Preprocessing | str | Sequence[str] | Mapping[str, Any] | None = None,
    embed_preprocessing: bool = False,
    metrics: Sequence[str] = (),
    scope: str = "global",
    importance: str | None = None,
    align: int | None = None,
    ignore: Sequence[str] = (),
    ignore_prune: Sequence[str] = (),
    limits: Sequence[str] = (),
    normalized: bool = False,
    recovery: bool = True,
    rematch: bool = False,
    rotate: bool = False,
    search: float = 0.0,
    iterations: int | None = None,
    depth: int | None = None,
    tune: float = 0.0,
    fallback: bool = False,
    declared_sizes: bool = False,
    copies: float | None = None,
    small: bool = False,
    precision: PrecisionName | None = None,
    sizes: Sequence[str] = (),
    cache: str | os.PathLike[str] | bool = True,
    threads: int = 1,
    seed: int = 0,
    library: LibraryOptions | None = None,
    depfile: Path | None = None,
    dump: Path | None = None,
    resume: bool = False,
    read: Sequence[Path] = (),
    observer: Progress | None = None,
    command: str = "",
) -> Report:
    """Simplify, prune, quantize, verify and compile `model`, and measure every stage.

    The folder `out` receives `model.onnx`, `model.so`, `report.json`, `report.md` and, where
    Jinja2 is installed, `report.html`, all or none of them. `calibration` and `evaluation` are
    `.npz` files, folders, functions or mappings (docs/data.md); quantization needs the former,
    accuracy the latter with labels.
    `preprocess` says how pictures and recordings of folders become inputs; with
    `embed_preprocessing` the model does that itself, and takes pixels. `metrics` are what is
    measured (docs/metrics.md). `input_shapes` fixes inputs of open shape, `freeze_defaults`
    those that have a default value, `input_values` gives inputs' values as text
    (`{"rate": "16000"}`), `outputs` names values or nodes at which the model ends.
    `tune`, `fallback`, `declared_sizes`, `sizes` (as in `seq=1..512`), `copies`, `small` and
    `cache` (a folder, or whether to use the user's) are those of `compile_model`, `precision` is
    `bf16` or `fp16` (docs/quantization.md). With `library` the result
    is a C library in place of `model.so`. `depfile` is a file for a rule of Make that says which
    files the result depends on: those that this function reads, and `read`. `dump` is an empty
    folder for the model's text after each pass, and the compiler's plan. With `resume` finished
    steps are kept in `out` until the run ends, and those that an interrupted run of the same kept
    there aren't run again. `command` is what the report says was run. A `model` given
    as IR is not changed. Raises SecateurError.
    """
    embedded = None
    if embed_preprocessing:
        if preprocess is None:
            raise SecateurError("embed-preprocessing needs preprocess, which says what is embedded")
        embedded = Preprocessing.of(preprocess)
    settings = Settings(
        target=target,
        input_shapes=dict(input_shapes or {}),
        freeze_defaults=freeze_defaults,
        input_values=dict(input_values or {}),
        outputs=tuple(outputs),
        macs=macs,
        params=params,
        bytes=bytes,
        latency=latency,
        ratio=ratio,
        quantize=quantize,
        quantization=dict(quantization or {}),
        scope=scope,
        importance=importance,
        align=align,
        ignore=tuple(ignore),
        ignore_prune=tuple(ignore_prune),
        limits=tuple(limits),
        normalized=normalized,
        recovery=recovery,
        rematch=rematch,
        rotate=rotate,
        search=search,
        iterations=iterations,
        depth=depth,
        tune=tune,
        fallback=fallback,
        declared_sizes=declared_sizes,
        copies=copies,
        small=small,
        precision=precision,
        sizes=tuple(sizes),
        threads=threads,
        seed=seed,
        metrics=tuple(metrics),
        embed=embedded,
        library=None if library is None else library.for_target(parse_target(target)),
    )
    if metrics and evaluation is None:
        raise SecateurError(UNEVALUATED)
    if quantize is not None and calibration is None and SCHEMES[quantize].needs_samples:
        raise SecateurError("quantizing to integers needs calibration data")
    writer = None if dump is None else Dump(dump)
    run = _Stages(settings, Cache.open(cache), observer or Silent(), writer)
    out = Path(out)
    names = FILES if library is None else (*FILES, *library.replaced)
    with contextlib.ExitStack() as stack:
        if depfile is not None:  # which appears after the folder, or neither does
            (rule,) = stack.enter_context(atomic_files(depfile))
        kept = stack.enter_context(kept_folder(out)) if resume else None
        folder = stack.enter_context(output_folder(out, names))
        run.read(model, prepared(calibration, preprocess), prepared(evaluation, preprocess))
        refuse_overwriting(run.original, *(out / name for name in names))
        if depfile is not None:
            files = [*run.files_read(calibration, evaluation), *read]
            made = ARTIFACT if library is None else library.archive
            rule.write_text(make_rule(out / made, files), encoding="utf-8")
        if kept is not None:
            run.keep_steps(kept)
        run.transform()
        run.verify(folder / "model.onnx")
        run.compile(folder)
        run.measure()
        run.write_report(folder, command)
    forget(out)
    return run.report


def refuse_overwriting(model: Model, *outputs: Path) -> None:
    """Raise SecateurError where an output would replace the file that `model` came from."""
    if model.path is None:
        return
    for output in outputs:
        if output.exists() and output.samefile(model.path):
            raise SecateurError(f"{output}: is the input model; choose another output")


class _Stages:
    """The state of one run; its public methods are the stages, in order."""

    def __init__(
        self, settings: Settings, cache: Cache, observer: Progress, dump: Dump | None
    ) -> None:
        self.settings = settings
        self.cache = cache
        self.target = target_for(settings.target, settings.precision)
        self.observer = observer
        self.started = time.perf_counter()
        self.runners: dict[str, Runner] = {}
        self.timed: dict[str, Runner] = {}
        """What is timed in the place of a runner that computes more slowly for exactness."""
        self.oracles: list[tuple[Step, Model, Model]] = []
        self.dump = dump
        self.kept: KeptSteps | None = None

    def read(
        self,
        model: Model | str | os.PathLike[str],
        calibration: DataSource | None,
        evaluation: DataSource | None,
    ) -> None:
        with self._stage("import") as seconds:
            self.original = open_model(model, self.settings.fixed_inputs())
            embedded = []
            if self.settings.embed is not None:
                how = embed(self.original, self.settings.embed)
                calibration, evaluation = as_pixels(calibration, how), as_pixels(evaluation, how)
                embedded = [embedded_note(self.original, how)]
            self.model = self.original.clone()
            kind = kind_of_labels(self.settings.metrics)
            self.sources = {"calibration": calibration, "evaluation": evaluation}
            self.calibration = _dataset(calibration, self.model, labelled=False)
            self.evaluation = _dataset(evaluation, self.model, kind)
            self.report = Report(
                model=describe_model(self.model),
                options=dataclasses.asdict(self.settings),
                environment=environment(),
                notes=embedded,
            )
            for data in (self.calibration, self.evaluation):
                self.report.notes += [] if data is None else data.notes
            self.report.notes = list(dict.fromkeys(self.report.notes))
            self.feeds = self._choose_feeds()
            self._record("original", seconds())

    def files_read(
        self, calibration: DataSource | None, evaluation: DataSource | None
    ) -> list[Path]:
        """The files that the result depends on."""
        library, path = self.settings.library, self.original.path
        labels = None if library is None else library.labels_file
        data = [f for each in (calibration, evaluation) for f in source_files(each)]
        _, times = split_latency(self.settings.latency or "")
        files = (path, *data, labels, times)
        return [f for f in files if f is not None] + external_files(self.original)

    def keep_steps(self, folder: Path) -> None:
        """Keep finished steps in a folder, and take those that it has of this run."""
        data = {"calibration": self.calibration, "evaluation": self.evaluation}
        sources = {name: (source, data[name]) for name, source in self.sources.items()}
        self.kept = KeptSteps(folder, run_facts(self.settings, self.original, sources))

    def transform(self) -> None:
        """Apply the steps, keeping a session of every result."""
        arrays = None if self.calibration is None else self.calibration.samples.arrays
        made_up = self.calibration is not None and self.calibration.synthetic
        self.context = Context(
            arrays,
            self.settings.seed,
            synthetic=made_up,
            judge=judge_of(self.evaluation, self.settings.metrics),
            dump=self.dump,
        )
        self._apply(simplify_step())
        self.simplified = self.model.clone()
        options = self.settings.pruning()
        if options:
            self._make(
                "prune",
                lambda: prune_model(
                    self.model,
                    options,
                    self.context,
                    machine=self._machine(),
                    prepare=self._quantized if self.settings.quantize else Model.clone,
                ),
            )
            if self.calibration is not None and self.settings.recovery:
                self._apply(recover_step())
        self.float_model = self.model.clone()
        if self.settings.quantize is not None:
            self._apply(quantize_step(self.settings.quantizer()))

    def _apply(self, step: Step) -> None:
        self._make(step.name, lambda: (self.model, run_step(step, self.model, self.context)))

    def _make(self, name: str, make: Callable[[], tuple[Model, StepResult]]) -> None:
        """Run a step, or take its result where it was kept."""
        with self._stage(name):
            if self.kept is None:
                model, result = make()
            else:
                model, result, known = self.kept.run(name, self.context, make)
                if known:
                    log.info("%s: kept from the run that was interrupted", name)
            self._keep(result, model)

    def _keep(self, result: StepResult, model: Model) -> None:
        self.model, self.context = model, result.context
        self.report.passes += result.runs
        self.report.warnings += step_warnings(result)
        if result.oracle is not None:
            self.oracles.append((result.step, result.oracle, self.model.clone()))
        self._record(result.step.result, result.seconds)

    def _machine(self) -> Machine:
        feed = self.feeds[0] if self.feeds else None
        return Machine(level_here(self.target), self.cache, self.settings.threads, feed)

    def _quantized(self, model: Model) -> Model:
        """A quantized copy, by which a budget is counted."""
        copy = model.clone()
        context = dataclasses.replace(self.context, dump=None)
        run_step(quantize_step(self.settings.quantizer(fast=True)), copy, context)
        return copy

    def verify(self, path: Path) -> None:
        """Compare steps with oracles and batches with their samples; write and check the file."""
        with self._stage("verify"):
            for step, oracle, result in self.oracles:
                check = check_equivalent(
                    f"{step.result} model against {step.oracle}",
                    oracle,
                    result,
                    self.feeds,
                )
                self.report.checks.append(check)
            batch = inspect_batch(self.model)
            if batch.is_proven:
                check = check_independent(self.model, batch, self.feeds, self.settings.seed)
                self.report.checks.append(check)
            save(self.model, path)
            self.report.checks.append(check_file(path, self.feeds, self.original))

    def compile(self, folder: Path) -> None:
        """Compile into `folder`, and run the result where this machine can."""
        library = self.settings.library
        with self._stage("compile") as seconds:
            from ..backends.tvm.compile import (  # imports TVM
                compile_library,
                compile_model,
                one_sample,
            )
            from ..backends.tvm.graph.open_sizes import read_admitted

            sizes = read_admitted(self.settings.sizes)
            if self.dump is not None:
                self.dump.write(one_sample(self.model, sizes)[0], "prepared")
            options: dict[str, Any] = {
                "cache": self.cache,
                "tune_minutes": self.settings.tune,
                "declared_sizes": self.settings.declared_sizes,
                "copies": self.settings.copies,
                "small": self.settings.small,
                "sizes": sizes,
                "dump_plan": None if self.dump is None else self.dump.plan,
            }
            samples, seed = self.calibration or self.evaluation, self.settings.seed
            chosen = choose_precision(
                self.model, self.target, self.settings.precision, samples, seed, options
            )
            if library is None:
                files: tuple[str, ...] = (ARTIFACT,)
                path = folder / ARTIFACT
                fallback = self.settings.fallback
                built = compile_model(self.model, self.target, path, fallback=fallback, **options)
            else:
                files = (library.archive, *(n for n in library.files if n != library.archive))
                data = bench_data(self.model, self.feeds) if library.bench else None
                built = compile_library(
                    self.model, self.target, folder, library, bench=data, **options
                )
            artifact = Artifact(
                target=self.target.name,
                file_bytes=(folder / files[0]).stat().st_size,
                seconds=seconds(),
                ran=False,
                files=files,
                compiler=with_precision(built, chosen),
                level=level_here(self.target).name,
            )
        self.report.artifact = artifact
        if not can_run_here(self.target):
            artifact.reason = f"this machine can't run {self.target.name} code"
            return
        with self._stage("run artifact"):
            self._run_artifact(folder, artifact)

    def measure(self) -> None:
        """Accuracy and fidelity of every stage, then latency of all of them in turns."""
        with self._stage("measure"):
            if self.evaluation is not None and self.evaluation.labels is None:
                self.report.notes.append(UNLABELLED)
            evaluate_report(
                self.report,
                self.original,
                self.runners,
                self.evaluation,
                self.calibration,
                lambda: random_feeds(self.original, self.settings.seed),
                self.settings.metrics,
            )
            if self.feeds:
                measured = latencies({**self.runners, **self.timed}, self.feeds[0])
                for stage in self.report.stages:
                    stage.latency = measured.get(stage.name)

    def write_report(self, folder: Path, command: str) -> None:
        with self._stage("report"):
            self._look_inside(folder / ARTIFACT)
        self.report.command = command
        self.report.seconds = time.perf_counter() - self.started
        (folder / "report.json").write_text(self.report.to_json(), encoding="utf-8")
        (folder / "report.md").write_text(to_markdown(self.report), encoding="utf-8")
        if has_templates():
            page = report_page(json.loads(self.report.to_json()), thumbnails(self._data()))
            (folder / "report.html").write_text(page, encoding="utf-8")

    def _look_inside(self, artifact: Path) -> None:
        """What a report shows besides stages: the network, its inner values, time by operator."""
        self.report.drawing = draw(self.simplified, self.float_model)
        if self.settings.quantize is not None and self.feeds:
            with contextlib.suppress(SecateurError):  # no value inside that both have
                found = compare_layers(self.float_model, self.model, self.feeds)
                self.report.layers = [dataclasses.asdict(layer) for layer in found]
        built = self.report.artifact
        whole = built is not None and built.ran and not built.compiler["left"]
        if whole and self.feeds and self.settings.library is None:
            from ..backends.tvm.tuning.measure import time_operators  # imports TVM

            threads = self.settings.threads
            times = time_operators(artifact, self.feeds[0], self.target, threads=threads)
            self.report.operators = [dataclasses.asdict(time) for time in times]

    def _data(self) -> Dataset | None:
        return self.evaluation or self.calibration

    def _run_artifact(self, folder: Path, artifact: Artifact) -> None:
        """Run the artifact and compare it with ONNX Runtime on the same model."""
        reference, library = self.report.stages[-1].name, self.settings.library
        if library is None:
            from ..backends.tvm.artifact.runtime import Runtime

            self.runners["artifact"] = Runtime(folder / ARTIFACT, self.settings.threads)
        else:
            module = folder / f"{library.name}.py"
            self.runners["artifact"] = LibraryRunner(module, self.settings.threads)
        if self.settings.quantization.get("half_io"):
            self.runners["artifact"] = Narrowing(self.runners["artifact"], self.model)
        self.report.stages.append(
            Stage("artifact", artifact.seconds, file_bytes=artifact.file_bytes)
        )
        artifact.ran = True
        artifact.reference = reference
        feeds = self._all_feeds()
        if feeds is not None:
            agreement = compare(self.runners[reference], self.runners["artifact"], feeds)
            artifact.agreement = dataclasses.asdict(agreement)

    def _all_feeds(self) -> Iterator[dict[str, Array]] | None:
        """Every sample there is, in runs of the model's batch size; or random inputs."""
        data = self._data()
        if data is None:
            return iter(self.feeds) if self.feeds else None
        return data.feeds(sizes=batch_sizes(self.model, data))

    def _choose_feeds(self) -> list[dict[str, Array]]:
        """Inputs for comparisons and timings; none, with a note, where sizes are unknown."""
        try:
            return check_feeds(self.model, self._data(), self.settings.seed)
        except DataError as error:
            self.report.notes.append(f"nothing was compared or timed: {error}")
            return []

    def _record(self, name: str, seconds: float) -> None:
        self.report.stages.append(measure_stage(name, self.model, seconds))
        self.runners[name] = self._session(self.model)
        if already_quantized(self.model):
            self.timed[name] = Session(self.model, threads=self.settings.threads, fast=True)

    def _session(self, model: Model) -> Session:
        return Session(model, threads=self.settings.threads)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[Callable[[], float]]:
        """Tell the observer; gives a function that returns the seconds passed so far."""
        self.observer.begin(name)
        start = time.perf_counter()
        yield lambda: time.perf_counter() - start
        log.info("%s: %.2f s", name, time.perf_counter() - start)
        self.observer.end()


def _dataset(
    source: DataSource | None, model: Model, kind: str | None = None, *, labelled: bool = True
) -> Dataset | None:
    return None if source is None else load_dataset(source, model, kind, labelled=labelled)
