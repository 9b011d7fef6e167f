"""The text form of passes and pipelines."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.passes.base import Context, Pass, PassResult
from secateur.passes.pipeline import format_pass, format_pipeline, known_passes, parse_pipeline
from secateur.passes.simplify import FoldConstants, RemoveNoOps


@dataclasses.dataclass(frozen=True)
class ExampleForTesting(Pass):
    """Has an option of every kind."""

    goal: float | None = None
    count: int = 1
    label: str = "plain"
    flag: bool = False
    mode: Literal["fast", "exact"] = "fast"
    ignore: tuple[str, ...] = ()
    window: tuple[int, float] = (1, 2.0)
    nested: tuple[tuple[int, ...], ...] = ()

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        return PassResult(False)


examples = st.builds(
    ExampleForTesting,
    goal=st.none() | st.floats(allow_nan=False),
    count=st.integers(),
    label=st.text(),
    flag=st.booleans(),
    mode=st.sampled_from(["fast", "exact"]),
    ignore=st.lists(st.text(max_size=5), max_size=3).map(tuple),
    window=st.tuples(st.integers(), st.floats(allow_nan=False)),
    nested=st.lists(st.lists(st.integers(), max_size=2).map(tuple), max_size=2).map(tuple),
)


@given(st.lists(examples, max_size=3))
def test_text_and_passes_are_inverse(passes: list[Pass]) -> None:
    text = format_pipeline(passes)
    assert parse_pipeline(text) == passes
    assert format_pipeline(parse_pipeline(text)) == text


def test_form() -> None:
    assert format_pass(ExampleForTesting()) == "example-for-testing"
    pass_ = ExampleForTesting(goal=0.5, label="a b", ignore=("x*", "true"), flag=True)
    text = 'example-for-testing{goal=0.5, label="a b", flag=true, ignore=[x*, "true"]}'
    assert format_pass(pass_) == text
    assert parse_pipeline("fold-constants , remove-no-ops\n") == [FoldConstants(), RemoveNoOps()]
    assert parse_pipeline("example-for-testing{goal=1, count=2,}") == [
        ExampleForTesting(goal=1.0, count=2)
    ]
    assert parse_pipeline("") == []


def test_every_known_pass_round_trips() -> None:
    for name, cls in known_passes().items():
        assert cls.name == name
        assert cls.__doc__
        required = [
            f for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]  # fmt: skip
        if not required:
            assert parse_pipeline(name) == [cls()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-constant", "unknown pass 'fold-constant'; did you mean 'fold-constants'"),
        ("zzz", "unknown pass 'zzz'; there are: .*fold-constants"),
        ("fold-constants{sise-limit=1}", "no option 'sise-limit'; did you mean 'size-limit'"),
        ("fold-constants{size-limit=big}", "option 'size-limit' takes int, not big"),
        ("fold-constants{size-limit=1.5}", "option 'size-limit' takes int, not 1.5"),
        ("fold-constants{size-limit=true}", "option 'size-limit' takes int, not true"),
        ("example-for-testing{mode=slow}", "option 'mode' takes"),
        ("example-for-testing{window=[1]}", "option 'window' takes"),
        ("example-for-testing{ignore=x}", "option 'ignore' takes"),
        ("fold-constants{size-limit", "expected '=', found 'the end'"),
        ("fold-constants{size-limit=", "expected a value, found 'the end'"),
        ("fold-constants{size-limit=1", "expected ',', found 'the end'"),
        ("fold-constants remove-no-ops", "expected ',', found 'remove-no-ops'"),
        ('fold-constants{size-limit="1', 'stray " in it'),
        ("{", "unknown pass '{'"),
        (r'fold-constants{size-limit="\z"}', "malformed string"),
    ],
)
def test_mistakes_are_explained(text: str, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        parse_pipeline(text)


@given(st.text(alphabet='ab-{}[]=," 1.\\'))
def test_no_text_crashes_the_parser(text: str) -> None:
    with contextlib.suppress(SecateurError):
        parse_pipeline(text)
