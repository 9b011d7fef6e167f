"""Names by which what is pruned of a model is noted."""

from __future__ import annotations

from ...ir.model import Model
from ..base import PassResult
from ..inline import InlineFunctions


def name_values(model: Model) -> PassResult:
    """Give every value the name that a record of its pruning has it under.

    Functions' bodies take the place of calls, and no two values share a name; equal models get
    equal names. What inlining did is returned.
    """
    inlined = InlineFunctions().run(model)
    model.separate_names()
    return inlined
