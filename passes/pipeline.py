"""The text form of passes: `fold-constants, prune-channels{macs=0.5, importance=l2}`.

    pipeline = pass { "," pass }
    pass     = name [ "{" [ option { "," option } ] "}" ]
    option   = field "=" value
    value    = number | true | false | none | word | "quoted" | "[" [ value { "," value } ] "]"

Field names are written with hyphens or underscores. `format_pipeline` and
`parse_pipeline` are inverses; options at their default are not printed.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import importlib
import inspect
import json
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..ir.errors import SecateurError
from ..ir.plugins import plugins
from .base import Pass

_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([{}\[\],=])|([^\s{}\[\],="]+)|(\S))')
_PLAIN_WORD = re.compile(r"[A-Za-z_*./:][A-Za-z0-9_*./:+-]*\Z")
_KEYWORDS = {"true": True, "false": False, "none": None}


def parse_pipeline(text: str) -> list[Pass]:
    """The passes that `text` names, in order. Raises SecateurError on any mistake."""
    parser = _PipelineParser(text)
    passes: list[Pass] = []
    while not parser.at_end():
        passes.append(parser.parse_pass())
        if not parser.at_end():
            parser.expect(",")
    return passes


def format_pipeline(passes: Iterable[Pass]) -> str:
    """The text form of `passes`, which `parse_pipeline` turns back into equal ones."""
    return ", ".join(format_pass(p) for p in passes)


def format_pass(pass_: Pass) -> str:
    """The text form of one pass: its name and the options that differ from their default."""
    options = [
        f"{field.name.replace('_', '-')}={_format_value(getattr(pass_, field.name))}"
        for field in dataclasses.fields(pass_)
        if getattr(pass_, field.name) != _default(field)
    ]
    return pass_.name + ("{" + ", ".join(options) + "}" if options else "")


def known_passes() -> dict[str, type[Pass]]:
    """Every pass by its name: those of this package, those that installed packages bring along,
    and any imported subclass of `Pass`."""
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")
    plugins("passes", abc.ABCMeta)
    classes = _subclasses(Pass)  # type: ignore[type-abstract]
    return {cls.name: cls for cls in classes if not inspect.isabstract(cls)}


def _subclasses(cls: type[Pass]) -> Iterator[type[Pass]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _format_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_format_value(v) for v in value) + "]"
    if isinstance(value, str):
        plain = _PLAIN_WORD.match(value) and value not in _KEYWORDS and not _is_number(value)
        return value if plain else json.dumps(value)
    raise TypeError(f"a pass option of type {type(value).__name__} has no text form")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


class _PipelineParser:
    """Recursive descent over the tokens of one pipeline."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        for match in _TOKEN.finditer(text):
            if match.group(4):
                raise SecateurError(f"pipeline '{text}': stray {match.group(4)} in it")
            self.tokens.append(match.group(0).strip())
        self.text = text
        self.position = 0

    def at_end(self) -> bool:
        return self.position == len(self.tokens)

    def peek(self) -> str:
        return "" if self.at_end() else self.tokens[self.position]

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def expect(self, token: str) -> None:
        found = self.peek()
        if found != token:
            raise SecateurError(
                f"pipeline '{self.text}': expected '{token}', found '{found or 'the end'}'"
            )
        self.position += 1

    def parse_pass(self) -> Pass:
        name = self.take()
        known = known_passes()
        cls = known.get(name)
        if cls is None:
            raise SecateurError(f"unknown pass '{name}'{_suggest(name, known)}")
        options: dict[str, Any] = {}
        if self.peek() == "{":
            self.take()
            options = dict(self._sequence("}", lambda: self._option(cls)))
        try:
            return cls(**options)
        except TypeError as error:
            reason = str(error).replace(f"{cls.__name__}.__init__() ", "")
            raise SecateurError(f"pass '{name}': {reason}") from None

    def _option(self, cls: type[Pass]) -> tuple[str, Any]:
        word = self.take()
        name = word.replace("-", "_")
        hints = typing.get_type_hints(cls)
        fields = {f.name for f in dataclasses.fields(cls)}
        if name not in fields:
            options = {f.replace("_", "-") for f in fields}
            raise SecateurError(
                f"pass '{cls.name}' has no option '{word}'{_suggest(word, options)}"
            )
        self.expect("=")
        value = self._value()
        try:
            return name, _convert(value, hints[name])
        except ValueError:
            wanted = str(getattr(hints[name], "__name__", hints[name])).replace("typing.", "")
            raise SecateurError(
                f"pass '{cls.name}': option '{word}' takes {wanted}, not {_format_value(value)}"
            ) from None

    def _value(self) -> Any:
        token = self.take()
        if token == "[":
            return tuple(self._sequence("]", self._value))
        if token.startswith('"'):
            try:
                return json.loads(token)
            except ValueError:
                raise SecateurError(f"pipeline: malformed string {token}") from None
        if not token or token in "{}],=":
            raise SecateurError(
                f"pipeline '{self.text}': expected a value, found '{token or 'the end'}'"
            )
        if token in _KEYWORDS:
            return _KEYWORDS[token]
        for number in (int, float):
            try:
                return number(token)
            except ValueError:
                continue
        return token

    def _sequence(self, close: str, item: Callable[[], Any]) -> list[Any]:
        items: list[Any] = []
        while self.peek() != close:
            items.append(item())
            if self.peek() != close:
                self.expect(",")
        self.expect(close)
        return items


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the annotated type `hint`; ValueError where it doesn't fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _convert(value, option)
            except ValueError:
                continue
        raise ValueError
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError
        return value
    if origin is tuple:
        if not isinstance(value, tuple):
            raise ValueError
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(v, arguments[0]) for v in value)
        if len(value) != len(arguments):
            raise ValueError
        return tuple(_convert(v, a) for v, a in zip(value, arguments, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if hint in (None, types.NoneType):
        hint = types.NoneType
    if hint is Any or type(value) is hint:
        return value
    raise ValueError


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there are: {', '.join(sorted(known))}" if known else ""
