"""What recovery says of layers that have nothing to be solved from."""

import numpy as np
import pytest

from tests.passes.test_recovery import digits_like, recovered_notes


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_inputs_that_never_change_are_named(noise):
    """But for rounding, which each layer adds to; where they stand in the model is no matter.

    The last layer may be as it was once the first ones' biases are right, to the bit where samples
    are the same to the bit: then there is nothing to say of it.
    """
    change = noise * np.random.default_rng(0).standard_normal((64, 1, 8, 8))
    x = (0.5 + change).astype(np.float32)
    notes = recovered_notes(digits_like(), x)
    assert "same in all samples" in notes["Conv"]
    if noise or "Gemm" in notes:
        assert "same in all samples" in notes["Gemm"]


def test_inputs_that_change_a_little_are_not_named():
    change = 1e-3 * np.random.default_rng(0).standard_normal((64, 1, 8, 8))
    x = (0.5 + change).astype(np.float32)
    assert "same in all samples" not in recovered_notes(digits_like(), x).get("Conv", "")
