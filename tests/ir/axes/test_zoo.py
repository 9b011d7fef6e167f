"""Every architecture of the zoo: exact at random selections, and pruned as much as it was."""

import numpy as np
import onnx
import pytest

from secateur.ir.onnx_io import to_proto
from secateur.models.zoo import ZOO, list_models, load_tiny, random_inputs
from secateur.passes.prune import PruneChannels
from secateur.passes.simplify import simplify_pipeline

from .oracle import assert_equals_masked, prune_at_random

LEAST = {
    "resnet8": 0.73,
    "resnet50": 0.55,
    "resnext50": 0.56,
    "regnet_y_400mf": 0.66,
    "densenet121": 0.57,
    "shufflenet_v1": 0.49,
    "shufflenet_v2": 0.56,
    "squeezenet": 0.64,
    "lenet5": 0.62,
    "inception_v1": 0.57,
    "inception_v3": 0.71,
    "mobilenet_v1": 0.64,
    "mobilenet_v2": 0.67,
    "mobilenet_v3_small": 0.60,
    "efficientnet_b0": 0.66,
    "unet": 0.73,
    "yolo": 0.71,
    "super_resolution": 0.71,
    "autoencoder": 0.67,
    "hard_coded_reshapes": 0.73,
    "vit_tiny": 0.52,
    "bert": 0.61,
    "gqa_decoder": 0.52,
    "lstm": 0.74,
    "gru": 0.73,
    "bidirectional_lstm": 0.74,
    "tcn": 0.71,
    "ds_cnn": 0.63,
}
"""Share of MACs that goes at least when every group of a tiny model loses half.

What keeps it below 3/4: layers that read the graph's inputs or write its outputs, which
in the tiny models are large, and widths that layer normalization runs over.
"""


def test_the_floors_cover_the_zoo():
    assert set(LEAST) == set(ZOO) == {name for name, _ in list_models()}


def by_default(*which):
    """All models of the zoo, those of some variants by default."""
    return [
        pytest.param(name, variant, marks=[] if variant in which else [pytest.mark.slow])
        for name, variant in list_models()
    ]


@pytest.mark.parametrize("share", [None, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "variant"), by_default("folded", "dynamo"))
def test_random_selections_are_exact(name, variant, share):
    model = load_tiny(name, variant)
    feeds = random_inputs(model)
    rng = np.random.default_rng(0)
    result = prune_at_random(model, rng, share)
    assert result.selection
    assert_equals_masked(result, feeds, rtol=1e-4)
    onnx.checker.check_model(to_proto(result.pruned), full_check=True)


@pytest.mark.parametrize(("name", "variant"), by_default("folded"))
def test_half_of_every_group_removes_as_much_as_before(name, variant):
    model = load_tiny(name, variant)
    for step in simplify_pipeline():
        step.run(model)
    found = PruneChannels(ratio=0.5, scope="uniform").run(model).statistics
    assert 1 - found["macs_after"] / found["macs_before"] >= LEAST[name]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("name", "variant"), list_models())
def test_many_random_selections_are_exact(name, variant, seed):
    model = load_tiny(name, variant)
    for step in simplify_pipeline() if seed % 2 else []:
        step.run(model)
    feeds = random_inputs(model, seed=seed)
    result = prune_at_random(model, np.random.default_rng(seed))
    assert_equals_masked(result, feeds, rtol=1e-4)
