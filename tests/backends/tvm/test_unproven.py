"""Kernels that aren't proven to stay within their buffers: plain loops take their place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.library import Library
from secateur.backends.tvm.emission.emission import Emission
from secateur.backends.tvm.errors import UnprovenError
from secateur.backends.tvm.plan.schedule import Buffer

from .test_open_sizes import check, compiled, model_of

BODY = "%a = MatMul(%x, %z)\n%b = Relu(%a)\n%c = MatMul(%b, %z)\n%y = Softmax(%c)"
OPEN, KNOWN = (
    f"(%x: float[b, {n}, {n}], %z: float[b, {n}, {n}]) -> (%y: float[?, ?, ?])" for n in "n5"
)


def unproven(patch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Let no kernel of these kinds be proven."""
    call = Emission.call_function

    def refuse(self: Emission, name: str, arguments: Sequence[Buffer]) -> None:
        if name.startswith(kinds):
            assert self.current is not None
            raise UnprovenError(self.current.label, f"{self.where()}: kernel {name} isn't proven")
        call(self, name, arguments)

    patch.setattr(Emission, "call_function", refuse)


def test_plain_loops_where_a_product_is_not_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of both products, each with a line in the log; what is proven stays fast."""
    unproven(monkeypatch, "batchedproduct")
    model = model_of(OPEN, BODY)
    with caplog.at_level(logging.DEBUG):
        runtime = compiled(model, tmp_path, "b=1..", "n=1..")
    said = [r.message for r in caplog.records if "plain loops take its place" in r.message]
    assert ["(MatMul)" in line for line in said] == [True, True]
    kernels = [call["kernel"] for call in Library(tmp_path / "m.so", 1).metadata["calls"]]
    assert sum(name.startswith("loops") for name in kernels) == 2
    assert any(name.startswith("rows") for name in kernels)
    for sizes in ({"b": 1, "n": 1}, {"b": 2, "n": 5}, {"b": 3, "n": 17}):
        check(model, runtime, sizes)


def test_what_has_no_other_form_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its node; and nothing changes for sizes that are known."""
    unproven(monkeypatch, "batchedproduct", "loops")
    with pytest.raises(UnprovenError, match=r"\(MatMul\): kernel loops"):
        compiled(model_of(OPEN, BODY), tmp_path, "b=1..", "n=1..")
    with pytest.raises(UnprovenError, match=r"\(MatMul\): kernel batchedproduct"):
        compiled(model_of(KNOWN.replace("b,", "2,"), BODY), tmp_path)


def test_slices_that_step_back_along_all_axes(tmp_path: Path) -> None:
    """From places that shorter axes don't have, too."""
    lines = (
        "from: int64[3] = [20, 10, 4]",
        "to: int64[3] = [0, 0, 1]",
        "by: int64[3] = [-1, -3, -2]",
    )
    body = "\n".join(
        [*(f"const %{line}" for line in lines), "%y = Slice(%x, %from, %to, %axes, %by)"]
    )
    body = f"const %axes: int64[3] = [0, 1, 2]\n{body}"
    model = model_of("(%x: float[n, m, k]) -> (%y: float[?, ?, ?])", body)
    runtime = compiled(model, tmp_path, "n=1..", "m=1..", "k=1..")
    for n, m, k in ((20, 10, 5), (3, 4, 3), (21, 11, 6), (43, 23, 13)):
        check(model, runtime, {"n": n, "m": m, "k": k})


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["d", "4"])
def test_einsum_whose_batch_is_not_first(depth: str, tmp_path: Path) -> None:
    body = '%y = Einsum(%x, %z) {equation = "bhid,wid->bhwi"}'
    given = f"(%x: float[b, h, i, {depth}], %z: float[w, i, {depth}])"
    model = model_of(f"{given} -> (%y: float[?, ?, ?, ?])", body)
    opens = "bhiwd" if depth == "d" else "bhiw"
    runtime = compiled(model, tmp_path, *(f"{name}=1.." for name in opens))
    for more in (0, 1, 13):
        check(model, runtime, {name: 1 + more + index for index, name in enumerate(opens)})
