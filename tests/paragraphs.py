"""Golden text in paragraphs: a case's name, then its lines."""

from __future__ import annotations

from pathlib import Path


def read_paragraphs(path: Path) -> dict[str, list[str]]:
    """The lines that a file holds, by case."""
    found = {}
    for paragraph in path.read_text(encoding="utf-8").strip().split("\n\n"):
        name, *lines = paragraph.splitlines()
        found[name] = lines
    return found
