"""The list of architectures, in both sizes. Nothing here needs torch."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Literal

Scale = Literal["full", "tiny"]
SCALES: tuple[Scale, ...] = ("full", "tiny")


@dataclasses.dataclass(frozen=True)
class Input:
    """An input: its shape as traced, axes that stay symbolic where the variant wants that.

    `upper` is the exclusive bound of integer inputs; None for float32 inputs.
    """

    name: str
    shape: tuple[int, ...]
    upper: int | None = None
    dynamic: Mapping[int, str] = dataclasses.field(default_factory=lambda: {0: "batch"})


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One size of an architecture: arguments of its builder, and its inputs."""

    options: Mapping[str, Any]
    inputs: tuple[Input, ...]


@dataclasses.dataclass(frozen=True)
class ZooModel:
    """An architecture. `builder` is `module:function` within this package."""

    name: str
    builder: str
    full: Configuration
    tiny: Configuration
    notes: str

    def size(self, scale: Scale) -> Configuration:
        return self.full if scale == "full" else self.tiny

    def inputs(self, scale: Scale) -> tuple[Input, ...]:
        return self.size(scale).inputs

    def build(self, scale: Scale) -> Any:
        """The `torch.nn.Module`, with weights not yet initialised. Imports torch."""
        module, function = self.builder.split(":")
        builder = getattr(importlib.import_module(f".{module}", __package__), function)
        return builder(**self.size(scale).options)


def _image(side: int, channels: int = 3) -> tuple[Input, ...]:
    return (Input("image", (1, channels, side, side)),)


def _tokens(upper: int, length: int, *names: str) -> tuple[Input, ...]:
    return tuple(
        Input(name, (1, length), 2 if index else upper, {0: "batch", 1: "sequence"})
        for index, name in enumerate(names)
    )


def _frames(*shape: int, time: int) -> tuple[Input, ...]:
    return (Input("frames", shape, None, {0: "batch", time: "time"}),)


