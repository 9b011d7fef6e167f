"""docs/commands.md: fresh, and with every option."""

from __future__ import annotations

from secateur.cli import COMMANDS
from secateur.cli.reference import PAGE, page


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m secateur.cli.reference`"


def test_every_command_has_its_section() -> None:
    text = page()
    assert not [name for name in COMMANDS if f"## secateur {name}" not in text]
    assert "| `--embed-preprocessing` |" in text
    assert "| `[data]` | `embed-preprocessing` | `--embed-preprocessing` |" in text
