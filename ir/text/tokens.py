"""Words of the text form: names, numbers, strings, and element types."""

from __future__ import annotations

import json
import re

from onnx import TensorProto

BARE_NAME = re.compile(r"(?!.*//)[A-Za-z0-9_/][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*\Z")
"""Names that need no quotes."""

KEYWORDS = frozenset({"true", "false", "inf", "nan"})

TYPE_NAMES = {int(number): name.lower() for name, number in TensorProto.DataType.items() if number}
TYPE_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}


def quote(text: str) -> str:
    """A string literal; what can't be printed, or would steer a terminal, is escaped."""
    literal = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in literal)


def name(text: str) -> str:
    """A name, in quotes where it needs them."""
    return text if BARE_NAME.match(text) and text not in KEYWORDS else quote(text)


def value_name(text: str) -> str:
    """A value's name, as in `%x` and `%"odd name"`."""
    return f"%{name(text)}"
