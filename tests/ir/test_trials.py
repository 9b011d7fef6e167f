"""What ends ONNX Runtime's process is an error; what can't, runs in this one."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from secateur.data.npz import DataError
from secateur.data.random_inputs import random_feed
from secateur.ir import reference, trials
from secateur.ir.errors import SecateurError
from secateur.ir.reference import Session, load_problem
from secateur.ir.tensor import Array
from secateur.ir.text import parse_model
from secateur.passes.simplify import Simplify

UNIQUE = """model <ir_version = 9, opset = ["" = 19]>
graph g (%x: float[*]) -> (%y: float[*]) {
  %y, _, _, _ = Unique(%x) {axis = 1, sorted = 1}
}"""

DEADLY = {
    "DFT": (UNIQUE.replace("%y, _, _, _ = Unique(%x) {axis = 1, sorted = 1}", "%y = DFT(%x)"), ()),
    "ReverseSequence": (
        """model <ir_version = 9, opset = ["" = 19]>
graph g (%x: float[*]) -> (%y: float[*]) {
  %n = Constant() {value_int = 0}
  %y = ReverseSequence(%x, %n)
}""",
        (8,),
    ),
    "Unique": (UNIQUE, (3, 1, 0)),
}


def run(session: Session, shape: tuple[int, ...]) -> Array:
    return session.run({"x": np.ones(shape, np.float32)})["y"]


@pytest.mark.parametrize("name", DEADLY)
def test_the_end_of_the_process_is_an_error(name: str) -> None:
    text, shape = DEADLY[name]
    session = Session(parse_model(text), optimize=False, trial=True)
    with pytest.raises(SecateurError, match=r"failed: it ended its process \(SIG[A-Z]+\)"):
        run(session, shape)


def test_a_session_goes_on_in_another_process() -> None:
    session, other = (Session(parse_model(UNIQUE), optimize=False, trial=True) for _ in range(2))
    for _ in range(2):
        for each in (session, other):
            np.testing.assert_array_equal(run(each, (2, 3)), np.ones((2, 1), np.float32))
        with pytest.raises(SecateurError, match="ended its process"):
            run(session, (3, 1, 0))


def test_refusals_are_what_they_are_in_this_process() -> None:
    problems = []
    for trial in (False, True):
        session = Session(parse_model(UNIQUE), optimize=False, trial=trial)
        with pytest.raises(SecateurError) as error:
            run(session, (4,))
        problems.append(str(error.value))
    assert problems[0] == problems[1] != ""


def test_constants_that_end_the_process_are_not_folded() -> None:
    text = """model <ir_version = 9, opset = ["" = 19]>
graph g (%x: float[2]) -> (%y: float[*]) {
  const %c: float[3, 1, 0] = []
  %u, _, _, _ = Unique(%c) {axis = 1, sorted = 1}
  %n = Relu(%x)
  %y = Concat(%u, %n) {axis = 0}
}"""
    model = parse_model(text)
    Simplify().run(model)
    assert [node.op_type for node in model.graph.nodes] == ["Unique", "Relu", "Concat"]


def test_looking_for_inputs_goes_on_past_those_that_end_the_process() -> None:
    """No size that is usual is that of a DFT's last axis; a scalar, also tried, is the end."""
    with pytest.raises(DataError, match=r"tried [1-9]\d\d+ combinations"):
        random_feed(parse_model(DEADLY["DFT"][0]), seed=0)


ORDINARY = """model <ir_version = 9, opset = ["" = 19]>
graph g (%x: float[n, 3]) -> (%y: float[n, 3]) {
  const %w: float[3, 3] = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
  %m = MatMul(%x, %w) : float[n, 3]
  %y = Relu(%m)
}"""


@pytest.mark.parametrize(
    ("text", "elsewhere"),
    [
        (ORDINARY, False),
        (ORDINARY.replace(" : float[n, 3]", ""), True),
        (ORDINARY.replace("[n, 3]", "[0, 3]"), True),
        (ORDINARY.replace("float", "int64").replace("MatMul(%x, %w)", "Div(%w, %x)"), True),
        (ORDINARY.replace("float", "int64").replace("MatMul(%x, %w)", "Div(%x, %w)"), False),
    ],
)
def test_only_what_may_end_it_has_another_process(
    monkeypatch: pytest.MonkeyPatch, text: str, elsewhere: bool
) -> None:
    class AnotherProcessError(Exception):
        pass

    def start(*_: object, **__: object) -> None:
        raise AnotherProcessError

    monkeypatch.setattr(trials.TrialSession, "__init__", start)
    monkeypatch.setattr(reference, "one_line", lambda error: type(error).__name__)
    assert ("AnotherProcessError" in str(load_problem(parse_model(text)))) == elsewhere


def test_an_interruption_ends_the_process_and_not_the_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(parse_model(UNIQUE), optimize=False, trial=True)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pickle, "load", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(session, (2, 3))
    assert run(session, (2, 3)).shape == (2, 1)  # and not the answer to the run before


def test_a_forked_process_has_trials_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(parse_model(UNIQUE), optimize=False, trial=True)
    run(session, (2, 3))
    ours = trials._processes[0]
    monkeypatch.setattr(os, "getpid", lambda: ours.owner + 1)
    assert run(session, (2, 3)).shape == (2, 1)
    theirs = trials._processes[0]
    assert theirs is not ours
    theirs.end()
    assert ours.process.poll() is None
    ours.end()
