"""Training the nets that accuracy is measured on. Skipped where the extra `torch` is not there."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from PIL import Image  # noqa: E402

from secateur.ir.errors import SecateurError  # noqa: E402
from secateur.ir.onnx_io import load  # noqa: E402
from secateur.models.zoo import trained  # noqa: E402
from secateur.models.zoo.trained import TRAININGS  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 128)
    pixels = random.integers(0, 256, (128, 3, 32, 32)).astype(np.float32)
    return torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_net_is_trained_and_written(name, images, tmp_path):
    training = dataclasses.replace(
        TRAININGS[name], sizes=((1, 20),) if name == "resnet20" else ((1, 32),)
    )
    pixels, labels = images
    net = trained.train(training, pixels, labels)
    assert 0 <= trained.top1(net, pixels, labels) <= 1
    path = tmp_path / f"{name}.onnx"
    trained.write(net, 32, path)
    assert load(path).graph.inputs[0].shape == ("batch", 3, 32, 32)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {trained.INPUT: pixels[:5].float().numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, net(pixels[:5].float()).numpy(), atol=1e-3)
    again = trained.Normalized(training.build()).eval()
    again.load_state_dict(torch.load(path.with_suffix(".pt")))
    with torch.no_grad():
        torch.testing.assert_close(again(pixels[:5].float()), net(pixels[:5].float()))


def test_an_interrupted_training_goes_on(images, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAININGS["mobilenet_v2"], sizes=((2, 16),), batch=32)
    pixels, labels = images
    whole = trained.train(training, pixels, labels).state_dict()
    keep = trained._keep

    def interrupted(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    checkpoint = tmp_path / "nets" / "mobilenet_v2.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(trained, "_keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained.train(training, pixels, labels, checkpoint=checkpoint)
    resumed = trained.train(training, pixels, labels, checkpoint=checkpoint).state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
    with pytest.raises(SecateurError, match=r"a training with .* seed 0 .*, not with .* seed 1"):
        trained.train(training, pixels, labels, seed=1, checkpoint=checkpoint)


def test_shifted_images_keep_their_size_and_range(images):
    pixels, _ = images
    for size in (32, 20):
        seen = trained._augmented(pixels.float(), size, torch.Generator().manual_seed(0))
        assert seen.shape == (len(pixels), 3, size, size)
        assert seen.min() >= 0
        assert seen.max() <= 255


def test_one_square_of_each_image_is_blanked(images):
    pixels = 255 * torch.ones(64, 3, 32, 32)
    seen = trained._augmented(pixels, 32, torch.Generator().manual_seed(0), erased=0.25)
    blank = (seen != 255).all(dim=1)
    assert (blank.sum(dim=(1, 2)) == 64).all()
    assert (blank.any(dim=1).sum(dim=1) == 8).all()
    assert (blank.any(dim=2).sum(dim=1) == 8).all()
    assert len({tuple(image.flatten().tolist()) for image in blank}) > 32
    np.testing.assert_allclose(seen[:, :, blank[0]][0, :, 0], trained.MEAN, atol=1e-4)


@pytest.mark.parametrize("encoded", [False, True])
def test_images_are_read(encoded, tmp_path):
    pixels = np.full((4, 3, 32, 32), 200, np.uint8)
    arrays = {"x": pixels.astype(np.float32)}
    if encoded:
        files = []
        for image in pixels.transpose(0, 2, 3, 1):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG")
            files.append(np.frombuffer(file.getvalue(), np.uint8))
        offsets = np.cumsum([0, *map(len, files)])
        arrays = {"jpeg": np.concatenate(files), "offsets": offsets}
    np.savez(tmp_path / "images.npz", labels=np.arange(4), **arrays)
    found, labels = trained.load_images(tmp_path / "images.npz")
    assert found.dtype == torch.uint8
    assert found.shape == (4, 3, 32, 32)
    assert abs(int(found.float().mean()) - 200) <= 1
    assert labels.tolist() == [0, 1, 2, 3]
