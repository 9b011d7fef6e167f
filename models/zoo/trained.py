"""Three small classifiers trained on CIFAR-10: `python -m secateur.models.zoo.trained`.

What pruning costs can only be measured on weights that have learned something. Architecture,
schedule, seed and the accuracy to expect are fixed here; the weights are not kept, since one
core trains each of the nets in 6 to 20 minutes where it multiplies bfloat16 by itself
(AVX512-BF16, AMX), and in about half an hour elsewhere. A training that was interrupted goes on
after the last whole epoch. Needs torch, and pillow where the images are JPEGs.
"""

from __future__ import annotations

import io
import itertools
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...ir.errors import SecateurError
from ...ir.onnx_io import atomic_files
from .layers import Classifier, ConvNormAct
from .mobilenet import mobilenet_v2 as zoo_mobilenet_v2
from .resnet import basic_block
from .transformers import ViT

SEED = 0
INPUT = "image"
MEAN, DEVIATION = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
"""Of the training images' red, green and blue, in 0..255."""

WARM_UP = 0.2
"""Share of all steps during which the rate rises (one cycle: Smith and Topin 2019)."""


class Normalized(nn.Module):
    """A net that takes images in 0..255, [N, 3, H, W], and returns class scores [N, 10]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1))
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net((x - self.mean) / self.deviation)


def resnet20() -> nn.Module:
    """ResNet-20 of 16, 32 and 64 channels (He et al. 2016), projections as shortcuts."""
    layers: list[nn.Module] = [ConvNormAct(3, 16, 3, activation=nn.ReLU())]
    channels = 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(basic_block(channels, width, 2 if stage and not block else 1))
            channels = width
    return nn.Sequential(*layers, Classifier(channels, 10))


def mobilenet_v2() -> nn.Module:
    """A small MobileNetV2 (Sandler et al. 2018): 8 blocks, of which 7 expand fourfold, ReLU6."""
    stages = ((1, 16, 1, 1), (4, 24, 2, 1), (4, 32, 3, 2), (4, 64, 2, 2))
    return zoo_mobilenet_v2(stem=16, stages=stages, head=192, classes=10)


def vit() -> nn.Module:
    """ViT of 4 layers and 1.1 million parameters, with a stem of three convolutions.

    The stem (Xiao et al., "Early Convolutions Help Transformers See Better", 2021) makes 16
    tokens of 144 values; there are 3 heads.
    """
    net = ViT(image=32, patch=8, width=144, depth=4, heads=3, classes=10)
    net.embed = nn.Sequential(
        ConvNormAct(3, 32, 3, 2, activation=nn.ReLU()),
        ConvNormAct(32, 64, 3, 2, activation=nn.ReLU()),
        nn.Conv2d(64, 144, 3, 2, 1),
    )
    return net


@dataclass(frozen=True)
class Training:
    """A net and how it is trained.

    `sizes` holds (epochs, size in pixels of the images they see), in order; `erased` is the side
    of the square that is blanked in each image, as a share of the image's; `half` has forward
    and backward passes multiply bfloat16 (what is summed up and the weights stay float32) on a
    CPU that does so by itself, where it is twice as fast and not many times slower;
    `top1` is the share of test images that the trained net is right about, at least.
    """

    build: Callable[[], nn.Module]
    sizes: tuple[tuple[int, int], ...]
    batch: int
    rate: float
    decay: float
    adam: bool
    half: bool
    top1: float
    erased: float = 0.0

    @property
    def epochs(self) -> int:
        return sum(count for count, _ in self.sizes)


TRAININGS: dict[str, Training] = {
    "resnet20": Training(
        resnet20, ((8, 24), (28, 32)), 64, 0.1, 5e-4, False, True, 0.84, erased=0.25
    ),
    "mobilenet_v2": Training(mobilenet_v2, ((8, 32),), 128, 0.2, 2e-4, False, False, 0.72),
    "vit": Training(vit, ((14, 32),), 64, 1e-3, 0.05, True, True, 0.69),
}


def load_images(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 3, H, W] as uint8 and labels [N] of an .npz file.

    It holds `labels` and either an array [N, 3, H, W] in 0..255 of any other name, or the
    images' files one after another (`jpeg`), with where each begins and the last ends
    (`offsets`).
    """
    with np.load(path) as file:
        arrays = dict(file)
    labels = torch.from_numpy(arrays.pop("labels").astype(np.int64))
    if "jpeg" in arrays:
        return torch.from_numpy(_decode(arrays["jpeg"], arrays["offsets"])), labels
    (images,) = arrays.values()
    return torch.from_numpy(images.astype(np.uint8)), labels


def _decode(data: Any, offsets: Any) -> Any:
    from PIL import Image

    files = data.tobytes()
    images = [
        np.asarray(Image.open(io.BytesIO(files[start:end])).convert("RGB"))
        for start, end in itertools.pairwise(offsets)
    ]
    return np.stack(images).transpose(0, 3, 1, 2).copy()


