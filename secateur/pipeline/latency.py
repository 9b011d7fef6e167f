"""Pruning to a budget of latency: the compiler's cost model, corrected by what is measured.

Widths are allocated by a model of the target's kernels. Where this machine runs the target's
code, the model is compiled and timed at some widths before, and what was allocated after; the
measurements correct the model, and the allocation is made again while it misses the budget.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

from ..backends.tvm.cache import Cache
from ..backends.tvm.targets import Target, can_run_here
from ..ir.errors import SecateurError, UnsupportedError
from ..ir.model import Model
from ..ir.scratch import scratch_folder
from ..ir.tensor import Array
from ..passes.base import Context
from ..passes.prune import PruneChannels
from ..passes.prune.allocation import Goal, Terms, allocate
from ..passes.prune.importance import group_scores
from ..passes.prune.plan import PruningPlan
from .amounts import Amount
from .device_times import DeviceTimes
from .steps import StepResult, prune_step, run_step

Prepare = Callable[[Model], Model]
"""Makes, of a copy, what is compiled or written in the end."""

log = logging.getLogger(__name__)

PROBES = (0.75, 0.5, 0.25)
"""Shares of all channels at which the model is measured, besides the whole."""

ATTEMPTS = 3
"""Allocations at most, each compiled and measured."""

KNOWN = 0.9
"""Share of times that nodes of the model have to account for."""

CLOSE = 0.03
"""Share of the budget by which a measured latency may miss it."""

SECONDS = 2.0
"""Time that measuring takes, each time."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What latency counts on: one target, of several that of this machine; `feed` is an input to
    measure with, None where nothing is. `times` were measured on devices, and nothing is here."""

    target: Target
    cache: Cache
    threads: int = 1
    feed: Mapping[str, Array] | None = None
    times: DeviceTimes | None = None

    @property
    def measures(self) -> bool:
        """Whether models are timed on this machine."""
        return self.times is None and self.feed is not None and can_run_here(self.target)


class LatencyBudget:
    """Costs of one model's kernels on one machine; measuring it takes place when it is made.

    `prepare` makes of a pruned model what is compiled, such as its quantized form. Raises
    UnsupportedError where the model can't be compiled whole.
    """

    def __init__(
        self, model: Model, pass_: PruneChannels, machine: Machine, prepare: Prepare = Model.clone
    ) -> None:
        from ..backends.tvm.latency import LatencyModel  # imports TVM

        self.model, self.pass_, self.machine = model, pass_, machine
        self._prepare = prepare
        self._whole = prepare(model)
        try:
            self.costs = LatencyModel(self._whole, machine.target, machine.cache)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"a budget of latency is for models that compile whole: {error}"
            ) from None
        self.microseconds: float | None = None
        """Of a run of the model as it is; None where nothing was measured."""
        if machine.times is not None:
            self._learn(machine.times)
        if machine.measures:
            thinner = [prepare(model) for model in self._thinner()]
            self.microseconds = self.measure(thinner)[0]

    def _learn(self, times: DeviceTimes) -> None:
        """Let the costs be those that were measured of this model. Raises SecateurError where they
        are another one's."""
        from ..backends.tvm.tuning.measure import NodeTimes

        estimates = self.costs.estimates()
        measured = sum(times.nodes.values())
        known = sum(time for label, time in times.nodes.items() if label in estimates)
        if known < KNOWN * measured or not measured:
            raise SecateurError(
                "the times that --latency names are of another model: nodes of this one take "
                f"{known / measured if measured else 0:.0%} of them"
            )
        self.costs.correct(estimates, NodeTimes(times.whole, dict(times.nodes)))
        self.microseconds = times.whole

    def share(self, amount: Amount) -> float:
        """The share of the model's latency that is the budget. Raises SecateurError."""
        if amount.share is not None:
            return amount.share
        if self.microseconds is None:
            raise SecateurError(
                f"latency {amount.text}: this machine can't run code for "
                f"{self.machine.target.name}, so that a budget has to be a share, as in 0.5"
            )
        return amount.share_of(self.microseconds)

    def measure(self, models: Sequence[Model]) -> list[float]:
        """Microseconds of a run of the whole model and of others, of which the costs learn.

        Times count as if the whole model always took as long as at first: machines are now
        faster, now slower.
        """
        from ..backends.tvm.compile import compile_model
        from ..backends.tvm.latency import LatencyModel
        from ..backends.tvm.tuning.measure import time_nodes

        machine = self.machine
        assert machine.feed is not None
        models = [self._whole, *models]
        with scratch_folder() as folder:
            paths = []
            for index, model in enumerate(models):
                paths.append(folder / f"{index}.so")
                compile_model(model, machine.target, paths[-1], cache=machine.cache)
            times = time_nodes(paths, machine.feed, threads=machine.threads, seconds=SECONDS)
        scale = (self.microseconds or times[0].whole) / times[0].whole
        for model, found in zip(models, times, strict=True):
            own = LatencyModel(model, machine.target, machine.cache)
            self.costs.correct(own.estimates(), found.times(scale))
        return [scale * found.whole for found in times]

    def prune(self, context: Context, amount: Amount) -> tuple[Model, StepResult]:
        """The model pruned to a budget, and what the step did. Raises SecateurError."""
        goal = self.share(amount)
        tried: list[tuple[float, Model, StepResult]] = []
        for _ in range(ATTEMPTS if self.machine.measures else 1):
            pruned = self.model.clone()
            step = prune_step(dataclasses.replace(self.pass_, latency=goal))
            kernels = self.costs.kernels()
            result = run_step(step, pruned, dataclasses.replace(context, kernels=kernels))
            result.context = dataclasses.replace(result.context, kernels=None)
            if not self.machine.measures:
                return pruned, result
            before, after = self.measure([self._prepare(pruned)])
            result.runs[-1].statistics["latency"] |= {
                "budget": goal,
                "measured_before": before,
                "measured_after": after,
                "attempt": len(tried) + 1,
            }
            log.debug("latency: %.1f of %.1f us, asked for %.3f", after, before, goal)
            tried.append((after / before, pruned, result))
            if abs(after / before - goal) <= CLOSE * goal:
                break
        within = [t for t in tried if t[0] <= (1 + CLOSE) * goal]
        _, pruned, result = (
            max(within, key=lambda t: t[0]) if within else min(tried, key=lambda t: t[0])
        )
        return pruned, result

    def _thinner(self) -> list[Model]:
        """The model with less and less of all channels."""
        found = []
        lanes = self.machine.target.lanes
        for keep in PROBES:
            copy = self.model.clone()
            normalized = self.pass_.normalized or self.pass_.recovery
            plan = PruningPlan(copy, ignore=self.pass_.ignore, normalized=normalized)
            scores = group_scores(plan.free, "l1")
            terms = Terms(scope="uniform", align=lanes)
            cut = allocate(plan.analysis, plan.groups, scores, Goal("channels", keep), terms)
            plan.apply(cut.selection)
            found.append(copy)
        return found
