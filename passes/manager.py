"""The pass manager: runs passes in order and verifies, times, compares and dumps."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from ..ir.declarations import check_declarations
from ..ir.errors import SecateurError
from ..ir.model import Model
from ..ir.tensor import Array
from ..ir.verify import verify
from .base import Context, Pass, PassResult
from .compare import allowed_deviation, deviation, magnitude, relative
from .dump import Dump
from .pipeline import format_pass

log = logging.getLogger(__name__)


@dataclasses.dataclass
class PassRecord:
    """One executed pass: its text form, the seconds it took, and what it did.

    `seconds` covers the pass alone, without verification and comparison.
    `deviation` is the largest relative deviation of any output from the original
    model's, where the manager compares.
    """

    pass_text: str
    seconds: float
    result: PassResult
    deviation: float | None = None


@dataclasses.dataclass(frozen=True)
class OutputCheck:
    """Comparison with the original model in ONNX Runtime after every pass.

    `feeds` are the inputs of one run, `more` those of further ones; what is no input any
    more, since a pass has fixed it, isn't fed. `tolerance` bounds the deviation of each
    output element, relative to the largest magnitude in that output (see `compare.deviation`),
    or `slack`, by output, the absolute difference, where that is more.
    """

    feeds: Mapping[str, Array]
    tolerance: float = 1e-5
    more: Sequence[Mapping[str, Array]] = ()
    slack: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PassManager:
    """Runs `passes` over a model.

    The model is verified before the first pass, where its declared types must agree with
    inference, too, and after each (`verify`), compared
    with its original state after each (`check`), and its text goes to `dump` before the first
    pass and after each. `observe` is called with
    each pass's index and text before it runs. A failure names the pass.
    """

    passes: Sequence[Pass]
    verify: bool = True
    check: OutputCheck | None = None
    dump: Dump | None = None
    observe: Callable[[int, str], None] | None = None

    def run(self, model: Model, context: Context | None = None) -> list[PassRecord]:
        """Apply all passes to `model` in place.

        Raises SecateurError where a pass fails, leaves the model malformed or changes
        its outputs beyond the tolerance; the model is then not to be used any more.
        """
        if self.verify:
            verify(model)
            check_declarations(model)
        expected = _outputs(model, self.check) if self.check is not None else []
        if self.dump is not None and not self.dump.count:
            self.dump.write(model, "input")
        records: list[PassRecord] = []
        for index, pass_ in enumerate(self.passes):
            text = format_pass(pass_)
            if self.observe is not None:
                self.observe(index, text)
            try:
                record = self._run_one(pass_, text, model, context, expected)
            except SecateurError as error:
                before = ", ".join(r.pass_text for r in records)
                ran = f" (after {before})" if before else ""
                raise type(error)(f"pass '{text}'{ran}: {error}") from error
            records.append(record)
            _log(record)
            if context is not None:
                context = context.after(record.result)
            if self.dump is not None:
                self.dump.write(model, pass_.name)
        return records

    def _run_one(
        self,
        pass_: Pass,
        text: str,
        model: Model,
        context: Context | None,
        expected: list[dict[str, Array]],
    ) -> PassRecord:
        start = time.perf_counter()
        result = pass_.run(model, context)
        record = PassRecord(text, time.perf_counter() - start, result)
        if self.verify:
            try:
                verify(model)
            except SecateurError as error:
                raise type(error)(f"left a malformed model: {error}") from None
        if self.check is not None:
            record.deviation = self._compare(model, self.check, expected)
        return record

    def _compare(self, model: Model, check: OutputCheck, expected: list[dict[str, Array]]) -> float:
        """The largest deviation of any output; SecateurError where one is too large."""
        worst = 0.0
        for wanted, outputs in zip(expected, _outputs(model, check), strict=True):
            for name, actual in outputs.items():
                found = deviation(wanted[name], actual)
                allowed = allowed_deviation(wanted[name], check.tolerance)
                if found > allowed and name in check.slack:
                    slack = relative(check.slack[name], magnitude(wanted[name]))
                    allowed = max(allowed, slack)
                if not found <= allowed:
                    raise SecateurError(
                        f"changed output '{name}' by {found:.3g} (relative), "
                        f"more than {allowed:.3g}"
                    )
                worst = max(worst, found)
        return worst


def _log(record: PassRecord) -> None:
    """What the pass did; at debug what it decided, entry by entry, and what it left alone."""
    result = record.result
    what = "changed the model" if result.changed else "changed nothing"
    log.info("%s: %s in %.2f s", record.pass_text, what, record.seconds)
    if not log.isEnabledFor(logging.DEBUG):
        return
    for name, value in result.statistics.items():
        entries = value if isinstance(value, (list, tuple)) else [value]
        for entry in entries:
            log.debug("%s: %s: %s", record.pass_text, name, _brief(entry))
    for note in result.notes:
        log.debug("%s: left alone: %s", record.pass_text, note)


_SHOWN = 12
"""Elements of a table's entry that are logged."""


def _brief(entry: object) -> str:
    """An entry of a pass's statistics on a line."""
    if isinstance(entry, Mapping):
        return ", ".join(f"{key} {_brief(value)}" for key, value in entry.items())
    if isinstance(entry, (list, tuple)):
        more = [f"and {len(entry) - _SHOWN} more"] if len(entry) > _SHOWN else []
        return f"[{', '.join([*map(_brief, entry[:_SHOWN]), *more])}]"
    return f"{entry:.6g}" if isinstance(entry, float) else str(entry)


def _outputs(model: Model, check: OutputCheck) -> list[dict[str, Array]]:
    from ..ir.reference import Session

    session = Session(model, optimize=False)
    runs = (check.feeds, *check.more)
    return [session.run({name: feed[name] for name in session.input_names}) for feed in runs]
