"""Structured pruning side by side: secateur, onnxsim and Torch-Pruning on the whole zoo.

    python benchmarks/pruning_coverage.py --cache DIR -o TABLE.md

Each tool prunes each model in a process of its own, with a time limit, and the peers
in environments of their own, made on demand. All results are counted by the same
counter. What peers did is kept in the cache, so that a run can be resumed; secateur's
own part is always run anew.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from secateur.ir.cost import Cost, count
from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import load
from secateur.ir.reference import Session
from secateur.ir.tensor import Array
from secateur.models.zoo import ZOO, random_inputs

ROOT = Path(__file__).resolve().parent.parent
WORKERS = Path(__file__).resolve().parent / "pruning_workers"
EXPORTER = ("torch==2.13.0", "onnx", "onnxruntime", "onnxscript", "numpy", "click")
EXACT = 1e-5
"""Largest difference from the masked original, over the largest output."""


@dataclasses.dataclass(frozen=True)
class Tool:
    """`packages` of its environment; none: this one."""

    name: str
    worker: str
    packages: tuple[str, ...] = ()


SECATEUR = Tool("secateur", "secateur_worker.py")
ONNXSIM = Tool("onnxsim 0.8.1", "onnxsim_worker.py", ("onnxsim==0.8.1",))
TORCH_PRUNING = Tool(
    "Torch-Pruning 1.6.1", "torch_pruning_worker.py", (*EXPORTER, "torch-pruning==1.6.1")
)
TOOLS = (SECATEUR, ONNXSIM, TORCH_PRUNING)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a tool made of a model.

    `failure` is None, "crash", "timeout" or "does not run"; `parameters` and `macs` are
    the shares left. `error` and `effect` are as the worker of secateur says.
    """

    failure: str | None
    parameters: float = 1.0
    macs: float = 1.0
    seconds: float = 0.0
    error: float | None = None
    effect: float | None = None
    detail: str = ""
    locked: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether it equals the masked original, and that is not just the original."""
        if self.failure or self.error is None or self.effect is None:
            return False
        return self.error <= EXACT and (self.macs == 1.0 or self.effect > EXACT)


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    variant: str
    scale: str

    @property
    def file(self) -> str:
        return f"{self.name}.{self.variant}.onnx"


class Bench:
    """Runs tools; everything they write is below `cache`."""

    def __init__(self, cache: Path, ratio: float, scale: str, limit: float) -> None:
        self.cache, self.ratio, self.scale, self.limit = cache, ratio, scale, limit
        self.models = cache / "models" / scale
        self.log = cache / f"peers-{scale}-{ratio}.json"
        self.originals: dict[Case, tuple[Cost, dict[str, tuple[int, ...]]]] = {}
        self.peers: dict[str, dict[str, Any]] = {}
        if self.log.exists():
            self.peers = json.loads(self.log.read_text())

    def python(self, tool: Tool) -> str:
        """The interpreter of a tool's environment, which is made where it is missing."""
        if not tool.packages:
            return sys.executable
        folder = self.cache / "environments" / tool.worker.removesuffix("_worker.py")
        interpreter, stamp = folder / "bin" / "python", folder / "installed"
        if not stamp.exists() or stamp.read_text() != " ".join(tool.packages):
            venv.create(folder, with_pip=True, clear=True)
            install = [str(interpreter), "-m", "pip", "install", "-q", *tool.packages]
            subprocess.run(install, check=True)
            stamp.write_text(" ".join(tool.packages))
        return str(interpreter)

    def export(self, names: Sequence[str], variant: str) -> None:
        """Write the models that are missing, in the environment that has torch."""
        if all((self.models / f"{n}.{variant}.onnx").exists() for n in names):
            return
        command = [self.python(TORCH_PRUNING), "-m", "secateur.models.zoo", "--missing"]
        command += ["--scale", self.scale, "--variant", variant, "-o", str(self.models), *names]
        subprocess.run(command, check=True, env=_environment(), stdout=sys.stderr)

    def run(self, tool: Tool, case: Case) -> Outcome:
        """Prune one model with one tool, or recall what a peer did."""
        target = self.cache / "pruned" / tool.worker.split("_worker")[0] / case.scale / case.file
        key = f"{tool.name}/{case.name}/{case.variant}"
        if tool is SECATEUR or key not in self.peers:
            self.peers[key] = self._work(tool, case, target)
            self.log.write_text(json.dumps(self.peers, indent=1, sort_keys=True))
        report = self.peers[key]
        if report.get("failure"):
            return Outcome(report["failure"], detail=report["detail"])
        return self._measure(case, target, report)

    def measured(
        self, case: Case, feeds: dict[str, Array]
    ) -> tuple[Cost, dict[str, tuple[int, ...]]]:
        """`measure` of the unpruned model, once."""
        if case not in self.originals:
            self.originals[case] = measure(self.models / case.file, feeds)
        return self.originals[case]

    def _work(self, tool: Tool, case: Case, target: Path) -> dict[str, Any]:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        command = [self.python(tool), str(WORKERS / tool.worker)]
        if tool is TORCH_PRUNING:
            command += [case.name, case.variant, case.scale, str(target), str(self.ratio)]
        else:
            command += [str(self.models / case.file), str(target), str(self.ratio)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=self.limit, env=_environment()
            )
        except subprocess.TimeoutExpired:
            return {"failure": "timeout", "detail": f"over {self.limit:.0f} s"}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {"failure": "crash", "detail": lines[-1][:300]}
        report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return report

    def _measure(self, case: Case, target: Path, report: dict[str, Any]) -> Outcome:
        feeds = random_inputs(load(self.models / case.file), sizes={"batch": 1})
        before, expected = self.measured(case, feeds)
        try:
            after, outputs = measure(target, feeds)
        except SecateurError as error:
            return Outcome("does not run", detail=str(error))
        wrong = [n for n, shape in expected.items() if outputs.get(n) != shape]
        if wrong:
            return Outcome("does not run", detail=f"output '{wrong[0]}' has another shape")
        return Outcome(
            failure=None,
            parameters=after.parameters / before.parameters,
            macs=after.macs / before.macs,
            seconds=report["seconds"],
            error=report.get("error"),
            effect=report.get("effect"),
            locked=tuple(report.get("locked", ())),
        )


