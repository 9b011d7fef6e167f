"""How large sizes may be: what data decide, known before a run computes."""

from __future__ import annotations

import functools

from ....ir.symbolic import expressions as e
from ....ir.symbolic.expressions import Atom, Expression, Size

MOST = 2**31 - 2**16
"""Elements of a tensor with open sizes, and the largest size of an axis: kernels count in 32 bits,
and round a little up."""


def is_decided(size: Size) -> bool:
    """Whether data decide a size: no run knows it before it computes."""
    return not isinstance(size, int) and e.mentions(size, "data")


def upper_bound(size: Size) -> Size | None:
    """What a size that data decide is no greater than; None where nothing says."""
    if isinstance(size, int) or not is_decided(size):
        return size
    parts: list[Size] = []
    for monomial, factor in size.terms.items():
        if not is_decided(Expression({monomial: factor})):
            parts.append(Expression({monomial: factor}) if monomial else factor)
            continue
        if any(atom.range.low is None or atom.range.low < 0 for atom in monomial):
            return None
        if factor > 0:
            most = [_bound_of(atom) for atom in monomial]
            known = [m for m in most if m is not None]
            if len(known) < len(most):
                return None
            parts.append(e.multiply(factor, *known))
    return e.add(*parts)


def _bound_of(atom: Atom) -> Size | None:
    size = e.single(atom)
    if not is_decided(size):
        return size
    bounds: list[Size | None] = []
    if atom.op in ("dim", "checked", "min"):
        bounds = [upper_bound(operand) for operand in atom.operands]
    elif atom.op in ("max", "choose"):
        each = [upper_bound(operand) for operand in atom.operands[atom.op == "choose" :]]
        known = [most for most in each if most is not None]
        bounds = [functools.reduce(e.maximum, known)] if len(known) == len(each) else []
    elif atom.op == "floor" and isinstance(atom.operands[1], int) and atom.operands[1] > 0:
        most = upper_bound(atom.operands[0])
        bounds = [] if most is None else [e.floor_divide(most, atom.operands[1])]
    found = [bound for bound in bounds if bound is not None]
    if atom.range.high is not None and atom.range.high < MOST:
        found.append(atom.range.high)
    return functools.reduce(e.minimum, found) if found else None
