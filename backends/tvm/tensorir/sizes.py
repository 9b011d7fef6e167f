"""Sizes that only a run fixes, inside kernels: integers that a kernel is given with its buffers.

What is no polynomial (a quotient, a minimum) is a parameter of its own, which the entry
computes, so that kernels hold sums and products of parameters only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tvm import tirx
from tvm.ir.prim import expr as prim

from ....ir.symbolic.expressions import Atom, Expression, atoms, single
from ..plan.sizes import set_renderer, stand_in
from .types import Computed, Node, PrimFunc

_VARIABLES: dict[str, tirx.Var] = {}
_ATOMS: dict[str, Atom] = {}
"""Both by the parameter's name, which is the same for equal parts of sizes in every kernel: those
that are made of the same, within the same bounds."""


def _variable(atom: Atom) -> tirx.Var:
    text = " ".join(f"{part.key} {part.range}" for part in atoms([single(atom)]))
    name = f"n_{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
    if name not in _VARIABLES:
        _VARIABLES[name], _ATOMS[name] = tirx.Var(name, "int32"), atom
    return _VARIABLES[name]


def render(expression: Expression) -> Computed:
    """A size as a sum of products of parameters."""
    total: Computed | int = 0
    for monomial, factor in expression.terms.items():
        product: Computed | int = factor
        for atom in monomial:
            variable = _variable(atom)
            product = variable if isinstance(product, int) and product == 1 else variable * product
        total = product if isinstance(total, int) and total == 0 else total + product
    assert not isinstance(total, int)
    return total


def size_parameters(sizes: Sequence[Expression]) -> list[tirx.Var]:
    """The parameters that kernels of these sizes take, with those that they follow from."""
    return sorted(map(_variable, atoms(sizes)), key=lambda v: str(v.name))


def atom_of(parameter: tirx.Var) -> Atom:
    """The part of sizes that a parameter is."""
    return _ATOMS[str(parameter.name)]


def as_size(parameter: tirx.Var) -> Expression:
    """A parameter as the size that it is."""
    return single(atom_of(parameter))


def sizes_of(function: PrimFunc) -> list[Atom]:
    """The parts of sizes that a kernel takes after its buffers."""
    return [atom_of(p) for p in function.params if is_size(p)]


def is_size(parameter: tirx.Var) -> bool:
    """Whether a kernel's parameter is a size, not a buffer."""
    return str(parameter.name) in _ATOMS and str(parameter.ty) == "int32"


def to_size(value: Node) -> int:
    """What a sum or product of parameters and numbers in a kernel stands for."""
    if isinstance(value, prim.IntImm):
        return int(value)
    if isinstance(value, (prim.Add, prim.Sub, prim.Mul)):
        a, b = to_size(value.a), to_size(value.b)
        if isinstance(value, prim.Mul):
            return a * b
        return a + b if isinstance(value, prim.Add) else a - b
    return stand_in(as_size(value))


set_renderer(render)