def _environment() -> dict[str, str]:
    """One thread, and this checkout importable in every environment."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def measure(path: Path, feeds: dict[str, Array]) -> tuple[Cost, dict[str, tuple[int, ...]]]:
    """Cost at the shapes that a run on `feeds` really has, and the outputs' shapes.

    Running instead of inferring shapes also counts what depends on computed shapes.
    """
    model = load(path)
    outputs = [value.name for value in model.graph.outputs]
    watched = [v for node in model.graph.nodes for v in node.outputs if v is not None]
    for value in watched:
        if not value.is_graph_output:
            model.graph.add_output(value)
    found = Session(model, optimize=False).run(feeds)
    shapes = {name: array.shape for name, array in found.items()}
    for value in watched:
        value.set_tensor_type(value.dtype, shapes[value.name])
    for value in model.graph.inputs:
        if value.name in feeds:
            value.set_tensor_type(value.dtype, feeds[value.name].shape)
    return count(model), {name: shapes[name] for name in outputs}


def introduction(scale: str, ratio: float) -> Iterator[str]:
    yield "# Pruning coverage"
    yield ""
    yield f"Written by `benchmarks/pruning_coverage.py --scale {scale} --ratio {ratio:g}`: every"
    yield "model of the [zoo](zoo.md), each layer losing the same share of its channels, one"
    yield f"thread. Exact: within {EXACT:g} of the original with the same channels masked, relative"
    yield "to the largest output, where masking itself changes more than that. Crash, timeout,"
    yield "does not run: no usable result. Other tools give no masked original to compare with."
    yield ""


def table(results: dict[Case, dict[str, Outcome]]) -> Iterator[str]:
    """Markdown: what is left of parameters and MACs, per tool."""
    header = ["model", "exported"]
    for tool in TOOLS:
        header += [f"{tool.name}: MACs left", "parameters left", "s"]
        header += ["against masked original"] if tool is SECATEUR else []
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for case, outcomes in results.items():
        row = [case.name, case.variant]
        for tool in TOOLS:
            row += cells(outcomes[tool.name], own=tool is SECATEUR)
        yield f"| {' | '.join(row)} |"


def cells(outcome: Outcome, *, own: bool) -> list[str]:
    if outcome.failure:
        return [outcome.failure, "", "", *([""] if own else [])]
    row = [f"{outcome.macs:.0%}", f"{outcome.parameters:.0%}", f"{outcome.seconds:.1f}"]
    if own and outcome.error is not None:
        verdict = "exact" if outcome.exact else "**inexact**"
        row.append(f"{verdict} ({outcome.error:.0e})")
    return row


def summary(results: dict[Case, dict[str, Outcome]]) -> Iterator[str]:
    """Totals, and every model of which secateur leaves more than a peer or more than 30 %."""
    own = [outcomes[SECATEUR.name] for outcomes in results.values()]
    failed = sum(bool(o.failure) for o in own)
    yield f"{len(own)} models; secateur: {sum(o.exact for o in own)} exact, {failed} failed."
    for tool in TOOLS[1:]:
        failed = sum(bool(outcomes[tool.name].failure) for outcomes in results.values())
        yield f"{tool.name}: {failed} failed."
    for case, outcomes in results.items():
        mine = outcomes[SECATEUR.name]
        peers = [outcomes[t.name].macs for t in TOOLS[1:] if not outcomes[t.name].failure]
        worse = bool(peers) and mine.macs > min(peers) + 0.005
        if mine.failure or worse or mine.macs > 0.3:
            where = "behind a peer" if worse else mine.failure or "over 30 %"
            reasons = [mine.detail] if mine.failure else list(mine.locked[:2])
            yield f"- {case.name}, {case.variant}: {where}. {'; '.join(reasons)}"


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder to keep; else temporary.")
@click.option("--scale", type=click.Choice(["full", "tiny"]), default="full", show_default=True)
@click.option("--variant", "variants", multiple=True, default=("folded", "kept"), show_default=True)
@click.option("--ratio", type=float, default=0.5, show_default=True, help="Channels to remove.")
@click.option("--limit", type=float, default=300, show_default=True, help="Seconds per model.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Markdown file; else stdout.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="JSON file.")
def main(
    names: tuple[str, ...],
    cache: Path | None,
    scale: str,
    variants: tuple[str, ...],
    ratio: float,
    limit: float,
    output: Path | None,
    as_json: Path | None,
) -> None:
    """Prune models of the zoo, by default all, with each tool and print a table."""
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench((cache or Path(temporary)).resolve(), ratio, scale, limit)
        bench.cache.mkdir(parents=True, exist_ok=True)
        results: dict[Case, dict[str, Outcome]] = {}
        for variant in variants:
            bench.export(names or tuple(ZOO), variant)
        for name in names or tuple(ZOO):
            for variant in variants:
                case = Case(name, variant, scale)
                results[case] = {tool.name: bench.run(tool, case) for tool in TOOLS}
                click.echo(list(table({case: results[case]}))[-1], err=True)
    text = "\n".join([*introduction(scale, ratio), *table(results), "", *summary(results)]) + "\n"
    if output is None:
        click.echo(text)
    else:
        output.write_text(text)
    if as_json is not None:
        rows = [
            {**dataclasses.asdict(case), "tool": tool, **dataclasses.asdict(outcome)}
            for case, outcomes in results.items()
            for tool, outcome in outcomes.items()
        ]
        as_json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
