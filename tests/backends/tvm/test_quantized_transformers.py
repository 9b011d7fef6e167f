"""Transformers in int8: every product, of two values of a run too, is of bytes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.operations import MatMulOp, ProductOp
from secateur.backends.tvm.targets import parse_target
from secateur.ir.infer import infer_shapes
from secateur.models.zoo import load_tiny, random_inputs
from secateur.passes.base import Context
from secateur.passes.manager import PassManager
from secateur.passes.quantize import Quantize
from secateur.passes.simplify import simplify_pipeline

PRODUCTS = {"bert": (14, 4), "vit_tiny": (9, 4), "gqa_decoder": (15, 4)}
"""By constants, and of two values of a run."""


TARGETS = {
    "int8": "x86-64-v3",
    "int8-signed": "aarch64-cortex-a76",
    "dynamic-per-token": "icelake-server",
}


@pytest.mark.parametrize("scheme", TARGETS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_is_of_bytes(name: str, scheme: str) -> None:
    model = load_tiny(name, "folded")
    feeds = [random_inputs(model, seed=seed) for seed in range(4)]
    samples = {key: np.concatenate([feed[key] for feed in feeds]) for key in feeds[0]}
    PassManager(simplify_pipeline()).run(model, Context())
    is_static = scheme.startswith("int8")
    accuracy = "fast" if is_static else "good"
    context = Context(samples if is_static else None)
    Quantize(scheme, accuracy=accuracy, table=False).run(model, context)
    infer_shapes(model)
    plan = lower(model, parse_target(TARGETS[scheme]))
    constant = [op.input.dtype for op in plan.operations if isinstance(op, MatMulOp)]
    computed = [
        {op.left.tensor.dtype, op.right.tensor.dtype}
        for op in plan.operations
        if isinstance(op, ProductOp)
    ]
    assert (len(constant), len(computed)) == PRODUCTS[name]
    assert set(constant) <= {"uint8", "int8"}
    if is_static:
        assert all(types <= {"uint8", "int8"} for types in computed)
    else:  # which is for constant weights
        assert all(types == {"float32"} for types in computed)
