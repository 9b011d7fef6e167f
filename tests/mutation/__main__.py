"""Breaks the code in one place at a time and counts how often the tests notice.

    python -m tests.mutation --module passes/prune --count 40 --seed 0

Tests run once without a mutant to record which lines each of them runs (minutes; `--record FILE`
keeps that for the next time, `--tests FOLDER` records those alone). For each mutant, those that run
its line are run in a copy of the tree, quickest first, until one fails. A mutant that none notices
is printed with its place: look at it, and write the test that it lacks or, if it changes nothing,
an entry with the reason in `tests/mutation/equivalent.txt`.
"""

from __future__ import annotations

import bisect
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from tests.mutation.mutants import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")

MODULES = (
    "ir/ops",
    "passes/prune",
    "passes/quantize",
    "backends/tvm/emission",
    "backends/tvm/kernels",
    "backends/tvm/lowering",
    "backends/tvm/lowering/loops",
)
"""What is mutated where nothing is named; what lies in one of the others belongs to that one."""

TESTS = ("tests/ir", "tests/passes", "tests/backends")
BUDGET = 60
"""Processor seconds, as recorded, that the tests of a mutant take at most together, by default."""

PATIENCE = 4
"""A mutant is taken for one that never ends, and is noticed so, after this many times as long."""


class Tests:
    """Which tests run a line, from a record (`tests/mutation/record.py`)."""

    def __init__(self, records: tuple[Path, ...], budget: int) -> None:
        self.budget = budget
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, list[str]]] = {}
        for path in records:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            names = record["tests"]
            self.seconds.update(zip(names, record["seconds"], strict=True))
            for file, lines in record["lines"].items():
                known = self.lines.setdefault(file, {})
                for line, tests in lines.items():
                    known.setdefault(int(line), []).extend(names[n] for n in tests)

    def of(self, file: str, line: int) -> list[str]:
        """Tests that run a line, quickest first, as many as the budget allows.

        A line that runs on import, as of a table, counts as the nearest one after it that a test
        runs: the function that a decorator registers, say; and then as any line of its file.
        """
        known = self.lines.get(file, {})
        tests = sorted(known.get(line, ()), key=self.seconds.__getitem__)
        if not tests:
            ran = sorted(known)
            nearest = ran[bisect.bisect(ran, line) :][:1]
            tests = [test for number in [*nearest, *ran] for test in known[number]]
        chosen, spent = [], 0.0
        for test in dict.fromkeys(tests):
            spent += self.seconds[test]
            if chosen and spent > self.budget:
                break
            chosen.append(test)
        return chosen


@click.command()
@click.option("--module", "modules", multiple=True, help="Folder or file; repeatable.")
@click.option("--count", default=40, show_default=True, help="Mutants of each module.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--record",
    "records",
    multiple=True,
    type=click.Path(path_type=Path),
    help="What tests run; written where there is none yet; repeatable.",
)
@click.option(
    "--tests", "folders", multiple=True, default=TESTS, help="What is recorded; repeatable."
)
@click.option(
    "--budget", default=BUDGET, show_default=True, help="Processor seconds of tests for a mutant."
)
def main(
    modules: tuple[str, ...],
    count: int,
    seed: int,
    records: tuple[Path, ...],
    folders: tuple[str, ...],
    budget: int,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = copy_tree(folder / "secateur")
        records = records or (folder / "record.json",)
        if not all(path.exists() for path in records):
            click.echo("recording which lines each test runs ...")
            record(tree, records[0], folders)
        tests = Tests(records, budget)
        runner = Runner(tree, PATIENCE * budget)
        results = [examine(runner, tests, module, count, seed) for module in modules or MODULES]
    killed, rest = (sum(numbers) for numbers in zip(*results, strict=True))
    click.echo(f"{killed} of {rest} killed ({100 * killed / max(rest, 1):.1f} %)")


def examine(runner: Runner, tests: Tests, module: str, count: int, seed: int) -> tuple[int, int]:
    """How many of a module's drawn mutants are killed, and how many there are to be killed."""
    inner = [ROOT / other for other in MODULES if other.startswith(f"{module}/")]
    found = [
        mutant
        for mutant in mutants_of(ROOT / module)
        if not any(mutant.path.is_relative_to(folder) for folder in inner)
    ]
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    known = equivalent_mutants()
    killed = equal = 0
    for number, mutant in enumerate(chosen, 1):
        file = str(mutant.path.relative_to(ROOT))
        before, after = mutant.before.strip(), mutant.after.strip()
        if (file, before, after) in known:
            equal += 1
            continue
        closest = tests.of(file, mutant.line)
        noticed = bool(closest) and runner.notices(mutant, closest)
        killed += noticed
        word = "killed" if noticed else "SURVIVED"
        click.echo(f"{number}/{len(chosen)} {word} {file}:{mutant.line} ({len(closest)} tests)")
        if not noticed:
            click.echo(f"    - {before}\n    + {after}")
    rest = len(chosen) - equal
    drawn = f"drawn from {len(found):,}; {equal} more are equivalent"
    click.echo(f"{module}: {killed} of {rest} killed, {drawn}")
    return killed, rest


def equivalent_mutants() -> set[tuple[str, str, str]]:
    """File, line before and line after of mutants that change nothing: see the file's head."""
    blocks = EQUIVALENT.read_text(encoding="utf-8").split("\n\n")
    found = set()
    for block in blocks[1:]:
        file, before, after, *reason = block.strip().splitlines()
        if not (before.startswith("- ") and after.startswith("+ ") and reason):
            raise click.ClickException(f"{EQUIVALENT.name}: not an entry: {block}")
        found.add((file, before[2:], after[2:]))
    return found


def copy_tree(target: Path) -> Path:
    """The files that git knows, and the folders linked under the package, compiled.

    Compiled files state the hash of their source: its time is the same for two mutants of a second.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, place = ROOT / name, target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            place.symlink_to(os.readlink(source))
        elif source.exists():
            shutil.copy2(source, place)
    command = ["compileall", "-q", "--invalidation-mode", "checked-hash", "."]
    subprocess.run([sys.executable, "-m", *command], cwd=target, check=True)
    return target


def record(tree: Path, path: Path, folders: tuple[str, ...]) -> None:
    """Run the tests once; those that fail notice no mutant."""
    environment = {**environment_of(tree), "SECATEUR_RECORD": str(path.absolute())}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "tests.mutation.record"]
    subprocess.run([*command, *folders], cwd=tree, env=environment, check=False)


def environment_of(tree: Path) -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": str(tree)}


class Runner:
    """A tree in which mutants take turns, and the process that tests it (`run.py`)."""

    def __init__(self, tree: Path, limit: int) -> None:
        self.tree, self.limit = tree, limit
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutation.run"],
            cwd=tree,
            env=environment_of(tree),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def notices(self, mutant: Mutant, tests: list[str]) -> bool:
        """Whether one of the tests fails with the mutant in its place."""
        place = self.tree / mutant.path.relative_to(ROOT)
        original = place.read_text(encoding="utf-8")
        place.write_text(mutant.source, encoding="utf-8")
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps({"tests": tests, "limit": self.limit}) + "\n")
            self.process.stdin.flush()
            return bool(json.loads(self.answer()))
        finally:
            place.write_text(original, encoding="utf-8")


if __name__ == "__main__":
    main()
