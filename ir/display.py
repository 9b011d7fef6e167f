"""How text that came from a file is shown to people."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line, with escapes for whatever would steer a terminal or a reader's eye.

    These are the characters that Unicode calls no print: controls, formats such as those
    of bidirectional text, separators other than the space, lone surrogates. All text that
    came from a file, names and other tools' messages too, goes through here on its way out.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
