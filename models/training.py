"""Layers with forward and backward passes in numpy, and a training loop: no framework needed.

Activations are float32 of shape [C, N, H, W], so that a convolution is one matrix product
over unfolded patches (im2col) without transposing anything. Adam: Kingma and Ba, 2015;
BatchNormalization: Ioffe and Szegedy, 2015.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]


class TrainedLayer:
    """One operation: `forward` keeps what `backward` needs; gradients go to `gradients`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights: dict[str, Float] = {}
        self.gradients: dict[str, Float] = {}

    def forward(self, x: Float, training: bool) -> Float:
        raise NotImplementedError

    def backward(self, gradient: Float) -> Float:
        raise NotImplementedError

    def tensors(self) -> dict[str, Float]:
        """Constants of the ONNX operator, in the order of its inputs."""
        return self.weights

    def operator(self) -> tuple[str, dict[str, Any]]:
        """The ONNX operator and its attributes."""
        raise NotImplementedError

    def children(self) -> Iterator[TrainedLayer]:
        yield self


class TrainedConvolution(TrainedLayer):
    """Without bias (BatchNormalization follows), padded to keep the size before striding."""

    def __init__(
        self,
        name: str,
        rng: np.random.Generator,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(name)
        self.kernel, self.stride, self.groups = kernel, stride, groups
        fan_in = inputs // groups * kernel * kernel
        shape = (outputs, inputs // groups, kernel, kernel)
        he = np.sqrt(2 / fan_in)
        self.weights["weight"] = (rng.standard_normal(shape) * he).astype(np.float32)

    def forward(self, x: Float, training: bool) -> Float:
        self.input_shape = x.shape
        pad = self.kernel // 2
        padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, (self.kernel, self.kernel), (2, 3)
        )[:, :, :: self.stride, :: self.stride]
        size = windows.shape[1:4]  # samples, height, width
        # [C, N, H, W, k, k] -> [G, C/G * k * k, N * H * W]
        self.patches = np.ascontiguousarray(windows.transpose(0, 4, 5, 1, 2, 3)).reshape(
            self.groups, -1, size[0] * size[1] * size[2]
        )
        return (self._matrix() @ self.patches).reshape(-1, *size)

    def backward(self, gradient: Float) -> Float:
        channels, samples, height, width = self.input_shape
        out_height, out_width = gradient.shape[2:]
        matrix = self._matrix()
        flat = gradient.reshape(*matrix.shape[:2], -1)
        change = flat @ self.patches.transpose(0, 2, 1)
        self.gradients["weight"] = change.reshape(self.weights["weight"].shape)
        spread = (matrix.transpose(0, 2, 1) @ flat).reshape(
            channels, self.kernel, self.kernel, samples, out_height, out_width
        )
        pad = self.kernel // 2
        padded = np.zeros((channels, samples, height + 2 * pad, width + 2 * pad), np.float32)
        for i in range(self.kernel):
            for j in range(self.kernel):
                rows = slice(i, i + self.stride * out_height, self.stride)
                columns = slice(j, j + self.stride * out_width, self.stride)
                padded[:, :, rows, columns] += spread[:, i, j]
        return padded[:, :, pad : pad + height, pad : pad + width]

    def _matrix(self) -> Float:
        """The weight as [G, O/G, I/G * k * k]."""
        weight = self.weights["weight"]
        return weight.reshape(self.groups, len(weight) // self.groups, -1)

    def operator(self) -> tuple[str, dict[str, Any]]:
        return "Conv", {
            "kernel_shape": [self.kernel] * 2,
            "strides": [self.stride] * 2,
            "pads": [self.kernel // 2] * 4,
            "group": self.groups,
        }


class BatchNorm(TrainedLayer):
    """Batch statistics while training, running averages of them afterwards."""

    EPSILON = 1e-5
    MOMENTUM = 0.9

    def __init__(self, name: str, channels: int) -> None:
        super().__init__(name)
        self.weights = {
            "scale": np.ones(channels, np.float32),
            "bias": np.zeros(channels, np.float32),
        }
        self.mean = np.zeros(channels, np.float32)
        self.variance = np.ones(channels, np.float32)

    def forward(self, x: Float, training: bool) -> Float:
        mean, variance = self.mean, self.variance
        if training:
            count = x.size // len(x)
            mean, variance = x.mean(axis=(1, 2, 3)), x.var(axis=(1, 2, 3))
            unbiased = variance * np.float32(count / (count - 1))
            self.mean = self.MOMENTUM * self.mean + (1 - self.MOMENTUM) * mean
            self.variance = self.MOMENTUM * self.variance + (1 - self.MOMENTUM) * unbiased
        self.inverse = 1 / np.sqrt(variance + np.float32(self.EPSILON))
        self.normalized = (x - _channel(mean)) * _channel(self.inverse)
        scale, bias = self.weights["scale"], self.weights["bias"]
        return self.normalized * _channel(scale) + _channel(bias)

    def backward(self, gradient: Float) -> Float:
        axes = (1, 2, 3)
        self.gradients["scale"] = (gradient * self.normalized).sum(axis=axes)
        self.gradients["bias"] = gradient.sum(axis=axes)
        count = np.float32(gradient.size // len(gradient))
        centred = gradient - _channel(self.gradients["bias"] / count)
        centred -= self.normalized * _channel(self.gradients["scale"] / count)
        centred *= _channel(self.weights["scale"] * self.inverse)
        return centred

    def tensors(self) -> dict[str, Float]:
        return {**self.weights, "mean": self.mean, "variance": self.variance}

    def operator(self) -> tuple[str, dict[str, Any]]:
        return "BatchNormalization", {"epsilon": self.EPSILON}


class Relu(TrainedLayer):
    """max(x, 0)."""

    def forward(self, x: Float, training: bool) -> Float:
        self.positive = x > 0
        return np.maximum(x, 0)

    def backward(self, gradient: Float) -> Float:
        return gradient * self.positive

    def operator(self) -> tuple[str, dict[str, Any]]:
        return "Relu", {}


class GlobalPool(TrainedLayer):
    """The mean of each channel over all pixels."""

    def forward(self, x: Float, training: bool) -> Float:
        self.input_shape = x.shape
        mean: Float = x.mean(axis=(2, 3), keepdims=True)
        return mean

    def backward(self, gradient: Float) -> Float:
        area = self.input_shape[2] * self.input_shape[3]
        return np.broadcast_to(gradient / area, self.input_shape)

    def operator(self) -> tuple[str, dict[str, Any]]:
        return "GlobalAveragePool", {}


class Dense(TrainedLayer):
    """[inputs, N, 1, 1] -> [outputs, N]"""

    def __init__(self, name: str, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        super().__init__(name)
        weight = rng.standard_normal((outputs, inputs)) * np.sqrt(1 / inputs)
        self.weights = {
            "weight": weight.astype(np.float32),
            "bias": np.zeros(outputs, np.float32),
        }

    def forward(self, x: Float, training: bool) -> Float:
        self.x = x.reshape(len(x), -1)
        return self.weights["weight"] @ self.x + self.weights["bias"][:, None]

    def backward(self, gradient: Float) -> Float:
        self.gradients["weight"] = gradient @ self.x.T
        self.gradients["bias"] = gradient.sum(axis=1)
        return (self.weights["weight"].T @ gradient)[:, :, None, None]

    def operator(self) -> tuple[str, dict[str, Any]]:
        return "Gemm", {"transB": 1}


class Block(TrainedLayer):
    """Layers one after the other; without any, the identity."""

    def __init__(self, layers: Sequence[TrainedLayer]) -> None:
        super().__init__("")
        self.layers = layers

    def forward(self, x: Float, training: bool) -> Float:
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, gradient: Float) -> Float:
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        return gradient

    def children(self) -> Iterator[TrainedLayer]:
        for layer in self.layers:
            yield from layer.children()


class TrainedResidual(TrainedLayer):
    """The sum of two branches."""

    def __init__(self, name: str, main: Block, skip: Block | None = None) -> None:
        super().__init__(name)
        self.main = main
        self.skip = skip if skip is not None else Block([])

    def forward(self, x: Float, training: bool) -> Float:
        return self.main.forward(x, training) + self.skip.forward(x, training)

    def backward(self, gradient: Float) -> Float:
        return self.main.backward(gradient) + self.skip.backward(gradient)

    def children(self) -> Iterator[TrainedLayer]:
        yield from self.main.children()
        yield from self.skip.children()


def parameters(layers: Sequence[TrainedLayer]) -> list[Float]:
    """All trained arrays."""
    return [array for layer in Block(layers).children() for array in layer.weights.values()]


def train(
    layers: Sequence[TrainedLayer],
    images: Float,
    labels: NDArray[np.int64],
    *,
    epochs: int,
    seed: int,
    batch: int = 64,
    rate: float = 6e-3,
) -> None:
    """Minimize cross-entropy with Adam, a cosine rate, and images shifted by up to a pixel.

    `images` is [C, N, H, W], `labels` [N]. The network gives scores [classes, N].
    """
    rng = np.random.default_rng(seed)
    network = Block(layers)
    optimizer = _Adam(network)
    from threadpoolctl import threadpool_limits  # comes with scikit-learn, whose data we train on

    count = images.shape[1]
    steps = epochs * (count // batch)
    step = 0
    # One BLAS thread: sums must not depend on the number of cores.
    with threadpool_limits(limits=1):
        for _ in range(epochs):
            order = rng.permutation(count)
            for start in range(0, count - batch + 1, batch):
                rows = order[start : start + batch]
                scores = network.forward(_shifted(images[:, rows], rng), training=True)
                network.backward(_cross_entropy_gradient(scores, labels[rows]))
                optimizer.step(rate * 0.5 * (1 + np.cos(np.pi * step / steps)))
                step += 1


class _Adam:
    """Steps of Adam on a network's parameters."""

    def __init__(self, network: TrainedLayer) -> None:
        self.layers = list(network.children())
        self.count = 0
        self.moments = {
            (layer, name): (np.zeros_like(array), np.zeros_like(array))
            for layer in self.layers
            for name, array in layer.weights.items()
        }

    def step(self, rate: float, first: float = 0.9, second: float = 0.99) -> None:
        self.count += 1
        correction = np.sqrt(1 - second**self.count) / (1 - first**self.count)
        for (layer, name), (mean, square) in self.moments.items():
            gradient = layer.gradients[name]
            mean += np.float32(1 - first) * (gradient - mean)
            square += np.float32(1 - second) * (gradient * gradient - square)
            change = mean / (np.sqrt(square) + np.float32(1e-8))
            layer.weights[name] -= np.float32(rate * correction) * change


def _cross_entropy_gradient(scores: Float, labels: NDArray[np.int64]) -> Float:
    """Of the mean over the batch, by the scores [classes, N] before Softmax."""
    gradient: Float = np.exp(scores - scores.max(axis=0))
    gradient /= gradient.sum(axis=0)
    gradient[labels, np.arange(len(labels))] -= 1
    gradient /= np.float32(len(labels))
    return gradient


def _shifted(images: Float, rng: np.random.Generator) -> Float:
    samples, height, width = images.shape[1:]
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, x = rng.integers(0, 3, (2, samples, 1, 1))
    rows = y + np.arange(height)[:, None]
    columns = x + np.arange(width)
    return padded[:, np.arange(samples)[:, None, None], rows, columns]


def _channel(array: Float) -> Float:
    return array[:, None, None, None]
