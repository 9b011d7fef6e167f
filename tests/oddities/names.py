"""Names of every kind."""

from __future__ import annotations

from onnx import ModelProto, helper

from .registry import (
    ODDITIES,
    Oddity,
    oddity,
    with_every_name_changed,
)

NAMES = {
    "space": " ", "spaces": "a  b", "slash": "/a/b", "dots": "../../a", "backslash": "a\\b",
    "newline": "a\nb", "tab": "a\tb", "return": "a\rb", "quote": "a'b", "quotes": 'a"b',
    "backtick": "a`b", "nul": "a\0b", "percent": "%s%d%n", "braces": "{0}{x}", "unicode": "värde名",
    "emoji": "🙂", "combining": "e\u0301", "bidi": "a\u202eb", "escape": "\x1b[31mred\x1b[0m",
    "long": "n" * 10_000, "keyword": "class", "c_keyword": "while", "main": "main", "digits": "0",
    "number": "123abc", "colon": "dense/BiasAdd:0", "semicolon": "a;b;c", "dollar": "$x",
    "dash": "-o", "option": "--help", "equals": "a=b", "comma": "a,b", "star": "*", "dot": ".",
    "memcpy": "memcpy", "secateur": "secateur_run", "none": "None", "true": "true", "hash": "#x",
    "comment": "*/ //", "markup": "[red]a[/red]", "html": "<b>&amp;</b>", "pipe": "a|b",
    "labels": "labels", "file": "file", "npy": "a.npy", "underscore": "_", "zero_width": "a\u200bb",
}  # fmt: skip


def names(text: str) -> Oddity:
    return lambda proto: with_every_name_changed(proto, lambda name: f"{text}{name}")


for _key, _text in NAMES.items():
    ODDITIES[f"names_{_key}"] = names(_text)


@oddity
def one_name_of_characters(proto: ModelProto) -> ModelProto:
    """The main input and output have names of nothing but the odd text."""
    renamed = {proto.graph.input[0].name: " ", proto.graph.output[0].name: "\n"}
    return with_every_name_changed(proto, lambda name: renamed.get(name, name))


@oddity
def alike_when_cleaned(proto: ModelProto) -> ModelProto:
    """Names that differ in characters only that no identifier has."""
    marks = iter("./:-+*?!@#$%^&()[]{}<>,;'\"`~|\\ =" * 4)
    found: dict[str, str] = {}
    return with_every_name_changed(
        proto, lambda name: found.setdefault(name, f"v{next(marks)}{len(found) // 31 * '_'}")
    )


@oddity
def case_only(proto: ModelProto) -> ModelProto:
    found: dict[str, str] = {}

    def name(old: str) -> str:
        bits = f"{len(found):06b}"
        cased = "".join("Aa"[bit == "1"] for bit in bits)
        return found.setdefault(old, cased)

    return with_every_name_changed(proto, name)


@oddity
def nodes_of_one_name(proto: ModelProto) -> None:
    for node in proto.graph.node:
        node.name = "same"


@oddity
def nodes_without_name(proto: ModelProto) -> None:
    for node in proto.graph.node:
        node.ClearField("name")


@oddity
def nodes_named_as_values(proto: ModelProto) -> None:
    for node in proto.graph.node:
        node.name = "x"


@oddity
def odd_node_names(proto: ModelProto) -> None:
    for node, name in zip(proto.graph.node, NAMES.values(), strict=False):
        node.name = name


@oddity
def odd_graph_name(proto: ModelProto) -> None:
    proto.graph.name = "\x1b]0;x\x07 / \n"


@oddity
def odd_metadata(proto: ModelProto) -> None:
    helper.set_model_props(proto, {name: name for name in NAMES.values()})
    proto.doc_string = proto.producer_name = proto.domain = "a\n\x1b[31m"
    proto.graph.doc_string = "d" * 100_000
