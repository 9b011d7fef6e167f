"""A small speech model that tells six spoken syllables apart, trained here in about a minute.

    python -m secateur.models.words OUTDIR [STEPS]

writes `words.onnx` (waveforms of half a second at 8 kHz in, scores of classes out) and folders of
recordings, `calibration` and `evaluation`, with a folder for each class. The voices are made: a
throat's pulses through the formants of vowels that glide into each other (Peterson and Barney,
"Control methods used in a study of the vowels", 1952), with breath and noise, so nothing is
downloaded. Needs the extra `torch`.
"""

from __future__ import annotations

import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

RATE, LENGTH = 8000, 4096
STEPS, BATCH = 600, 32
VOICES, CALIBRATION, EVALUATION = 1500, 96, 300
"""Recordings."""

VOWELS = {"a": (730, 1090, 2440), "i": (270, 2290, 3010), "u": (300, 870, 2240)}
"""Frequencies of the first formants, in hertz."""

WORDS = ("ai", "au", "ia", "iu", "ua", "ui")

Sound = NDArray[np.float32]


def utterances(random: np.random.Generator, labels: Sequence[int]) -> Sound:
    """Syllables [labels, LENGTH] by as many people, in -1..1."""
    count, time = len(labels), np.arange(LENGTH) / RATE

    def draw(low: float, high: float) -> NDArray[np.float64]:
        return random.uniform(low, high, (count, 1))

    start, length = draw(0.02, 0.12), draw(0.22, 0.34)
    glide = np.clip((time - start) / length * 1.6 - 0.3, 0, 1)[..., None]
    heard = [WORDS[label] for label in labels]
    first, last = (
        np.array([VOWELS[word[end]] for word in heard])[:, None] * draw(0.9, 1.12)[..., None]
        for end in (0, 1)
    )
    formants = first * (1 - glide) + last * glide
    pitch = draw(85, 240) * (1 + draw(-0.2, 0.2) * (time - start))
    pulses = np.diff(np.floor(np.cumsum(pitch, 1) / RATE), prepend=0.0)
    pulses += 0.02 * random.standard_normal((count, LENGTH))
    voice = _resonances(pulses, formants) @ [1.0, 0.6, 0.3]
    inside = ((time > start) & (time < start + length)).astype(np.float64)
    soft = np.hanning(400) / np.hanning(400).sum()
    voice *= np.stack([np.convolve(row, soft, "same") for row in inside])
    voice /= np.maximum(np.abs(voice).max(1, keepdims=True), 1e-9)
    noise = draw(0.003, 0.03) * random.standard_normal((count, LENGTH))
    found: Sound = np.clip(draw(0.2, 0.9) * voice + noise, -1, 1).astype(np.float32)
    return found


def _resonances(pulses: NDArray[np.float64], formants: NDArray[np.float64]) -> Any:
    """Pulses [n, time] through resonators whose frequencies [n, time, 3] move: the same shape."""
    radius = np.exp(-np.pi * np.array([60, 100, 140]) / RATE)
    factors = 2 * radius * np.cos(2 * np.pi * formants / RATE)
    found = np.empty_like(formants)
    before, last = np.zeros_like(formants[:, 0]), np.zeros_like(formants[:, 0])
    for at in range(pulses.shape[1]):
        before, last = last, pulses[:, at, None] + factors[:, at] * last - radius**2 * before
        found[:, at] = last
    return found


class WordNetwork(nn.Module):
    """[N, 4096] in -1..1 -> [N, 6]: a bank of filters, then depthwise separable convolutions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(1, 32, 128, 32, bias=False), nn.BatchNorm1d(32)]
        layers.append(nn.ReLU())
        for before, after, stride in ((32, 48, 2), (48, 64, 2), (64, 64, 1)):
            layers += [
                nn.Conv1d(before, before, 5, stride, 2, groups=before, bias=False),
                nn.BatchNorm1d(before),
                nn.ReLU(),
                nn.Conv1d(before, after, 1, bias=False),
                nn.BatchNorm1d(after),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * 64, len(WORDS))

    def forward(self, sound: Any) -> Any:
        found = self.body(sound[:, None])
        parts = [part.mean(2) for part in found.tensor_split(4, 2)]
        return self.head(torch.cat(parts, 1))


def train(steps: int = STEPS, seed: int = 0) -> WordNetwork:
    """The same seed gives the same network on the same machine."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = WordNetwork()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    known = random.integers(len(WORDS), size=VOICES)
    sounds = torch.tensor(utterances(random, known.tolist()))
    for _ in range(steps):
        chosen = random.integers(VOICES, size=BATCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(sounds[chosen]), torch.tensor(known[chosen])).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return model


def write_recordings(folder: Path, count: int, seed: int) -> None:
    """Recordings of 16 bits, a folder for each class."""
    labels = [number % len(WORDS) for number in range(count)]
    sounds = utterances(np.random.default_rng(seed), labels)
    for number, (label, sound) in enumerate(zip(labels, sounds, strict=True)):
        path = folder / WORDS[label] / f"{number:04}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(np.rint(32767 * sound).astype("<i2").tobytes())


def make(folder: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Train, and write everything."""
    folder.mkdir(parents=True, exist_ok=True)
    model = train(steps, seed)
    torch.onnx.export(
        model,
        (torch.zeros(1, LENGTH),),
        str(folder / "words.onnx"),
        input_names=["sound"],
        output_names=["scores"],
        opset_version=17,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    write_recordings(folder / "calibration", CALIBRATION, seed + 1)
    write_recordings(folder / "evaluation", EVALUATION, seed + 2)


def main(arguments: Sequence[str]) -> int:
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        print("usage: python -m secateur.models.words OUTDIR [STEPS]", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    torch.set_num_threads(1)  # as fast for so small a network, and the same on every machine
    make(folder, int(arguments[1]) if len(arguments) > 1 else STEPS)
    print(f"{folder / 'words.onnx'}, {folder / 'calibration'}, {folder / 'evaluation'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
