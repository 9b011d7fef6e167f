"""Files that ONNX Runtime wrote: fused by its optimizer, quantized by its tools."""

import logging

import numpy as np
import onnxruntime
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from secateur.ir.onnx_io import load, save
from secateur.models.zoo import ZOO, load_tiny, random_inputs
from secateur.passes.prune import PruneChannels
from secateur.passes.simplify import simplify_pipeline

from .oracle import assert_equals_masked, prune_at_random
from .test_zoo import LEAST


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def simplified(name, path):
    model = load_tiny(name, "folded")
    for step in simplify_pipeline():
        step.run(model)
    save(model, path)
    return model


def optimized(source, target):
    """Through the optimizer, without the layouts that only one machine reads."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return target


def check(path, feeds, least):
    """Prunes exactly, and loses that share of MACs when every group loses half."""
    for seed, share in enumerate((None, 1.0)):
        result = prune_at_random(load(path), np.random.default_rng(seed), share)
        assert result.selection
        assert_equals_masked(result, feeds, rtol=1e-4)
    found = PruneChannels(ratio=0.5, scope="uniform").run(load(path)).statistics
    assert 1 - found["macs_after"] / found["macs_before"] >= least


@pytest.mark.parametrize("name", ZOO)
def test_fused(name, tmp_path):
    model = simplified(name, tmp_path / "plain.onnx")
    fused = optimized(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
    check(fused, random_inputs(model), LEAST[name])


class Samples(CalibrationDataReader):
    def __init__(self, model):
        self.samples = iter([random_inputs(model, seed=seed) for seed in range(2)])

    def get_next(self):
        return next(self.samples, None)


QUANTIZED = ["resnet8", "mobilenet_v3_small", "shufflenet_v2", "unet", "lenet5", "bert", "gru"]


@pytest.mark.parametrize("per_channel", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "form",
    [
        "QDQ",
        "QOperator",
        "dynamic",
        *(pytest.param(form, marks=pytest.mark.slow) for form in ("fused", "dynamic fused")),
    ],
)
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized(name, form, per_channel, tmp_path):
    """What integers compute is exact, and where floats are rounded again it is, too.

    Weights have 7 bits: on CPUs without VNNI sums of two products of 8 bits saturate.
    """
    model = simplified(name, tmp_path / "float.onnx")
    source, target = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    if form.startswith("dynamic"):
        quantize_dynamic(source, target, per_channel=per_channel, reduce_range=True)
    else:
        quantize_static(
            source,
            target,
            Samples(model),
            quant_format=QuantFormat.QOperator if form == "QOperator" else QuantFormat.QDQ,
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
    if form.endswith("fused"):
        target = optimized(target, tmp_path / "fused.onnx")
    check(target, random_inputs(model), LEAST[name] - 0.01)