def train(
    training: Training,
    images: torch.Tensor,
    labels: torch.Tensor,
    seed: int = SEED,
    checkpoint: Path | None = None,
) -> nn.Module:
    """A net, in evaluation mode, trained as `training` says on flipped and shifted images.

    After each epoch everything that the next one needs is written to `checkpoint`; where that
    file is there, training starts from it and ends with the same weights.
    """
    torch.manual_seed(seed)
    net = Normalized(training.build()).to(memory_format=torch.channels_last)
    optimizer = _optimizer(training, net)
    batches = len(images) // training.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.rate, total_steps=training.epochs * batches, pct_start=WARM_UP
    )
    generator = torch.Generator().manual_seed(seed)
    parts = {"net": net, "optimizer": optimizer, "schedule": schedule}
    run = f"{astuple(training)[1:]} with seed {seed} on {len(images)} images"
    done = _resume(checkpoint, run, parts, generator) if checkpoint else 0
    half = training.half and _multiplies_bfloat16()
    sizes = [size for count, size in training.sizes for _ in range(count)]
    for epoch, size in enumerate(sizes[done:], done + 1):
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for chosen in order.split(training.batch)[:batches]:
            seen = _augmented(images[chosen].float(), size, generator, training.erased)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                scores = net(seen).float()
            loss = functional.cross_entropy(scores, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        click.echo(
            f"  epoch {epoch} of {len(sizes)}: loss {total / batches:.3f}, "
            f"{time.perf_counter() - start:.0f} s"
        )
        if checkpoint:
            _keep(checkpoint, run, epoch, parts, generator)
    return net.eval()


def _multiplies_bfloat16() -> bool:
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def _keep(
    path: Path, run: str, epoch: int, parts: dict[str, Any], generator: torch.Generator
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    states = {name: part.state_dict() for name, part in parts.items()}
    states |= {"run": run, "epoch": epoch, "generator": generator.get_state()}
    with atomic_files(path) as (file,):
        torch.save(states, file)


def _resume(path: Path, run: str, parts: dict[str, Any], generator: torch.Generator) -> int:
    """Epochs that are done: 0 without a file. Raises SecateurError for that of another run."""
    if not path.exists():
        return 0
    states = torch.load(path, weights_only=True)
    if states["run"] != run:
        raise SecateurError(f"{path}: a training with {states['run']}, not with {run}")
    for name, part in parts.items():
        part.load_state_dict(states[name])
    generator.set_state(states["generator"])
    return int(states["epoch"])


def _optimizer(training: Training, net: nn.Module) -> torch.optim.Optimizer:
    """Weight decay falls on matrices and kernels, not on vectors."""
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": training.decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if training.adam:
        return torch.optim.AdamW(groups, training.rate)
    return torch.optim.SGD(groups, training.rate, momentum=0.9, nesterov=True)


def _augmented(
    images: torch.Tensor, size: int, generator: torch.Generator, erased: float = 0.0
) -> torch.Tensor:
    """Half of the images mirrored, each shifted by up to an eighth, then scaled to `size`.

    In each a square of the share `erased` of the image's side, wherever it lies, gets the mean
    colour (cutout: DeVries and Taylor 2017).
    """
    count, _, height, width = images.shape
    mirrored = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    pad = height // 8
    padded = functional.pad(images, (pad, pad, pad, pad), mode="reflect")
    down, right = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, :]
    shifted = padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns]
    if erased:
        side = round(erased * height)
        top, left = torch.randint(0, height - side + 1, (2, count), generator=generator)
        blank_rows = _within(torch.arange(height), top, side)
        blank_columns = _within(torch.arange(width), left, side)
        blank = (blank_rows[:, :, None] & blank_columns[:, None, :])[..., None]
        shifted = torch.where(blank, torch.tensor(MEAN), shifted)
    seen = shifted.permute(0, 3, 1, 2)  # channels last in memory
    if size == height:
        return seen
    return functional.interpolate(seen, size=(size, size), mode="bilinear", antialias=True)


def _within(places: torch.Tensor, first: torch.Tensor, count: int) -> torch.Tensor:
    return (places >= first[:, None]) & (places < first[:, None] + count)


def top1(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose highest score is their label's."""
    with torch.no_grad():
        right = [
            (net(part.float()).argmax(1) == wanted).sum().item()
            for part, wanted in zip(images.split(250), labels.split(250), strict=True)
        ]
    return float(sum(right)) / len(images)


def write(net: nn.Module, size: int, path: Path) -> None:
    """As ONNX with an open batch, BatchNormalization kept, and beside it the weights as .pt."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.to(memory_format=torch.contiguous_format),
            (torch.zeros(1, 3, size, size),),
            file,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=[INPUT],
            output_names=["scores"],
            dynamic_axes={INPUT: {0: "batch"}, "scores": {0: "batch"}},
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files(path, path.with_suffix(".pt")) as (model, weights):
        model.write_bytes(file.getvalue())
        torch.save(net.state_dict(), weights)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--images", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--test", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--threads", type=int, default=2, show_default=True)
def main(names: tuple[str, ...], images: Path, test: Path, output: Path, threads: int) -> None:
    """Train nets (by default all) on --images and write them to DIR/NAME.onnx and .pt.

    Says the top-1 on --test, which nothing is chosen by, and fails where it is below what
    the training states. A net whose training was interrupted goes on where it was.
    """
    unknown = [name for name in names if name not in TRAININGS]
    if unknown:
        raise click.UsageError(f"no net {unknown[0]!r}; there are {', '.join(TRAININGS)}")
    torch.set_num_threads(threads)
    seen, labels = load_images(images)
    held_out, wanted = load_images(test)
    failed = False
    for name in names or tuple(TRAININGS):
        training = TRAININGS[name]
        click.echo(f"{name}: {training.epochs} epochs of {len(seen)} images")
        checkpoint = output / f"{name}.checkpoint"
        net = train(training, seen, labels, checkpoint=checkpoint)
        write(net, seen.shape[-1], output / f"{name}.onnx")
        checkpoint.unlink()
        reached = top1(net, held_out, wanted)
        count = sum(p.numel() for p in net.parameters())
        click.echo(f"{name}: {reached:.2%} of {len(held_out)} test images, {count} parameters")
        if reached < training.top1:
            click.echo(f"error: {name} should reach {training.top1:.0%}", err=True)
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
