"""ONNX's backend test cases through the compile path, against ONNX Runtime.

    nice python benchmarks/coverage.py --results coverage.json -o coverage.md

Every case of `onnx.backend.test` is read, given the static shapes of its test inputs,
compiled for this machine and run, in one worker process that is replaced where a case
crashes it or takes too long. Results are kept in a file, so that a run can be resumed;
`--again wrong,crash` repeats those of a kind, `--every 10` takes a sample, which `--first 3` begins
with the fourth case.

    nice python benchmarks/coverage.py --registered --results registered.json -o table.md

does the same with cases of the operators beside the standard's that ONNX Runtime has kernels for
(`registered_cases.py`), whose table has the reasons of what is refused.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import functools
import json
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

Array = Any

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
TIME_LIMIT = 60.0
"""Seconds for one case on a machine that does other work, too."""

HALF_ROUNDING = 2.0**-9
"""Relative difference of two units in the last place of float16, which 1e-3 is less than."""

ROUNDING = 2.0**-23
"""Difference, as a share of the largest number of an output, that float32's rounding may make."""

STATUSES = ("pass", "error", "wrong", "crash", "hang")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case.

    `status` is one of STATUSES; "error" is a SecateurError, "crash" any other end.
    `runtime` is ONNX Runtime's own status. `detail` is the message or the difference.
    """

    status: str
    runtime: str
    operator: str
    seconds: float
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with inputs and expected outputs, by position."""

    name: str
    model: onnx.ModelProto
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    rtol: float
    atol: float


def load_cases() -> list[Case]:
    """All cases, each with its first data set."""
    from onnx.backend.test.loader import load_model_tests

    cases = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS:
            for test in load_model_tests(kind=kind):
                case = _case(test)
                if case is not None:
                    cases.append(case)
    return cases


def _case(test: Any) -> Case | None:
    if test.model is not None:
        inputs, outputs = (
            [onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x for x in data]
            for data in test.data_sets[0]
        )
        return Case(test.name, test.model, inputs, outputs, test.rtol, test.atol)
    folder = Path(test.model_dir)
    if not (folder / "model.onnx").is_file():
        return None  # models to download
    model = onnx.load(folder / "model.onnx")
    data = folder / "test_data_set_0"
    inputs = [_stored(data / f"input_{i}.pb", v) for i, v in enumerate(model.graph.input)]
    outputs = [_stored(data / f"output_{i}.pb", v) for i, v in enumerate(model.graph.output)]
    inputs = [x for x in inputs if x is not None]
    return Case(test.name, model, inputs, outputs, test.rtol, test.atol)


def _stored(path: Path, value: onnx.ValueInfoProto) -> Any:
    if not path.is_file():
        return None
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        sequence = onnx.SequenceProto.FromString(path.read_bytes())
        return onnx.numpy_helper.to_list(sequence)
    if kind == "optional_type":
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(path.read_bytes()))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def feeds_of(case: Case) -> dict[str, Any]:
    initialized = {i.name for i in case.model.graph.initializer}
    names = [v.name for v in case.model.graph.input if v.name not in initialized]
    return dict(zip(names, case.inputs, strict=False))


# --- one case --------------------------------------------------------------------


def run_case(case: Case, fallback: bool = False) -> Outcome:
    """Compile and run a case; never raises."""
    from secateur.ir.errors import SecateurError

    start = time.perf_counter()
    reference = _reference(case)
    runtime = "error" if reference is None else "pass"
    if reference is not None and difference(reference, case.outputs, case):
        runtime = "wrong"
    operator = operator_of(case)
    try:
        results = compile_and_run(case, fallback)
    except SecateurError as error:
        return Outcome("error", runtime, operator, time.perf_counter() - start, str(error)[:500])
    except Exception:  # whatever else escapes is a defect
        detail = traceback.format_exc()[-1500:]
        return Outcome("crash", runtime, operator, time.perf_counter() - start, detail)
    wrong = difference(results, case.outputs, case)
    if wrong and runtime == "wrong" and reference is not None:
        wrong = difference(results, reference, case)  # what runtimes compute today
    status = "wrong" if wrong else "pass"
    return Outcome(status, runtime, operator, time.perf_counter() - start, wrong)


