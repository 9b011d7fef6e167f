"""Recipes: one TOML file that holds everything a run of `optimize` does.

Every key is an option of the command; names of files are relative to the recipe's folder.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ..data.functions import NAME
from ..data.synthetic import PREFIX
from ..ir.display import printable
from ..ir.errors import SecateurError
from ..ir.files import read_regular
from ..ir.onnx_io import atomic_files
from .choices import Accuracy, Activation, PrecisionName, ProfileName, SchemeName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 1 << 20
"""Of a recipe."""

PRESETS = Path(__file__).parents[1] / "recipes"
"""The folder of the recipes that come with secateur."""

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Drop = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Size = Annotated[int, msgspec.Meta(ge=0)]
Minutes = Annotated[float, msgspec.Meta(ge=0)]
Times = Annotated[float, msgspec.Meta(ge=0)]
Scalar = bool | int | float | str


class _Section(msgspec.Struct, forbid_unknown_fields=True, rename="kebab", omit_defaults=True):
    """Keys that aren't given are None."""


class InputSection(_Section):
    """What is fixed of the model's inputs."""

    shapes: dict[str, list[Size | list[Size]] | Literal["none"]] | None = None
    values: dict[str, Scalar | list[Scalar]] | None = None
    freeze_defaults: bool | None = None
    outputs: list[str] | None = None


class DataSection(_Section):
    """Samples."""

    calibration: str | None = None
    evaluation: str | None = None
    preprocess: list[str] | None = None
    embed_preprocessing: bool | None = None
    metrics: list[str] | None = None


class PruneSection(_Section):
    """What to prune and how much."""

    macs: Share | None = None
    params: Share | None = None
    bytes: Share | str | None = None
    latency: Share | str | None = None
    ratio: Share | None = None
    scope: Literal["global", "uniform"] | None = None
    importance: str | None = None
    search: Minutes | None = None
    iterations: Positive | None = None
    depth: Size | None = None
    align: Positive | None = None
    ignore: list[str] | None = None
    limits: list[str] | None = None
    normalized: bool | None = None
    recovery: bool | None = None
    rotate: bool | None = None
    rematch: bool | None = None


class QuantizeSection(_Section):
    """What becomes integer."""

    scheme: SchemeName | None = None
    profile: ProfileName | None = None
    accuracy: Accuracy | None = None
    max_drop: Drop | str | None = None
    ignore: list[str] | None = None
    only: list[str] | None = None
    nodes: list[str] | None = None
    activation: Activation | None = None
    reduce_range: bool | None = None
    per_tensor: bool | None = None
    calibrator: str | None = None
    symmetric: bool | None = None
    equalize: bool | None = None
    requantize: bool | None = None
    float32: list[str] | None = None
    half_io: bool | None = None


class CompileSection(_Section):
    """How to compile."""

    target: str | None = None
    format: Literal["artifact", "library"] | None = None
    tune: Minutes | None = None
    fallback: bool | None = None
    declared_sizes: bool | None = None
    copies: Times | None = None
    small: bool | None = None
    precision: PrecisionName | None = None
    sizes: list[str] | None = None


class LibrarySection(_Section):
    """How a C library is made."""

    name: str | None = None
    threads: Literal["none", "caller", "own"] | None = None
    labels: str | None = None
    weights_apart: bool | None = None
    weights_packed: bool | None = None
    bench: bool | None = None


class RunSection(_Section):
    """What holds for all of the run: what no step changes, and how models run for checks."""

    ignore: list[str] | None = None
    threads: Positive | None = None
    seed: Size | None = None


class Recipe(_Section):
    """A run of `secateur optimize`."""

    version: Literal[1] = 1
    input: InputSection = msgspec.field(default_factory=InputSection)
    data: DataSection = msgspec.field(default_factory=DataSection)
    prune: PruneSection = msgspec.field(default_factory=PruneSection)
    quantize: QuantizeSection = msgspec.field(default_factory=QuantizeSection)
    compile: CompileSection = msgspec.field(default_factory=CompileSection)
    library: LibrarySection = msgspec.field(default_factory=LibrarySection)
    run: RunSection = msgspec.field(default_factory=RunSection)


SECTIONS: dict[str, type[_Section]] = {
    "input": InputSection,
    "data": DataSection,
    "prune": PruneSection,
    "quantize": QuantizeSection,
    "compile": CompileSection,
    "library": LibrarySection,
    "run": RunSection,
}

