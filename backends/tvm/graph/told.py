"""Operators whose data decide the sizes of their results."""

from __future__ import annotations

from ....ir.ops import Trait, with_trait

COUNTED = with_trait(Trait.COUNTED)
"""Operators whose kernels count their results."""

TOLD = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Loop": (0,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Operands that tell operators the sizes of their results."""
