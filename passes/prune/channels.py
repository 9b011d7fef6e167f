"""The pass that prunes channels, heads, hidden units: whatever the axes leave free."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.axes.facts import Analysis
from ...ir.axes.selection import Selection
from ...ir.cost import ShapeOf, count
from ...ir.errors import SecateurError
from ...ir.model import Model
from ..base import Context, Note, Pass, PassResult
from ..linear.threads import few_threads
from ..samples import SampleArray
from ..simplify.defaults import inputs_with_defaults
from ..sizes import CountedSizes, infer_sizes
from .allocation import Allocation, Goal, Terms, allocate
from .budget import CostModel, KernelCost
from .depth import drop_branches, kernels_left
from .explanation import explain
from .groups import Group, Limit
from .importance import DEFAULT, DEFAULT_WITH_SAMPLES, find_criterion, group_scores
from .names import name_values
from .plan import Pruned, PruningPlan
from .portfolio import Search, Trial, choose
from .recovery import calibration_runs


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the least important indices until a budget is met.

    Exactly one goal: `macs`, `params`, `bytes` (of constants) or `latency` (of the compiled
    model, as `Context.kernels` tell), the share of the original that may remain, or
    `ratio`, the share of channels to remove. `scope` ranks globally or takes the same
    share of every group; kept widths are multiples of `align` where the original and the
    goal allow; parameters, nodes or groups that match an `ignore` pattern stay whole, and
    those that match one of the `limits` (`Limit.parse`) keep a share between two bounds.
    `normalized` also prunes axes that layer normalization runs over (statistics are
    then those of the kept indices).

    With calibration samples, and unless `recovery` is off, what follows a cut makes up for
    it (pass `recover`). Then axes of normalization are pruned like any other, and the widths
    are the best of several candidates (`portfolio.py`), improved for `search` minutes. With
    `rematch` it only gives outputs their means and deviations back, in less time.
    `importance` names what orders channels (`importance.py`), by default the best that
    there is data for; it is estimated in so many `iterations`, cuts and recoveries between
    them (`iterations.py`), by default three on models that are small enough to try. Residual
    branches are among what may go then (`depth.py`): up to `depth` of them, by default as many
    as help on such models.

    Raises SecateurError where the goal can't be reached, saying what can.
    """

    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    latency: float | None = None
    ratio: float | None = None
    importance: str | None = None
    scope: str = "global"
    align: int = 1
    ignore: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    normalized: bool = False
    recovery: bool = True
    rematch: bool = False
    search: float = 0.0
    iterations: int | None = None
    depth: int | None = None

    def run(self, model: Model, context: Context | None = None) -> PassResult:
        goal = self._goal()
        inlined = name_values(model)
        infer_sizes(model)
        sizes, shape_of = CountedSizes.usual(model)
        before = count(model, shape_of)
        data = context if self.recovery and context is not None else None
        samples = None if data is None else data.calibration
        recovers = bool(samples)
        for option, given in (("search", self.search), ("iterations", (self.iterations or 1) > 1)):
            if given and not recovers:
                missing = "calibration samples" if self.recovery else "recovery, which is off"
                raise SecateurError(f"prune-channels: {option} needs {missing}")
        plan = self._plan(model, recovers=recovers)
        trials: list[Trial] = []
        terms = self._terms(plan, goal, shape_of, context)
        try:
            if samples and data is not None:
                trials = self._try(model, plan, goal, terms, samples, data)
                allocation = trials[0].allocation
            else:
                allocation = self._allocate(plan, goal, terms, context.seed if context else 0)
                selection = allocation.selection
        except SecateurError as error:
            raise SecateurError(f"{error}{_hint(model)}") from None
        original = model.clone() if recovers else model
        latency = _latency(plan, terms.kernels) if terms.kernels else 0.0
        dropped = trials[0].dropped if trials else {}
        if dropped:
            drop_branches(model, dropped)
            plan = self._plan(model, recovers=recovers)
        if trials:
            plan.tie_like(trials[0].plan)
            selection = plan.selection(trials[0].cut)
        importance = self.importance or _usual(context, samples)
        statistics = explain(plan, selection, allocation.losses(), importance)
        if terms.kernels:
            kernels = kernels_left(terms.kernels, original, model)
            after = _latency(plan, kernels, selection)
            statistics["latency"] = {"before": latency, "after": after}
        notes = inlined.notes + _notes(plan.analysis, plan.groups)
        if trials and trials[0].helps is None:
            why = "one run of samples leaves none to hold back: widths were not compared"
            if (self.iterations or 1) > 1:
                why += ", and importance was estimated once"
            notes.append(Note("", self.name, why))
        record = plan.apply(selection, dropped)
        infer_sizes(model)
        left = sizes.count(model)
        statistics.update(
            macs_before=before.macs,
            macs_after=left.macs,
            parameters_before=before.parameters,
            parameters_after=left.parameters,
            align=allocation.align,
            align_asked=self.align,
            tied=sorted(value.name for value in plan.tied),
            candidates=[trial.as_dict() for trial in trials],
            branches=[dataclasses.asdict(b) for b in (trials[0].branches if trials else ())],
        )
        artifacts: dict[str, Any] = {"selection": record}
        if recovers:
            artifacts["pruned"] = Pruned(original, record, trials[0].helps, self.rematch)
        changed = bool(selection) or bool(dropped) or inlined.changed
        return PassResult(changed, statistics, notes, artifacts)

    def _plan(self, model: Model, *, recovers: bool) -> PruningPlan:
        return PruningPlan(model, ignore=self.ignore, normalized=self.normalized or recovers)

    def _terms(
        self, plan: PruningPlan, goal: Goal, shape_of: ShapeOf, context: Context | None
    ) -> Terms:
        kernels = (context.kernels if context is not None else None) or ()
        if goal.kind == "latency" and not kernels:
            raise SecateurError(
                "prune-channels: a goal in latency needs a target that the model is compiled for"
            )
        limits = [Limit.parse(text) for text in self.limits]
        for limit in limits:
            if not any(limit.matches(group) for group in plan.groups):
                raise SecateurError(f"no group has a name that matches the limit '{limit.pattern}'")
        return Terms(shape_of, self.scope, self.align, limits, kernels)

    def _allocate(self, plan: PruningPlan, goal: Goal, terms: Terms, seed: int) -> Allocation:
        """What groups lose.

        Chosen again as long as constants that nodes share would grow by being cut in
        several ways; a goal in parameters weighs that by itself.
        """
        while True:
            allocation = allocate(
                plan.analysis,
                plan.groups,
                group_scores(plan.free, self.importance or DEFAULT, seed=seed),
                goal,
                terms,
            )
            if goal.kind in ("params", "bytes") or not plan.tie(allocation.selection):
                return allocation

    def _try(
        self,
        model: Model,
        plan: PruningPlan,
        goal: Goal,
        terms: Terms,
        arrays: Mapping[str, SampleArray],
        context: Context,
    ) -> list[Trial]:
        """Candidates by trial, the best first, made on a copy that takes many samples at once."""
        seed = context.seed
        for opened in (True, False):
            copy = model.clone()
            with (
                few_threads(model),
                calibration_runs([copy], arrays, seed, opened=opened) as runs,
            ):
                other = PruningPlan(copy, ignore=plan.ignore, normalized=plan.normalized)
                if not plan.agrees(other):
                    continue
                _, shape_of = CountedSizes.usual(copy)
                own = dataclasses.replace(terms, shape_of=shape_of)
                spared = [*self.ignore, *(limit.pattern for limit in terms.limits if limit.least)]
                depth = self.depth if self.scope != "uniform" and goal.kind != "channels" else 0
                search = Search(goal, own, self.search, self.iterations, depth, spared)
                return choose(
                    other,
                    search,
                    runs,
                    importance=self.importance or _usual(context, arrays),
                    seed=seed,
                    rematch=self.rematch,
                )
        raise SecateurError("prune-channels: a copy of the model has other groups")

    def _goal(self) -> Goal:
        goals = {kind: getattr(self, kind) for kind in ("macs", "params", "bytes", "latency")}
        given = [Goal(kind, keep) for kind, keep in goals.items() if keep is not None]
        if self.ratio is not None:
            given.append(Goal("channels", 1.0 - self.ratio))
        if len(given) != 1:
            raise SecateurError(
                "prune-channels: give exactly one of macs, params, bytes, latency and ratio"
            )
        if not 0 < given[0].keep <= 1:
            raise SecateurError("prune-channels: the goal has to lie between 0 and 1")
        if self.importance is not None:
            find_criterion(self.importance)
        if self.search < 0:
            raise SecateurError("prune-channels: search takes no negative number of minutes")
        if self.iterations is not None and self.iterations < 1:
            raise SecateurError("prune-channels: iterations is a number from 1 on")
        if self.depth is not None and self.depth < 0:
            raise SecateurError("prune-channels: depth takes no negative number of branches")
        if self.scope not in ("global", "uniform"):
            raise SecateurError(f"prune-channels: unknown scope '{self.scope}' (global, uniform)")
        if self.align < 1:
            raise SecateurError("prune-channels: align has to be at least 1")
        return given[0]


