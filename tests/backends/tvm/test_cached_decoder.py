"""Caches of keys and values, which grow by a token in each run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ...onnx_runtime import session_of
from ..c_library import models
from .cached_decoder import CachedDecoder, DecoderSizes, InPlace, generate

GENERATE = Path(models.__file__).with_name("generate.c")
PROMPT = np.array([[3, 14, 15, 92, 65]])


@pytest.mark.slow
def test_a_decoder_generates_token_by_token(tmp_path: Path) -> None:
    """From a prompt on, with caches that are copied in each step, and with some that stay where
    they are, also in another process."""
    sizes = DecoderSizes()
    model = CachedDecoder(sizes).model()
    session = session_of(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]

    def reference(feeds: Any) -> Any:
        return dict(zip(names, session.run(names, feeds), strict=True))

    wanted, right = generate(sizes, PROMPT, 64, reference)
    admitted = read_admitted(["b=1..", "s=1..", "past=0.."])
    compile_model(from_proto(model), parse_target("native"), tmp_path / "m.so", sizes=admitted)
    runtime = Runtime(tmp_path / "m.so")
    in_place = InPlace(Runtime(tmp_path / "m.so"), 5 + 64)
    for run in (runtime.run, in_place):
        tokens, scores = generate(sizes, PROMPT, 64, run)
        assert tokens == wanted
        np.testing.assert_allclose(scores, right, rtol=1e-4, atol=1e-4)
    script = _SCRIPT.format(prompt=PROMPT.tolist(), path=tmp_path / "m.so")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [*map(str, wanted)]


_SCRIPT = """
import numpy as np
from secateur import Runtime
runtime = Runtime("{path}")
caches, ids = runtime.caches(69), np.array({prompt})
for _ in range(64):
    token = runtime.run({{"ids": ids}}, caches)["logits"][0, -1].argmax()
    ids = np.array([[token]])
    print(token)
"""


@pytest.mark.slow
@pytest.mark.skipif(not models.has("gcc"), reason="needs gcc")
def test_a_program_generates_in_place(tmp_path: Path) -> None:
    """In C99, with memory for exactly as many tokens, and with too little."""
    sizes = DecoderSizes()
    model = CachedDecoder(sizes).model()
    folder = models.build(model, tmp_path, "net", sizes=("b=1", "s=1..", "past=0.."))
    path = models.program(folder, "net", source=GENERATE)
    session = session_of(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]

    def reference(feeds: Any) -> Any:
        return dict(zip(names, session.run(names, feeds), strict=True))

    wanted, _ = generate(sizes, PROMPT, 64, reference)
    given = [*map(str, PROMPT[0])]
    done = subprocess.run([path, "68", "64", *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout)
    assert done.stdout.split() == [*map(str, wanted)]
    done = subprocess.run([path, "67", "64", *given], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:63]) == (1, [*map(str, wanted[:63])])
    assert "the capacity must be from (past + s)" in done.stdout
