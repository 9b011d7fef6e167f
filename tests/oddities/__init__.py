"""Models as the world writes them: a few small bases, each with one thing that is odd about it.

`ODDITIES` maps names to functions that change a model proto in place, or return another.
A model that neither onnx.checker nor ONNX Runtime accepts is none.
"""

from . import bases, declarations, interface, names, operators, registry
from .registry import BASES, ODDITIES, all_oddities, make

__all__ = [
    "BASES",
    "ODDITIES",
    "all_oddities",
    "bases",
    "declarations",
    "interface",
    "make",
    "names",
    "operators",
    "registry",
]
