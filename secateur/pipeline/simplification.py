"""Simplification of one file: ONNX in, ONNX out, weights never all in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..checking.checks import check_feeds
from ..checking.measure import measure_stage
from ..checking.rounding import movement
from ..data.datasets import DataSource, load_dataset
from ..data.fixed_inputs import FixedInputs
from ..data.npz import DataError
from ..data.random_inputs import describe_feeds
from ..ir.declarations import correct_declarations
from ..ir.infer import infer_shapes
from ..ir.onnx_io import load
from ..ir.reference import load_problem
from ..passes.base import Pass
from ..passes.dump import Dump
from ..passes.manager import OutputCheck, PassManager
from ..passes.simplify import ConvertOpset, InlineFunctions, Simplify
from ..reporting.report import Check, Report
from .steps import SpellOutQuantized, pass_run
from .transform import Transformation

TOLERANCE = 1e-5
"""Largest deviation of an output, relative to its magnitude, that `check` accepts."""

_COMPARED = "simplified model against original"
"""What `check` checks."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to do besides simplifying.

    `fixed` is done first; `opset` converts, `inline` puts functions in place of
    their calls; `size_limit` bounds the bytes of a folded constant; `allow_contrib` lets
    ONNX Runtime's own operators into the result; `qdq` spells out quantized ones.
    """

    fixed: FixedInputs = dataclasses.field(default_factory=FixedInputs)
    opset: int | None = None
    inline: bool = False
    size_limit: int | None = None
    allow_contrib: bool = False
    qdq: bool = False

    def passes(self) -> list[Pass]:
        """The passes in order: what later ones can use comes first."""
        found = self.fixed.passes()
        if self.inline:
            found.append(InlineFunctions())
        if self.opset is not None:
            found.append(ConvertOpset(self.opset))
        if self.qdq:
            found.append(SpellOutQuantized())
        limit = {} if self.size_limit is None else {"size_limit": self.size_limit}
        return [*found, Simplify(**limit, allow_contrib=self.allow_contrib)]


def simplify_file(
    source: Path,
    output: Path,
    options: Options,
    *,
    check: bool = False,
    data: DataSource | None = None,
    seed: int = 0,
    dump: Path | None = None,
) -> Report:
    """Simplify the model in `source` and write it to `output`, whole or not at all.

    The result always passes the verifier, and onnx.checker and ONNX Runtime where `source`
    does; with `check` its outputs are also compared with the original's in ONNX Runtime, on
    `data` or on random inputs. `dump` is a folder for the model's text after each pass.
    Raises SecateurError.
    """
    original = load(source)
    model = original.clone()
    corrections = correct_declarations(model)
    infer_shapes(model)
    fixed = model.clone()
    for pass_ in options.fixed.passes():
        pass_.run(fixed)
    settings = {"step": "simplify", "check": check, "seed": seed, **dataclasses.asdict(options)}
    job = Transformation(original, fixed, settings)
    report = job.report
    report.notes += corrections
    with job.writing(output):
        comparison = None
        if check:
            samples = None if data is None else load_dataset(data, fixed)
            try:
                feeds = check_feeds(fixed, samples, seed)
                complete = [options.fixed.originals(original, feed) for feed in feeds]
                slack = {name: 2 * moved for name, moved in movement(fixed, feeds).items()}
                comparison = OutputCheck(complete[0], TOLERANCE, complete[1:], slack)
            except DataError as error:
                report.checks.append(Check(_COMPARED, False, f"not compared: {error}"))
        writer = None if dump is None else Dump(dump)
        records = PassManager(options.passes(), check=comparison, dump=writer).run(model)
        infer_shapes(model)
        seconds = sum(record.seconds for record in records)
        report.stages.append(measure_stage("simplified", model, seconds))
        report.passes += [pass_run("simplified", record) for record in records]
        if comparison is not None:
            worst = max(record.deviation or 0.0 for record in records)
            kind = "random inputs" if data is None else "samples"
            detail = f"largest relative deviation {worst:.2g} on {kind}: {describe_feeds(feeds)}"
            if worst > TOLERANCE:
                detail += ", no more than rounding makes of the values behind it"
            report.checks.append(Check(_COMPARED, True, detail))
        problem = load_problem(model)
        if problem is not None and corrections and load_problem(original) is None:
            model = original.clone()
            for pass_ in options.fixed.passes():
                pass_.run(model)
            report.notes.append(f"left as it is: simplified it would not load ({problem})")
        job.save(model, full=False)
    return report
