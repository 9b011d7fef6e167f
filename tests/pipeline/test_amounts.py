"""Budgets as users write them."""

import pytest

from secateur.ir.errors import SecateurError
from secateur.pipeline.amounts import SIZES, TIMES, Amount


@pytest.mark.parametrize("given", [0.5, "0.5", ".5", " 0.50 ", "5e-1"])
def test_shares(given: str | float) -> None:
    assert Amount.parse(given, TIMES).share == 0.5


@pytest.mark.parametrize(("text", "microseconds"), [("2ms", 2000), ("300 us", 300), ("0.1s", 1e5)])
def test_times(text: str, microseconds: float) -> None:
    amount = Amount.parse(text, TIMES)
    assert amount.absolute == microseconds
    assert amount.share_of(2 * microseconds) == 0.5
    assert amount.share_of(microseconds / 2) == 1.0


@pytest.mark.parametrize(("text", "size"), [("200kB", 2e5), ("1.5MB", 1.5e6), ("1KiB", 1024)])
def test_sizes(text: str, size: float) -> None:
    assert Amount.parse(text, SIZES).absolute == size


@pytest.mark.parametrize(
    "given",
    [
        "",
        "2",
        2,
        0,
        "0",
        "-1ms",
        "ms",
        "2 minutes",
        "2mS",
        "1e999ms",
        "nan",
        "inf",
        "0ms",
        "1.2.3ms",
        "0x1us",
        "2ms3",
    ],
)
def test_what_is_no_amount(given: str | float) -> None:
    with pytest.raises(SecateurError, match="neither a share"):
        Amount.parse(given, TIMES)
