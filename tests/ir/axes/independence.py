"""Whether samples are independent by running them: whole batches against one at a time."""

import numpy as np
import onnx

from secateur.ir.dependencies.batch import find_batch
from secateur.ir.errors import SecateurError
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session

from .oracle import assert_close

SIZES = (1, 3, 5)
"""Numbers of samples that run as one batch."""


def analyzed(proto):
    """The model with its shapes, and what is known of its batch."""
    model = from_proto(proto)
    infer_shapes(model)
    return model, find_batch(model)


def assert_independent(model, batch, feeds, rtol=1e-4, sizes=SIZES):
    """Outputs of a batch are those of its samples, as ONNX Runtime computes both.

    `feeds` maps inputs to arrays, of those that have samples to as many as the largest batch
    has. Whether any batch ran.
    """
    session = Session(model, optimize=False)
    split = {v.name for v in batch.inputs}
    pieces = {v.name for v in batch.outputs}

    def run(start, stop):
        return session.run({n: a[start:stop] if n in split else a for n, a in feeds.items()})

    ran = False
    for size in sizes:
        try:
            whole = run(0, size)
            singles = [run(i, i + 1) for i in range(size)]
        except SecateurError:  # sizes in the graph that this one doesn't fit
            continue
        ran = ran or size > 1
        for name, value in whole.items():
            if name in pieces:
                value_of_pieces = [s[name] for s in singles]
                assert_close(value, np.concatenate(value_of_pieces), rtol, name)
            else:
                for single in singles:
                    assert_close(value, single[name], rtol, name)
    return ran


def open_first_axes(proto, names, symbol="N"):
    """A copy of the model whose inputs `names` leave their first size open, outputs all."""
    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    for info in opened.graph.input:
        if info.name in names:
            info.type.tensor_type.shape.dim[0].dim_param = symbol
    for info in opened.graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("shape")
    del opened.graph.value_info[:]
    return opened
