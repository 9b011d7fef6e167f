"""How many threads matrix products take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from threadpoolctl import threadpool_limits

from ...ir.model import Model

WIDE = 1024
"""Unknowns of an output from which products gain more by several threads than they lose."""


@contextlib.contextmanager
def few_threads(model: Model) -> Iterator[None]:
    """One thread for NumPy's products in a block, if the layers of a model are all narrow.

    Between products its other threads wait busily for the next one, and take the processors
    from ONNX Runtime: most of the time of a small model's recovery.
    """
    tensors = [v.const for v in model.graph.initializers.values() if v.const is not None]
    widths = [t.size // t.shape[0] for t in tensors if len(t.shape) > 1 and t.size]
    with contextlib.ExitStack() as stack:
        if max(widths, default=0) < WIDE:
            stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        yield