def compile_and_run(case: Case, fallback: bool) -> list[Any]:
    """The outputs that secateur's artifact computes, in order."""
    from secateur.backends.tvm.artifact.runtime import Runtime
    from secateur.backends.tvm.cache import Cache
    from secateur.backends.tvm.compile import compile_model
    from secateur.backends.tvm.targets import parse_target
    from secateur.ir.onnx_io import from_proto
    from secateur.passes.simplify import FixInputShapes

    feeds = feeds_of(case)
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    model = from_proto(proto)
    held = {}
    for value in model.graph.inputs:
        given = feeds.get(value.name)
        if value.dtype == onnx.TensorProto.UNDEFINED and value.name in feeds:
            shapes = [np.shape(each) for each in given] if isinstance(given, list) else given
            held[value.name] = shapes if given is None or isinstance(given, list) else given.shape
    if held:
        FixInputShapes(tuple(held.items())).run(model)
    for value in model.graph.inputs:
        given = feeds.get(value.name)
        if isinstance(given, np.ndarray) and value.dtype:
            value.set_tensor_type(value.dtype, given.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        compile_model(
            model,
            parse_target("native"),
            path,
            cache=Cache.none(),
            fallback=fallback,
            declared_sizes=True,
        )
        given = {
            name: array for name, array in feeds.items() if held.get(name, [0]) not in ([], None)
        }
        found = Runtime(path).run(given)
    return [found[v.name] for v in case.model.graph.output]


def _reference(case: Case) -> list[Any] | None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(case.model.SerializeToString(), options)
        return list(session.run(None, feeds_of(case)))
    except Exception:  # ONNX Runtime raises a family of unrelated types
        return None


def difference(found: Sequence[Any], expected: Sequence[Any], case: Case) -> str:
    """How results differ from what is expected; empty where they don't."""
    if len(found) != len(expected):
        return f"{len(found)} outputs, {len(expected)} expected"
    for index, (own, other) in enumerate(zip(found, expected, strict=True)):
        if isinstance(other, list):
            inner = difference(own, other, case) if isinstance(own, list) else "not a sequence"
            if inner:
                return inner
            continue
        if other is None or own is None:
            if other is not own:
                return f"output {index}: one is empty"
            continue
        own, other = np.asarray(own), np.asarray(other)
        if own.shape != other.shape or own.dtype != other.dtype:
            return f"output {index}: {own.dtype}{list(own.shape)} {other.dtype}{list(other.shape)}"
        if other.dtype == object or other.dtype.kind in "SU":
            if not np.array_equal(own, other):
                return f"output {index}: strings differ"
            continue
        half = other.dtype == np.float16
        if other.dtype.kind in "Vf":
            own, other = own.astype(np.float64), other.astype(np.float64)
        rtol = max(case.rtol, HALF_ROUNDING) if half else case.rtol
        atol = case.atol
        if other.dtype.kind == "f":
            atol = max(atol, ROUNDING * float(np.abs(other[np.isfinite(other)]).max(initial=0.0)))
        if not np.allclose(own, other, rtol, atol, equal_nan=True):
            at = ~np.isclose(own, other, rtol, atol, equal_nan=True)
            pair = f"{own[at].flat[0]} instead of {other[at].flat[0]}"
            return f"output {index}: {int(at.sum())} of {at.size} differ, {pair}"
    return ""


def operator_of(case: Case) -> str:
    nodes = case.model.graph.node
    return nodes[0].op_type if len(nodes) == 1 else ""


# --- many cases ------------------------------------------------------------------


def run_cases(
    cases: Sequence[Case],
    limit: float = TIME_LIMIT,
    run: Callable[[Case], Outcome] = run_case,
) -> Iterator[tuple[Case, Outcome]]:
    """Each case in a worker process, which is replaced where it dies or hangs."""
    context = multiprocessing.get_context("fork")
    next_index = 0
    while next_index < len(cases):
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(cases[next_index:], sender, run), daemon=True)
        worker.start()
        sender.close()
        start = time.perf_counter()
        while next_index < len(cases):
            status = ""
            if not receiver.poll(limit):
                status = "hang"
            else:
                try:
                    outcome = receiver.recv()
                except EOFError:
                    status = "crash"
            if status:
                worker.kill()
                worker.join()
                seconds = time.perf_counter() - start
                detail = f"exit code {worker.exitcode}" if status == "crash" else f"{limit:.0f} s"
                case = cases[next_index]
                outcome = Outcome(status, "", operator_of(case), seconds, detail)
            yield cases[next_index], outcome
            next_index += 1
            start = time.perf_counter()
            if status:
                break
        worker.kill()
        worker.join()


def _work(cases: Sequence[Case], sender: Any, run: Callable[[Case], Outcome]) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    for case in cases:
        sender.send(run(case))
    sender.close()


# --- reports ---------------------------------------------------------------------


def operators(results: dict[str, Outcome]) -> dict[str, str]:
    """The operator that each case is about; expansions belong to the operator they expand."""
    found = {}
    for name, outcome in results.items():
        base = results.get(name.split("_expanded")[0])
        found[name] = outcome.operator or (base.operator if base else "") or "(several)"
    return found


def summary(results: dict[str, Outcome]) -> str:
    """Counts by status, of all cases and of those that ONNX Runtime passes."""
    passing = [o for o in results.values() if o.runtime == "pass"]
    lines = ["| cases | " + " | ".join(STATUSES) + " | all |", "|---" * (len(STATUSES) + 2) + "|"]
    groups = (("all", list(results.values())), ("that ONNX Runtime passes", passing))
    for title, outcomes in groups:
        counts = collections.Counter(o.status for o in outcomes)
        row = " | ".join(str(counts[s]) for s in STATUSES)
        lines.append(f"| {title} | {row} | {len(outcomes)} |")
    return "\n".join(lines)


