"""A small text model that tells program code from prose, trained here in about a minute.

    python -m secateur.models.lines OUTDIR [STEPS]

writes `lines.onnx` (a transformer: 64 characters in, scores of code and prose out), and
`calibration.npz` and `evaluation.npz` with lines of the Python library that is installed: what
compilers read is code, comments and docstrings are prose. Files that are trained on and files that
are evaluated on differ, and nothing is downloaded. Needs the extra `torch`.
"""

from __future__ import annotations

import io
import sys
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

LENGTH, WIDTH, HEADS, DEPTH = 64, 48, 4, 2
STEPS, BATCH = 300, 48
FILES, HELD_OUT = 240, 60
CALIBRATION, EVALUATION = 256, 1000
"""Lines."""

NAMES = ("code", "prose")

Tokens = NDArray[np.int64]


def encode(line: str) -> Tokens:
    """The characters of a line as numbers below 128, filled up with zeros."""
    codes = [min(ord(c), 127) for c in line[:LENGTH]]
    return np.array(codes + [0] * (LENGTH - len(codes)), np.int64)


def read_lines(path: Path) -> Iterator[tuple[str, int]]:
    """Lines of a program, without what gives them away, with their class."""
    try:
        text = path.read_text(encoding="utf-8")
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (OSError, SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return
    prose: set[int] = set()
    before = tokenize.NEWLINE
    for token in tokens:
        if token.type == tokenize.COMMENT:
            prose.add(token.start[0])
            yield token.string.strip("#! "), 1
        elif token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT):
            prose.update(range(token.start[0], token.end[0] + 1))
            for line in token.string.strip("rRuUbB'\"").splitlines():
                yield line.strip(), 1
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = token.type
    for number, line in enumerate(text.splitlines(), 1):
        if number not in prose:
            yield line.strip(), 0


def sample(random: np.random.Generator, files: Sequence[Path], count: int) -> tuple[Tokens, Tokens]:
    """As many lines of code as of prose, each with 12 letters at least."""
    kinds: tuple[list[str], list[str]] = ([], [])
    for path in files:
        for line, kind in read_lines(path):
            if sum(c.isalpha() for c in line) >= 12:
                kinds[kind].append(line)
    chosen = [
        (lines[int(random.integers(len(lines)))], kind)
        for kind, lines in enumerate(kinds)
        for _ in range(count // 2)
    ]
    order = random.permutation(len(chosen))
    tokens = np.stack([encode(chosen[k][0]) for k in order])
    return tokens, np.array([chosen[k][1] for k in order], np.int64)


class _Block(nn.Module):
    """Self-attention and a perceptron, each behind a normalization and beside an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        y = self.before(x)
        q, k, v = (
            part(y).view(-1, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        seen = (q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(3) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(-1, LENGTH, WIDTH))
        return x + self.down(nn.functional.gelu(self.up(self.behind(x))))


class LineNetwork(nn.Module):
    """[N, 64] characters -> [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(128, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*(_Block() for _ in range(DEPTH)))
        self.last = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(NAMES))

    def forward(self, tokens: Any) -> Any:
        found = self.blocks(self.characters(tokens) + self.places)
        return self.head(self.last(found).mean(1))


def train(tokens: Tokens, labels: Tokens, steps: int = STEPS, seed: int = 0) -> LineNetwork:
    """The same seed and lines give the same network on the same machine."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = LineNetwork()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = random.integers(len(tokens), size=BATCH)
        scores = model(torch.tensor(tokens[chosen]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, torch.tensor(labels[chosen])).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return model


def make(folder: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Train, and write everything."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    files = [files[k] for k in random.permutation(len(files))]
    held_out, files = files[:HELD_OUT], files[HELD_OUT : HELD_OUT + FILES]
    model = train(*sample(random, files, 20000), steps, seed)
    torch.onnx.export(
        model,
        (torch.zeros(1, LENGTH, dtype=torch.int64),),
        str(folder / "lines.onnx"),
        input_names=["characters"],
        output_names=["scores"],
        opset_version=17,
        dynamo=False,
    )
    tokens, _ = sample(random, files, CALIBRATION)
    np.savez(folder / "calibration.npz", characters=tokens)
    tokens, labels = sample(random, held_out, EVALUATION)
    np.savez(folder / "evaluation.npz", characters=tokens, labels=labels)


def main(arguments: Sequence[str]) -> int:
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        print("usage: python -m secateur.models.lines OUTDIR [STEPS]", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    torch.set_num_threads(1)  # as fast for so small a network, and the same on every machine
    make(folder, int(arguments[1]) if len(arguments) > 1 else STEPS)
    print(f"{folder / 'lines.onnx'}, {folder / 'calibration.npz'}, {folder / 'evaluation.npz'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