EXAMPLES: dict[str, Any] = {
    "input_shapes": {"x": [1, 3, 224, 224]},
    "input_values": {"rate": 16000},
    "freeze_defaults": True,
    "outputs": ["scores"],
    "calibration": "calibration.npz",
    "evaluation": "evaluation.npz",
    "preprocess": ["imagenet", "size=224x224"],
    "embed_preprocessing": True,
    "metrics": ["top1", "top5"],
    "macs": 0.7,
    "params": 0.7,
    "bytes": "200kB",
    "latency": "2ms",
    "ratio": 0.3,
    "scope": "uniform",
    "importance": "reconstruction",
    "search": 5.0,
    "iterations": 3,
    "depth": 2,
    "align": 8,
    "ignore": ["head*"],
    "ignore_prune": ["head*"],
    "limits": ["stem*=0.5.."],
    "normalized": True,
    "recovery": False,
    "rotate": True,
    "rematch": True,
    "quantize": "int8",
    "profile": "arm-dotprod",
    "accuracy": "best",
    "ignore_quantize": ["head*"],
    "only": ["backbone*"],
    "nodes": ["stem*=calibrator:min-max,per-tensor"],
    "max_drop": "1%",
    "activation": "int8",
    "reduce_range": True,
    "per_tensor": True,
    "calibrator": "percentile:99.9",
    "symmetric": True,
    "equalize": True,
    "requantize": True,
    "float32": ["Softmax"],
    "half_io": True,
    "target": "x86-64-v3",
    "form": "library",
    "tune": 5.0,
    "fallback": True,
    "declared_sizes": True,
    "copies": 0.5,
    "small": True,
    "precision": "bf16",
    "sizes": ["sequence=1..512"],
    "name": "app_model",
    "library_threads": "none",
    "labels": "labels.txt",
    "weights_apart": True,
    "weights_packed": True,
    "bench": True,
    "threads": 1,
    "seed": 0,
}
"""A value of each parameter, for recipes to be filled in."""

_FILES = (("data", "calibration"), ("data", "evaluation"), ("library", "labels"))
"""Keys that name files."""

_PARAMETERS = {
    ("input", "shapes"): "input_shapes",
    ("input", "values"): "input_values",
    ("quantize", "scheme"): "quantize",
    ("prune", "ignore"): "ignore_prune",
    ("quantize", "ignore"): "ignore_quantize",
    ("compile", "format"): "form",
    ("library", "threads"): "library_threads",
}
"""Keys that options have another name for."""


def entries() -> Iterator[tuple[str, str, str, str]]:
    """Section, field, key and the parameter of `optimize`, of every key there is."""
    for section, kind in SECTIONS.items():
        for field in msgspec.structs.fields(kind):
            parameter = _PARAMETERS.get((section, field.name), field.name)
            yield section, field.name, field.encode_name, parameter


def find_recipe(text: str) -> Path:
    """The file of a recipe, or of one that comes with secateur, by its name.

    Raises SecateurError where `text` is neither a file nor such a name.
    """
    path = Path(text)
    if path.suffix == ".toml" or path.exists() or len(path.parts) != 1:
        return path
    known = preset_names()
    if text not in known:
        nearest = _nearest(text, known)
        raise SecateurError(
            f"recipe '{printable(text)}' is no file, and of those that come with secateur "
            f"({', '.join(known)}) none{nearest}"
        )
    return PRESETS / f"{text}.toml"


def preset_names() -> list[str]:
    """The recipes that come with secateur."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def is_preset(path: Path) -> bool:
    """Whether a recipe's file comes with secateur."""
    return path.parent == PRESETS


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; its files' names become relative to the current folder.

    Raises SecateurError with the key where something is wrong, for an unknown one with the nearest.
    """
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise SecateurError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SecateurError(f"{path}: no TOML: {printable(str(error))}") from None
    try:
        recipe = parse_recipe(content)
    except SecateurError as error:
        raise SecateurError(f"{path}: {error}") from None
    for section, field in _FILES:
        value = getattr(getattr(recipe, section), field)
        if value is None:
            continue
        if "\0" in value:
            raise SecateurError(f"{path}: {section}.{field}: no name of a file")
        if _is_file(value, path.parent):
            setattr(getattr(recipe, section), field, str(path.parent / value))
    return recipe


def _is_file(value: str, folder: Path) -> bool:
    """Whether data are a file or folder: neither made up nor a function's."""
    is_function = NAME.fullmatch(value) is not None and not (folder / value).exists()
    return value.split(":")[0] != PREFIX and not is_function


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """A recipe of nested mappings. Raises SecateurError."""
    _refuse_unknown(content, ["version", *SECTIONS], "")
    for section, kind in SECTIONS.items():
        names = [field.encode_name for field in msgspec.structs.fields(kind)]
        inner = content.get(section)
        if isinstance(inner, Mapping):
            _refuse_unknown(inner, names, f"{section}.")
    try:
        return msgspec.convert(content, Recipe)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        key = where.strip("`").removeprefix("$").removeprefix(".")
        raise SecateurError(f"{printable(f'{key}: ' if key else '')}{printable(what)}") from None


def parameters(recipe: Recipe) -> dict[str, Any]:
    """Values for the parameters of `secateur optimize`, in the form in which options give them."""
    found = {}
    for section, field, _, parameter in entries():
        value = getattr(getattr(recipe, section), field)
        if value is not None:
            found[parameter] = _option(field, value)
    return found


