"""The step that prunes: goals as users give them, in whatever unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..checking.measure import file_bytes
from ..ir.cost import count
from ..ir.errors import SecateurError
from ..ir.model import Model
from ..passes.base import Context
from ..passes.prune import PruneChannels
from ..passes.sizes import infer_sizes
from ..reporting.report import bytes_text
from .amounts import SIZES, TIMES, Amount
from .device_times import read_device_times, split_latency
from .latency import LatencyBudget, Machine, Prepare
from .steps import StepResult, prune_step, rotate_step, run_step


def prune_model(
    model: Model,
    options: Mapping[str, Any],
    context: Context,
    *,
    machine: Machine | None = None,
    prepare: Prepare = Model.clone,
) -> tuple[Model, StepResult]:
    """A pruned model, which may be `model` itself, and what the step did.

    `options` are those of `PruneChannels`, but that `bytes` and `latency` may be amounts with a
    unit, and `latency` the file of what devices took, as in `2ms@times.json`. Latency counts on
    `machine`. `prepare` makes of a model what is written and compiled in
    the end, such as its quantized form: amounts are those of that. With `rotate` streams are turned
    into their principal axes first, where there are samples. Raises SecateurError.
    """
    options = dict(options)
    check_amounts(options)
    if options.pop("rotate", False) and context.calibration:
        rotated = run_step(rotate_step(), model, context)
        pruned, result = prune_model(model, options, context, machine=machine, prepare=prepare)
        runs = [*rotated.runs, *result.runs]
        seconds = rotated.seconds + result.seconds
        return pruned, dataclasses.replace(result, runs=runs, seconds=seconds)
    if options.get("latency") is not None:
        if machine is None:
            raise SecateurError("a budget of latency needs a target to compile for")
        text, file = split_latency(options.pop("latency"))
        amount = Amount.parse(text, TIMES)
        if file is not None:
            times = read_device_times(file, machine.target.name)
            machine = dataclasses.replace(machine, times=times)
        budget = LatencyBudget(model, PruneChannels(**options, latency=1.0), machine, prepare)
        return budget.prune(context, amount)
    if options.get("bytes") is not None:
        options["bytes"] = _bytes(Amount.parse(options["bytes"], SIZES), model, prepare)
    return model, run_step(prune_step(PruneChannels(**options)), model, context)


def check_amounts(options: Mapping[str, Any]) -> None:
    """Raises SecateurError where an amount can't be read."""
    for name, units in (("latency", TIMES), ("bytes", SIZES)):
        if options.get(name) is not None:
            given = split_latency(options[name])[0] if name == "latency" else options[name]
            try:
                Amount.parse(given, units)
            except SecateurError as error:
                raise SecateurError(f"{name}: {error}") from None


def _bytes(amount: Amount, model: Model, prepare: Prepare) -> float:
    """The share of the weights' bytes that may remain for the file to have the size."""
    if amount.absolute is None:
        return amount.share_of(1)
    final = prepare(model)
    infer_sizes(final)
    weights = count(final).weight_bytes
    rest = file_bytes(final) - weights
    if amount.absolute <= rest:
        raise SecateurError(
            f"bytes {amount.text}: the file takes {bytes_text(rest)} besides its weights"
        )
    return min(1.0, (amount.absolute - rest) / max(weights, 1))
