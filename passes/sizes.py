"""Shape inference that also follows sizes through shape computations."""

from __future__ import annotations

from ..ir.graph import tensor_type
from ..ir.infer import infer_shapes
from ..ir.model import Model
from .simplify.symbolic.analysis import Analysis


def infer_sizes(model: Model) -> None:
    """As `ir.infer.infer_shapes`; what that leaves open is followed symbolically.

    ONNX's inference loses sizes behind chains such as Shape, Gather, Div, Slice, and with
    them the cost of all that comes after.
    """
    infer_shapes(model)
    if _leaves_sizes_open(model):
        Analysis(model).run()


def _leaves_sizes_open(model: Model) -> bool:
    """Whether a result has a rank or a size that is neither a number nor an input's symbol.

    Exporters name the sizes that they lost track of, too.
    """
    known = {size for value in model.graph.inputs for size in value.shape or ()}
    known.discard(None)
    for node in model.all_nodes():
        for value in node.outputs:
            if value is None or (value.type is not None and tensor_type(value.type) is None):
                continue
            shape = value.shape
            if shape is None or not all(isinstance(s, int) or s in known for s in shape):
                return True
    return False