def of_parameters(given: Mapping[str, Any], folder: Path) -> Recipe:
    """A recipe of the parameters of `secateur optimize` that were given, to lie in `folder`."""
    content: dict[str, dict[str, Any]] = {}
    for section, field, key, parameter in entries():
        value = given.get(parameter)
        if value is None or value == ():
            continue
        if (section, field) in _FILES:
            named = str(value)
            is_file = _is_file(named, Path())
            value = Path(os.path.relpath(named, folder)).as_posix() if is_file else named
        elif field == "shapes":
            value = {
                name: "none" if sizes is None else sizes for name, sizes in dict(value).items()
            }
        elif field == "values":
            value = dict(value)
        elif not isinstance(value, (bool, int, float, str, tuple)):
            value = str(value)
        content.setdefault(section, {})[key] = value
    return msgspec.convert(content, Recipe)


@contextlib.contextmanager
def saved_recipe(path: Path, given: Mapping[str, Any]) -> Iterator[None]:
    """Write a recipe of the parameters that were given, when the block ends without error."""
    with atomic_files(path) as (file,):
        text = to_toml(of_parameters(given, path.parent))
        yield
        file.write_text(text, encoding="utf-8")


def _option(field: str, value: Any) -> Any:
    if field == "shapes":
        return [f"{name}={shape_text(sizes)}" for name, sizes in value.items()]
    if field == "values":
        return [f"{name}={_words(each)}" for name, each in value.items()]
    if field in ("bytes", "latency", "max_drop"):
        return str(value)
    return value


def shape_text(given: Any) -> str:
    """A shape as `--input-shape` has it; a list of lists for a sequence."""
    if isinstance(given, str):
        return given
    if any(isinstance(each, list) for each in given):
        return "[" + ",".join(shape_text(each) or "scalar" for each in given) + "]"
    return "x".join(map(str, given))


def _words(value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    return ",".join(str(p).lower() if isinstance(p, bool) else str(p) for p in parts)


def to_toml(
    recipe: Recipe,
    comments: Mapping[str, str] | None = None,
    examples: Mapping[str, Any] | None = None,
) -> str:
    """The text of a recipe.

    With `comments`, what each parameter means, every key there is has a line: those that aren't
    set are commented out, with the value of `examples`. Raises SecateurError for names that
    aren't text.
    """
    lines = ["version = 1"]
    for section in SECTIONS:
        block = []
        for own, field, key, parameter in entries():
            if own != section:
                continue
            value = getattr(getattr(recipe, section), field)
            if comments is not None:
                block += textwrap.wrap(
                    comments[parameter], 98, initial_indent="# ", subsequent_indent="# "
                )
            if value is not None:
                block.append(f"{key} = {_toml(value)}")
            elif examples is not None:
                block.append(f"#{key} = {_toml(examples[parameter])}")
        if block:
            lines += ["", f"[{section}]", *block]
    return "\n".join([*lines, ""])


def _toml(value: Any) -> str:
    """A value as TOML, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise SecateurError(f"'{printable(value)}' can't stand in a recipe") from None
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_toml(k)} = {_toml(v)}' for k, v in value.items())} }}"
    return repr(value)


def write_recipe(source: Path, path: Path, preset: str | None, comments: Mapping[str, str]) -> None:
    """Write a recipe for the model in `source`, of a preset or an empty one.

    `comments` say of every parameter what it means. Raises SecateurError.
    """
    from ..checking.running import open_model
    from ..data.inputs import model_inputs

    if preset is not None and preset not in preset_names():
        nearest = _nearest(preset, preset_names())
        raise SecateurError(f"recipe '{printable(preset)}' does not come with secateur{nearest}")
    if path.exists():
        raise SecateurError(f"{path}: is there already; give a recipe another name")
    recipe = Recipe() if preset is None else read_recipe(PRESETS / f"{preset}.toml")
    with atomic_files(path) as (file,):
        shapes = {
            value.name: [d if isinstance(d, int) else 1 for d in value.shape]
            for value in model_inputs(open_model(source))
            if value.shape is not None
        }
        text = to_toml(recipe, comments, {**EXAMPLES, "input_shapes": shapes})
        file.write_text(text, encoding="utf-8")


def schema(comments: Mapping[str, str]) -> dict[str, Any]:
    """The JSON schema of recipes, with what each parameter means."""
    found = msgspec.json.schema(Recipe)
    for section, _, key, parameter in entries():
        kind = found["$defs"][SECTIONS[section].__name__]
        kind["properties"][key]["description"] = comments[parameter]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of secateur",
        **found,
    }


def _refuse_unknown(content: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in content:
        if key in known:
            continue
        nearest = _nearest(key, known)
        if not nearest:
            places = [f"{s}.{k}" for s, _, k, _ in entries() if k == key]
            nearest = f"; did you mean '{places[0]}'?" if places else ""
        raise SecateurError(f"unknown key '{printable(prefix + key)}'{nearest}")


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
