"""The JSON schema of `report.json`, made of the classes that it is written from.

`python -m secateur.reporting.schema` writes docs/report.schema.json; a test fails where that is
stale.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from .report import SCHEMA, Report

PAGE = Path(__file__).resolve().parents[2] / "docs" / "report.schema.json"

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean"}


def report_schema() -> dict[str, Any]:
    """Of the schema's version that this package writes (draft 2020-12)."""
    definitions: dict[str, Any] = {}
    root = _object(Report, definitions)
    root["properties"] = {"schema": {"const": SCHEMA}, **root["properties"]}
    root["required"].insert(0, "schema")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "secateur report.json",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return {
        "type": "object",
        "properties": {name: _schema(hints[name], definitions) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hint is Any:
        return {}
    if hint is float:  # infinity and NaN are null
        return {"type": ["number", "null"]}
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if dataclasses.is_dataclass(hint):
        name = hint.__name__  # type: ignore[union-attr]
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = _object(typing.cast(type, hint), definitions)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [_schema(a, definitions) for a in arguments if a is not type(None)]
        return {"anyOf": [*kinds, {"type": "null"}]}
    if origin in (list, tuple):
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    raise TypeError(f"{hint} has no schema")


def schema_text() -> str:
    return json.dumps(report_schema(), indent=1) + "\n"


def main() -> None:
    """Write the schema."""
    parser = argparse.ArgumentParser(description="Write the schema of report.json.")
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    output: Path = parser.parse_args().output
    output.write_text(schema_text(), encoding="utf-8")
    print(f"Wrote {output}.")


if __name__ == "__main__":
    main()
