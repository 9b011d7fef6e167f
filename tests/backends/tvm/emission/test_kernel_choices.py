"""Which kernels are chosen is written down: what is slower computes the same."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from .kernel_choices import CASES, OPEN, TARGETS, golden, line_of, open_line_of, proven

GOLDEN = golden()


@pytest.mark.parametrize("name", CASES)
def test_layers_take_the_kernels_that_they_took(name: str) -> None:
    for target in TARGETS:
        assert line_of(name, target) == GOLDEN[f"{name} on {target}"]


@pytest.mark.parametrize("name", OPEN)
def test_layers_of_open_sizes_take_the_kernels_that_they_took(name: str) -> None:
    for target in TARGETS:
        assert open_line_of(name, target) == GOLDEN[f"{name} on {target}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *OPEN])
def test_their_kernels_stay_within_their_buffers(name: str) -> None:
    for target in TARGETS:
        assert proven(name, target) > 0


def test_every_layer_is_written_down() -> None:
    assert set(GOLDEN) == {f"{name} on {target}" for name in (*CASES, *OPEN) for target in TARGETS}
