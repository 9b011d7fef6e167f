"""Caches of keys and values, which grow by a token in each run."""

from __future__ import annotations

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
from .cached_decoder import CachedDecoder, DecoderSizes, generate


@pytest.mark.slow
def test_a_decoder_generates_token_by_token(tmp_path: Path) -> None:
    """From a prompt, by an artifact for no token before and one for any number of them."""
    sizes = DecoderSizes()
    model = CachedDecoder(sizes).model()
    session = session_of(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]

    def reference(feeds: Any) -> Any:
        return dict(zip(names, session.run(names, feeds), strict=True))

    runs = []
    for past in ("past=0", "past=1.."):
        admitted = read_admitted(["b=1..", "s=1..", past])
        compile_model(from_proto(model), parse_target("native"), tmp_path / past, sizes=admitted)
        runs.append(Runtime(tmp_path / past).run)
    prompt = np.array([[3, 14, 15, 92, 65]])
    tokens, scores = generate(sizes, prompt, 64, *runs)
    wanted, right = generate(sizes, prompt, 64, reference, reference)
    assert tokens == wanted
    np.testing.assert_allclose(scores, right, rtol=1e-4, atol=1e-4)