_MODELS = (
    ZooModel(
        "resnet8",
        "resnet:resnet8",
        Configuration({}, _image(32)),
        Configuration({"widths": (8, 16, 24)}, _image(16)),
        "residual adds",
    ),
    ZooModel(
        "resnet50",
        "resnet:resnet50",
        Configuration({}, _image(224)),
        Configuration(
            {"stem": 8, "widths": (4, 6, 8, 12), "depths": (2, 2, 2, 1), "classes": 10}, _image(32)
        ),
        "bottlenecks, projection shortcuts",
    ),
    ZooModel(
        "resnext50",
        "resnet:resnext50",
        Configuration({}, _image(224)),
        Configuration(
            {
                "stem": 12,
                "widths": (4, 6, 8, 12),
                "depths": (2, 1, 1, 1),
                "groups": 4,
                "group_width": 2,
                "classes": 10,
            },
            _image(32),
        ),
        "grouped convolutions",
    ),
    ZooModel(
        "regnet_y_400mf",
        "resnet:regnet_y_400mf",
        Configuration({}, _image(224)),
        Configuration(
            {
                "stem": 8,
                "widths": (8, 16, 24, 32),
                "depths": (1, 2, 1, 1),
                "group_width": 4,
                "classes": 10,
            },
            _image(32),
        ),
        "grouped convolutions and squeeze-and-excitation on one axis",
    ),
    ZooModel(
        "densenet121",
        "densenet:densenet121",
        Configuration({}, _image(224)),
        Configuration(
            {"growth": 6, "depths": (2, 3, 4, 2), "stem": 12, "bottleneck": 2, "classes": 10},
            _image(32),
        ),
        "concatenations of concatenations, pre-activation",
    ),
    ZooModel(
        "shufflenet_v1",
        "shufflenet:shufflenet_v1",
        Configuration({}, _image(224)),
        Configuration(
            {"stem": 12, "widths": (24, 48, 72), "depths": (2, 2, 1), "classes": 10}, _image(32)
        ),
        "channel shuffle over 3 groups, grouped 1x1 convolutions",
    ),
    ZooModel(
        "shufflenet_v2",
        "shufflenet:shufflenet_v2",
        Configuration({}, _image(224)),
        Configuration(
            {"stem": 12, "widths": (16, 32, 48), "depths": (3, 3, 2), "head": 40, "classes": 10},
            _image(32),
        ),
        "channel split and shuffle",
    ),
    ZooModel(
        "squeezenet",
        "squeezenet:squeezenet",
        Configuration({}, _image(224)),
        Configuration(
            {
                "stem": 16,
                "fires": (((8, 12), (8, 12)), ((8, 16),), ((12, 20), (12, 24))),
                "classes": 10,
            },
            _image(48),
        ),
        "no normalisation, concatenated expansions, convolution as classifier",
    ),
    ZooModel(
        "lenet5",
        "squeezenet:lenet5",
        Configuration({}, _image(32, 1)),
        Configuration({"widths": (6, 8), "hidden": (24, 16)}, _image(32, 1)),
        "Flatten into a linear layer",
    ),
    ZooModel(
        "inception_v1",
        "inception:inception_v1",
        Configuration({}, _image(224)),
        Configuration(
            {
                "stem": (8, 16),
                "blocks": (
                    ((6, (6, 8), (4, 6), 4),),
                    ((8, (6, 10), (4, 6), 4), (6, (8, 10), (4, 8), 6)),
                    ((8, (8, 12), (4, 8), 8),),
                ),
                "classes": 10,
            },
            _image(48),
        ),
        "four branches concatenated",
    ),
    ZooModel(
        "inception_v3",
        "inception:inception_v3",
        Configuration({}, _image(299)),
        Configuration({"scale": 1 / 16, "repeat": False, "classes": 10}, _image(96)),
        "factorised convolutions, nested concatenations",
    ),
    ZooModel(
        "mobilenet_v1",
        "mobilenet:mobilenet_v1",
        Configuration({}, _image(224)),
        Configuration(
            {"stem": 8, "blocks": ((16, 1), (24, 2), (24, 1), (40, 2), (48, 1)), "classes": 10},
            _image(32),
        ),
        "depthwise convolutions",
    ),
    ZooModel(
        "mobilenet_v2",
        "mobilenet:mobilenet_v2",
        Configuration({}, _image(224)),
        Configuration(
            {
                "stem": 8,
                "stages": ((1, 8, 1, 1), (4, 12, 2, 2), (4, 16, 2, 2), (4, 20, 1, 1)),
                "head": 48,
                "classes": 10,
            },
            _image(32),
        ),
        "inverted residuals",
    ),
    ZooModel(
        "mobilenet_v3_small",
        "mobilenet:mobilenet_v3_small",
        Configuration({}, _image(224)),
        Configuration(
            {
                "stem": 8,
                "blocks": (
                    (3, 8, 8, True, False, 2),
                    (3, 24, 12, False, False, 2),
                    (3, 32, 12, False, False, 1),
                    (5, 40, 16, True, True, 2),
                    (5, 56, 16, True, True, 1),
                ),
                "head": (48, 64),
                "classes": 10,
            },
            _image(32),
        ),
        "squeeze-and-excitation, hard activations",
    ),
    ZooModel(
        "efficientnet_b0",
        "mobilenet:efficientnet_b0",
        Configuration({}, _image(224)),
        Configuration(
            {
                "stem": 8,
                "stages": ((1, 3, 8, 1, 1), (4, 3, 12, 2, 2), (4, 5, 16, 2, 2), (4, 3, 20, 1, 1)),
                "head": 40,
                "classes": 10,
            },
            _image(32),
        ),
        "squeeze-and-excitation, SiLU",
    ),
    ZooModel(
        "unet",
        "dense_prediction:UNet",
        Configuration({}, _image(256)),
        Configuration({"widths": (8, 12, 16, 24)}, _image(32)),
        "skip concatenations, transposed convolutions",
    ),
    ZooModel(
        "yolo",
        "yolo:Yolo",
        Configuration({}, _image(640)),
        Configuration(
            {
                "widths": (8, 8, 16, 16, 24),
                "depths": (1, 2, 1, 1),
                "classes": 6,
                "bins": 4,
                "image": 64,
            },
            _image(64),
        ),
        "C2f, SPPF, DFL head",
    ),
    ZooModel(
        "super_resolution",
        "dense_prediction:SuperResolution",
        Configuration({}, _image(64)),
        Configuration({"width": 12, "depth": 3}, _image(12)),
        "PixelShuffle, long residual, PReLU",
    ),
    ZooModel(
        "autoencoder",
        "dense_prediction:autoencoder",
        Configuration({}, _image(128)),
        Configuration({"widths": (8, 16, 24), "code": 12}, _image(32)),
        "transposed convolutions",
    ),
    ZooModel(
        "hard_coded_reshapes",
        "reshapes:HardCodedReshapes",
        Configuration({}, _image(32)),
        Configuration({"width": 32, "image": 16}, _image(16)),
        "literal Reshape targets with channel counts in them",
    ),
    ZooModel(
        "vit_tiny",
        "transformers:ViT",
        Configuration({}, _image(224)),
        Configuration(
            {"image": 32, "patch": 8, "width": 36, "depth": 2, "heads": 3, "classes": 10},
            _image(32),
        ),
        "fused query, key and value; class token",
    ),
    ZooModel(
        "bert",
        "transformers:Bert",
        Configuration({}, _tokens(30522, 128, "input_ids", "attention_mask", "token_type_ids")),
        Configuration(
            {"vocabulary": 100, "positions": 32, "width": 32, "depth": 2, "hidden": 64},
            _tokens(100, 12, "input_ids", "attention_mask", "token_type_ids"),
        ),
        "separate query, key and value; post-normalisation; three embeddings",
    ),
    ZooModel(
        "gqa_decoder",
        "transformers:Decoder",
        Configuration({}, _tokens(32000, 128, "input_ids")),
        Configuration(
            {
                "vocabulary": 100,
                "width": 32,
                "depth": 2,
                "heads": 4,
                "kv_heads": 2,
                "hidden": 48,
            },
            _tokens(100, 12, "input_ids"),
        ),
        "grouped-query attention, rotary embedding, RMSNorm, SwiGLU, tied embeddings",
    ),
    ZooModel(
        "lstm",
        "sequences:TokenLSTM",
        Configuration({}, _tokens(10000, 64, "tokens")),
        Configuration({"vocabulary": 60, "embedding": 16, "hidden": 24}, _tokens(60, 10, "tokens")),
        "embedding, stacked LSTM, last step",
    ),
    ZooModel(
        "gru",
        "sequences:FrameGRU",
        Configuration({}, _frames(1, 98, 40, time=1)),
        Configuration({"features": 10, "hidden": 24}, _frames(1, 12, 10, time=1)),
        "linear layer, stacked GRU, last hidden state",
    ),
    ZooModel(
        "bidirectional_lstm",
        "sequences:bidirectional_lstm",
        Configuration({}, _tokens(10000, 64, "tokens")),
        Configuration({"vocabulary": 60, "embedding": 12, "hidden": 16}, _tokens(60, 10, "tokens")),
        "stacked bidirectional LSTM, maximum over time",
    ),
    ZooModel(
        "tcn",
        "sequences:TCN",
        Configuration({}, _frames(1, 40, 98, time=2)),
        Configuration({"features": 10, "widths": (16, 16, 24)}, _frames(1, 10, 24, time=2)),
        "dilated causal 1-D convolutions cut with Slice, residuals",
    ),
    ZooModel(
        "ds_cnn",
        "sequences:ds_cnn",
        Configuration({}, (Input("mfcc", (1, 1, 49, 10)),)),
        Configuration({"width": 24}, (Input("mfcc", (1, 1, 49, 10)),)),
        "depthwise-separable keyword spotting, asymmetric kernels",
    ),
)

ZOO: dict[str, ZooModel] = {model.name: model for model in _MODELS}
"""All architectures by name."""
