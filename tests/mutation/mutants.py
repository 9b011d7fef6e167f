"""Mutants of source files, made mechanically from the syntax tree.

Comparisons and arithmetic are exchanged, numbers are off by one, conditions negated, `and` becomes
`or`, `min` becomes `max`, a conditional expression takes its other branch.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

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

    @property
    def source(self) -> str:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        end = lines[self.line - 1][len(self.before) :]
        lines[self.line - 1] = self.after + end
        return "".join(lines)


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file, or of the files in a folder."""
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        source = file.read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in expressions(ast.parse(source)):
            for changed in variants(node):
                if node.lineno == node.end_lineno:  # type: ignore[attr-defined]
                    before = lines[node.lineno - 1]  # type: ignore[attr-defined]
                    yield Mutant(file, node.lineno, before, replaced(before, node, changed))  # type: ignore[attr-defined]


def expressions(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes whose change can be seen.

    Nobody sees that a class isn't frozen, that a loop over pairs doesn't ask for equal lengths, or
    which negative number stands for the size that `reshape` isn't given. Where an expression within
    a format string stands isn't known.
    """
    for node in ast.iter_child_nodes(tree):
        declares = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("dataclass")
        strict = isinstance(node, ast.keyword) and node.arg == "strict"
        formatted = isinstance(node, ast.JoinedStr)
        if not (declares or strict or formatted or _is_open_size(tree, node)):
            yield node
            yield from expressions(node)


def _is_open_size(parent: ast.AST, node: ast.AST) -> bool:
    """Whether a node is the -1 among the sizes of a `reshape`."""
    reshapes = (
        isinstance(parent, ast.Call)
        and isinstance(parent.func, ast.Attribute)
        and parent.func.attr == "reshape"
    )
    return reshapes and isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)


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


def replaced(line: str, node: ast.AST, changed: ast.expr) -> str:
    """A line of source with one expression of it replaced."""
    encoded = line.encode()
    start, stop = node.col_offset, node.end_col_offset  # type: ignore[attr-defined]
    return (encoded[:start] + f"({ast.unparse(changed)})".encode() + encoded[stop:]).decode()
