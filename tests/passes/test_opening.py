"""Models of one sample take several within a block, and are what they were behind it."""

import numpy as np

from secateur.ir.onnx_io import to_proto
from secateur.ir.reference import Session
from secateur.ir.text import parse_model
from secateur.passes.linear.opening import open_batch
from tests.passes.nets import Net
from tests.passes.test_recovery import digits_like


def test_models_of_one_sample_are_opened_and_closed_again():
    model = digits_like()
    before = to_proto(model).SerializeToString()
    x = np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)
    with open_batch(model, {"x": x}) as opened:
        assert opened
        assert Session(model).run({"x": x})["y"].shape[0] == 4
    assert to_proto(model).SerializeToString() == before


def test_reshapes_of_one_sample_are_opened_and_closed_again():
    """Whether another size is left open or none, and where two share a target."""
    model = parse_model("""model <ir_version = 8, opset = ["" = 17]>
graph g (%x: float[1, 4, 6]) -> (%y: float[1, 24], %z: float[1, 12]) {
  const %open: int64[3] = [1, -1, 8]
  const %flat: int64[2] = [1, 24]
  const %half: int64[2] = [1, 12]
  %a = Reshape(%x, %open)
  %b = Relu(%a)
  %c = Reshape(%b, %flat)
  %d = Tanh(%c)
  %y = Reshape(%d, %flat)
  %e, %f = Split(%y) {axis = 1}
  %g = Mul(%e, %f)
  %z = Reshape(%g, %half)
}""")
    before = to_proto(model).SerializeToString()
    x = np.random.default_rng(0).standard_normal((4, 4, 6)).astype(np.float32)
    with open_batch(model, {"x": x}) as opened:
        assert opened
        found = Session(model).run({"x": x})
    assert to_proto(model).SerializeToString() == before
    for k in range(4):
        for name, array in Session(model).run({"x": x[k : k + 1]}).items():
            np.testing.assert_allclose(found[name][k : k + 1], array, rtol=1e-6)


def test_samples_that_mix_are_not_run_together():
    net = Net(0)
    mixed = net.add("Softmax", net.add("Relu", "x"), axis=0)
    model = net.model([1, 4], mixed)
    with open_batch(model, {"x": np.ones((4, 4), np.float32)}) as opened:
        assert not opened
    assert model.graph.inputs[0].shape == (1, 4)
