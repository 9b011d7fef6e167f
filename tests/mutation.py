"""Breaks the code in one place at a time and counts how often the closest tests notice.

    python -m tests.mutation --module passes/prune --count 40 --seed 0

Mutants are made mechanically from the syntax tree: comparisons and arithmetic exchanged, numbers
off by one, conditions negated, `and` for `or`, `min` for `max`, a branch that is never taken.
Each runs in a copy of the tree. A mutant that no test notices is printed with its place: look at
it, and name it equivalent or write the test that it lacks.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent

TIME_LIMIT = 900
"""Seconds for the closest tests; a mutant that loops forever is noticed, too."""

CLOSEST: dict[str, tuple[str, ...]] = {
    "backends/tvm/functions": (
        "tests/backends/tvm/test_values.py",
        "tests/backends/tvm/test_tables.py",
    ),
    "backends/tvm/graph": ("tests/backends/tvm",),
    "backends/tvm/kernels": ("tests/backends/tvm/test_every_operator.py", "tests/backends/tvm"),
    "backends/tvm/lowering/loops": ("tests/backends/tvm/test_every_operator.py",),
    "backends/tvm/lowering": ("tests/backends/tvm/test_every_operator.py", "tests/backends/tvm"),
    "backends/tvm/plan": ("tests/backends/tvm",),
    "ir/axes": ("tests/ir/axes",),
    "ir/dependencies": ("tests/ir/axes",),
    "ir/ops": ("tests/ir/axes", "tests/ir/test_cost.py", "tests/passes/test_prune.py"),
    "ir/symbolic": (
        "tests/ir/symbolic",
        "tests/passes/simplification",
        "tests/ir/axes/test_shape_arithmetic.py",
    ),
    "passes/linear": ("tests/passes/test_linear_layers.py", "tests/passes/test_recovery.py"),
    "passes/prune": (
        "tests/passes/test_prune.py",
        "tests/passes/test_prune_sharing.py",
        "tests/passes/test_recovery.py",
        "tests/ir/axes",
    ),
    "passes/quantize": (
        "tests/passes/test_quantize.py",
        "tests/passes/test_quantize_calibration.py",
        "tests/passes/test_quantize_integer.py",
        "tests/passes/test_quantize_weights.py",
        "tests/passes/test_quantize_random.py",
    ),
    "passes/simplify": (
        "tests/passes/simplification",
        "tests/passes/test_simplify.py",
        "tests/passes/test_simplify_cases.py",
        "tests/passes/test_simplify_random.py",
    ),
}
"""Tests that are run for a folder's mutants; the longest prefix of a file's path decides."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}

ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
}

NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A changed source file: what became of one line."""

    path: Path
    line: int
    before: str
    after: str
    source: str


@click.command()
@click.option("--module", "modules", multiple=True, help="Folder or file; repeatable.")
@click.option("--count", default=40, show_default=True, help="Mutants, drawn from all there are.")
@click.option("--seed", default=0, show_default=True)
def main(modules: tuple[str, ...], count: int, seed: int) -> None:
    found = [m for name in modules or CLOSEST for m in mutants_of(ROOT / name)]
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    killed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder) / "secateur")
        for number, mutant in enumerate(chosen, 1):
            noticed = is_noticed(tree, mutant)
            killed += noticed
            place = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
            click.echo(f"{number}/{len(chosen)} {'killed' if noticed else 'SURVIVED'} {place}")
            if not noticed:
                click.echo(f"    - {mutant.before.strip()}\n    + {mutant.after.strip()}")
    click.echo(f"{killed} of {len(chosen)} killed, drawn from {len(found):,}")


def copy_tree(target: Path) -> Path:
    """The files that git knows, and the folders linked under the package."""
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
    return target


def is_noticed(tree: Path, mutant: Mutant) -> bool:
    """Whether the closest tests fail in a tree with the mutant in it."""
    place = tree / mutant.path.relative_to(ROOT)
    original = place.read_text(encoding="utf-8")
    place.write_text(mutant.source, encoding="utf-8")
    try:
        return any(fails(tree, test) for test in closest(mutant.path))
    finally:
        place.write_text(original, encoding="utf-8")


def closest(path: Path) -> tuple[str, ...]:
    name = str(path.relative_to(ROOT))
    matching = [prefix for prefix in CLOSEST if name.startswith(prefix)]
    return CLOSEST[max(matching, key=len)] if matching else ("tests",)


def fails(tree: Path, test: str) -> bool:
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    try:
        run = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return run.returncode != 0


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file, or of the files in a folder."""
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
        lines = source.splitlines()
        for node in ast.walk(tree):
            for changed in variants(node):
                text = replaced(source, node, changed)
                if text is not None:
                    after = text.splitlines()[node.lineno - 1]  # type: ignore[attr-defined]
                    yield Mutant(file, node.lineno, lines[node.lineno - 1], after, text)  # type: ignore[attr-defined]


def variants(node: ast.AST) -> Iterator[ast.expr]:
    """What an expression is changed to."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        changed = copy.deepcopy(node)
        changed.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield changed
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        if not any(
            isinstance(side, ast.Constant) and isinstance(side.value, str)
            for side in (node.left, node.right)
        ):
            changed_operation = copy.deepcopy(node)
            changed_operation.op = ARITHMETIC[type(node.op)]()
            yield changed_operation
    elif isinstance(node, ast.BoolOp):
        changed_bool = copy.deepcopy(node)
        changed_bool.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed_bool
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
        yield ast.Call(ast.Name(NAMES[node.func.id]), node.args, node.keywords)


def replaced(source: str, node: ast.AST, changed: ast.expr) -> str | None:
    """The source with one expression replaced, where it stands on one line."""
    line, end = node.lineno, node.end_lineno  # type: ignore[attr-defined]
    if line != end:
        return None
    lines = source.splitlines(keepends=True)
    encoded = lines[line - 1].encode()
    start, stop = node.col_offset, node.end_col_offset  # type: ignore[attr-defined]
    text = f"({ast.unparse(changed)})".encode()
    lines[line - 1] = (encoded[:start] + text + encoded[stop:]).decode()
    result = "".join(lines)
    try:
        ast.parse(result)
    except SyntaxError:
        return None  # within a format string, say
    return result


if __name__ == "__main__":
    main()