def _usual(context: Context | None, samples: object) -> str:
    """What orders channels by default: made-up samples say less of them than weights do."""
    made_up = context is not None and context.synthetic
    return DEFAULT_WITH_SAMPLES if samples and not made_up else DEFAULT


def _hint(model: Model) -> str:
    """A hint for the error message where weights are locked since they are inputs with defaults."""
    count = len(inputs_with_defaults(model))
    if not count:
        return ""
    return f"; {count} inputs with default values stay whole (--freeze-defaults: constants)"


def _latency(
    plan: PruningPlan, kernels: Sequence[KernelCost], selection: Selection | None = None
) -> float:
    """Microseconds that the kernels are expected to take, with what a selection keeps."""
    model = CostModel(plan.analysis, "latency", kernels=kernels)
    kept = selection.kept if selection is not None else {}
    return model.cost({dim: len(indices) for dim, indices in kept.items()}) / 1000


def _notes(analysis: Analysis, groups: Sequence[Group]) -> list[Note]:
    """Why parameters that look prunable stayed: one note per distinct reason."""
    notes = [Note(n.label, n.op_type, reason) for n, reason in analysis.unruled]
    seen = set()
    for group in groups:
        why = group.lock
        if why is None or why in seen:
            continue
        seen.add(why)
        notes.append(Note(why.node, why.op_type, f"{why.reason} (locks {group.name})"))
    return notes