def table(results: dict[str, Outcome]) -> str:
    """One row per operator, and the distinct reasons of its errors."""
    by_operator: dict[str, list[str]] = {}
    for name, operator in operators(results).items():
        by_operator.setdefault(operator, []).append(name)
    lines = [
        "| operator | cases | ONNX Runtime passes | " + " | ".join(STATUSES) + " |",
        "|---" * (len(STATUSES) + 3) + "|",
    ]
    for operator in sorted(by_operator):
        outcomes = [results[n] for n in by_operator[operator]]
        counts = collections.Counter(o.status for o in outcomes)
        row = " | ".join(str(counts[s] or "") for s in STATUSES)
        runtime = sum(o.runtime == "pass" for o in outcomes)
        lines.append(f"| {operator} | {len(outcomes)} | {runtime} | {row} |")
    return "\n".join(lines)


def document(results: dict[str, Outcome]) -> str:
    parts = [
        "# Operator coverage of the compile path",
        "Cases of `onnx.backend.test` "
        f"{onnx.__version__}: compiled for the native target and compared with the expected "
        "outputs, within each case's own tolerances. An error is a message that names the "
        "node; `benchmarks/coverage.py` makes this table.",
        summary(results),
        table(results),
    ]
    return "\n\n".join(parts) + "\n"


def registered_document(results: dict[str, Outcome]) -> str:
    """One row per operator of `com.microsoft` and `ai.onnx.ml`, with why cases are refused."""
    from registered_cases import registered

    lines = ["| operator | cases | pass | refused | wrong | why |", "|---" * 6 + "|"]
    without = []
    for operator in registered():
        name = operator.name
        outcomes = [o for o in results.values() if o.operator == name]
        if not outcomes:
            without.append(name)
            continue
        counts = collections.Counter(o.status for o in outcomes)
        bad = len(outcomes) - counts["pass"] - counts["error"]
        details = [o.detail.rpartition(f"({name}): ")[2] for o in outcomes if o.status != "pass"]
        why = "; ".join(dict.fromkeys(details))[:200].replace("|", "/")
        cells = [name, len(outcomes), counts["pass"], counts["error"] or "", bad or "", why]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    none = f"No case, since ONNX Runtime runs none of the forms tried: {', '.join(without)}."
    return "\n\n".join([summary(results), "\n".join(lines), none]) + "\n"


def read_results(path: Path) -> dict[str, Outcome]:
    if not path.is_file():
        return {}
    return {name: Outcome(**entry) for name, entry in json.loads(path.read_text()).items()}


def write_results(path: Path, results: dict[str, Outcome]) -> None:
    entries = {name: dataclasses.asdict(results[name]) for name in sorted(results)}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(entries, indent=1))
    temporary.replace(path)


@click.command()
@click.option("--results", type=click.Path(path_type=Path), default=Path("coverage.json"))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the table here.")
@click.option("--every", default=1, help="Take every Nth case.")
@click.option("--first", default=0, help="Skip so many cases before.")
@click.option("--filter", "pattern", default="*", help="Case names, as a shell pattern.")
@click.option("--again", default="", help="Statuses to repeat, separated by commas, or all.")
@click.option("--fallback", is_flag=True, help="Leave what can't be lowered to ONNX Runtime.")
@click.option("--registered", is_flag=True, help="Operators beside the standard's.")
@click.option("--open", "opens", is_flag=True, help="With all sizes open, at several sizes.")
@click.option("--limit", default=TIME_LIMIT, help="Seconds for one case.")
@click.option("--verbose", "-v", is_flag=True, help="Show every case that does not pass.")
def main(
    results: Path,
    output: Path | None,
    every: int,
    first: int,
    pattern: str,
    again: str,
    fallback: bool,
    registered: bool,
    opens: bool,
    limit: float,
    verbose: bool,
) -> None:
    import onnxruntime  # noqa: F401  # imported once, before workers are forked
    from open_coverage import run_open_case

    import secateur.backends.tvm.compile  # noqa: F401

    run = run_open_case if opens else functools.partial(run_case, fallback=fallback)
    found = read_results(results)
    chosen = []
    if registered:
        from registered_cases import registered_cases

        cases = [case for _, case in registered_cases()]
    else:
        cases = load_cases()
    for case in cases[first::every]:
        known = found.get(case.name)
        repeat = known is None or again == "all" or known.status in again.split(",")
        if fnmatch.fnmatch(case.name, pattern) and repeat:
            chosen.append(case)
    click.echo(f"{len(chosen)} cases to run, {len(found)} known", err=True)
    for count, (case, outcome) in enumerate(run_cases(chosen, limit, run)):
        found[case.name] = outcome
        if verbose and outcome.status != "pass":
            click.echo(f"{outcome.status:6s} ({outcome.runtime}) {case.name}: {outcome.detail}")
        if count % 100 == 99:
            write_results(results, found)
    write_results(results, found)
    click.echo(summary(found))
    if output is not None:
        output.write_text(registered_document(found) if registered else document(found))


if __name__ == "__main__":
    main()
