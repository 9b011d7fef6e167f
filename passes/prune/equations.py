"""What a layer's weights should satisfy: rows that they multiply, and what should come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.tensor import Array
from ..linear.bodies import SingleBody, WholeBody
from ..linear.find import Aim
from ..linear.layers import Layer, Solvable
from ..linear.recurrent import RecurrentLayer, Steps, kept_sums
from ..linear.walk import RunValues
from .masking import Keep
from .scores import ScoreProduct

Kept = Mapping[str, Sequence[Keep | None]]
"""For each value that lost elements, which ones are left along each axis."""


@dataclass(frozen=True)
class EquationRows:
    """Of one run: `inputs` [groups, rows, in], `targets` [groups, rows, out], and what is
    added to both sides before they are clipped."""

    inputs: Array
    targets: Array
    beside: Array | float = 0.0


class Equations(ABC):
    """Those of one node, over runs of the original (`before`) and of the pruned model (`now`).

    `layer` is the pruned model's. Outputs are clipped to `low` and `high` by what follows.
    """

    low, high = -np.inf, np.inf

    def __init__(self, layer: Solvable) -> None:
        self.layer = layer

    @property
    @abstractmethod
    def reads_before(self) -> list[str]:
        """Values of the original that `rows` needs."""

    @property
    @abstractmethod
    def reads_now(self) -> list[str]:
        """Values of the pruned model that `rows` needs."""

    @abstractmethod
    def rows(
        self,
        before: RunValues,
        now: RunValues,
        run: int,
        generator: np.random.Generator,
        wanted: float,
    ) -> Iterator[EquationRows]:
        """Those of a run, about as many as are wanted, in any number of parts."""


class LayerEquations(Equations):
    """A layer makes of its input what the original made of its own.

    With `foreseen` the input is the original's, as far as it is left, and not what the pruned
    model has computed: of layers that are solved before they are reached.
    """

    def __init__(
        self,
        layer: Layer,
        aim: Aim,
        kept: Kept,
        *,
        foreseen: bool = False,
        product: ScoreProduct | None = None,
    ) -> None:
        super().__init__(layer)
        self._product = product
        self._mixing: Array | None = None
        self._layer = layer
        self._aim = aim
        self._kept = kept
        self._foreseen = foreseen
        self.low, self.high = aim.low, aim.high

    @property
    def reads_before(self) -> list[str]:
        foreseen = [self._layer.source.name] if self._foreseen else []
        return [self._aim.value.name, *foreseen, *(self._product.reads if self._product else ())]

    @property
    def reads_now(self) -> list[str]:
        beside = self._aim.beside
        source = () if self._foreseen else (self._layer.source.name,)
        return [*source, *(() if beside is None else (beside.name,))]

    def rows(
        self,
        before: RunValues,
        now: RunValues,
        run: int,
        generator: np.random.Generator,
        wanted: float,
    ) -> Iterator[EquationRows]:
        layer = self._layer
        target = self._target(before, run)
        source = self._source(before, now, run)
        picked = layer.pick(generator, target, wanted)
        rows = layer.rows(source, target.shape, picked)
        targets = layer.targets(target, picked)
        if self._aim.beside is None:
            yield EquationRows(rows, targets)
            return
        beside = layer.targets(now.value(self._aim.beside.name, run), picked)
        yield EquationRows(rows, targets - beside, beside)

    def _target(self, before: RunValues, run: int) -> Array:
        name = self._aim.value.name
        whole = before.value(name, run)
        if self._product is not None and self._mixing is None:
            self._mixing = self._product.mixing(before, self._kept)
            if self._mixing is None:
                self._product = None
        if self._mixing is None:
            return take(whole, self._kept.get(name, ()))
        found: Array = whole @ self._mixing.astype(whole.dtype)
        return found

    def _source(self, before: RunValues, now: RunValues, run: int) -> Array:
        name = self._layer.source.name
        if not self._foreseen:
            return now.value(name, run)
        return take(before.value(name, run), self._kept.get(name, ()))


class RecurrentEquations(Equations):
    """A recurrent layer's gates sum up what the original's did, from the states that it had."""

    def __init__(self, layer: RecurrentLayer, original: RecurrentLayer, kept: Kept) -> None:
        super().__init__(layer)
        self._pruned, self._original = layer, original
        names = [v.name for v in original.node.outputs if v is not None]
        keeps = [axes[-1] for name in names if (axes := kept.get(name))]
        self._kept = None if not keeps or keeps[0] is None else keeps[0].mask(original.hidden)

    @property
    def reads_before(self) -> list[str]:
        return [value.name for value in self._original.inputs]

    @property
    def reads_now(self) -> list[str]:
        return [value.name for value in self._pruned.inputs]

    def rows(
        self,
        before: RunValues,
        now: RunValues,
        run: int,
        generator: np.random.Generator,
        wanted: float,
    ) -> Iterator[EquationRows]:
        then = self._original.steps({name: before.value(name, run) for name in self.reads_before})
        count = len(then.inputs)
        picked = np.arange(count)
        if wanted < count:
            picked = np.sort(generator.choice(count, max(1, int(wanted)), replace=False))
        then = _picked(then, picked)
        matrix, bias = self._original.read()
        sums = self._original.rows(then) @ matrix.astype(np.float32)
        sums += bias[:, None].astype(np.float32)
        targets = kept_sums(self._original, sums, self._kept)
        x = self._pruned.inputs_of({name: now.value(name, run) for name in self.reads_now})
        reset = None if then.reset is None else self._left(then.reset)
        rows = Steps(x[picked], self._left(then.states), reset)
        yield EquationRows(self._pruned.rows(rows), targets)

    def _left(self, states: Array) -> Array:
        return states if self._kept is None else np.compress(self._kept, states, axis=2)


class BodyEquations(Equations):
    """Those of a layer in a subgraph, each time that it runs.

    What the subgraph of the pruned model is given each time, such as the states of a loop, is
    what the original's was given, as far as it is left: what it would be given itself is far
    off until all of its layers are solved. Without `now` nothing of the pruned model is read.
    """

    def __init__(
        self, within: Equations, before: WholeBody, now: SingleBody | None, kept: Kept
    ) -> None:
        super().__init__(within.layer)
        self.low, self.high = within.low, within.high
        self._within, self._before, self._now, self._kept = within, before, now, kept

    @property
    def reads_before(self) -> list[str]:
        return self._before.reads

    @property
    def reads_now(self) -> list[str]:
        return [] if self._now is None else self._now.reads

    def rows(
        self,
        before: RunValues,
        now: RunValues,
        run: int,
        generator: np.random.Generator,
        wanted: float,
    ) -> Iterator[EquationRows]:
        turns = list(self._before.turns(before, run))
        for number, then in enumerate(turns):
            turn = then
            if self._now is not None:
                names = self._before.inputs
                given = [take(then.value(name, 0), self._kept.get(name, ())) for name in names]
                turn = self._now.turn(now, run, number, given)
            yield from self._within.rows(then, turn, 0, generator, wanted / len(turns))


def loses_sequences(layer: RecurrentLayer, kept: Kept) -> bool:
    """Whether something besides inputs' and states' own axis is shorter than it was."""
    values = [*layer.inputs, *(v for v in layer.node.outputs if v is not None)]
    return any(keep is not None for v in values for keep in kept.get(v.name, ())[:-1])


def _picked(steps: Steps, picked: Array) -> Steps:
    reset = None if steps.reset is None else steps.reset[:, picked]
    return Steps(steps.inputs[picked], steps.states[:, picked], reset)


def take(array: Array, kept: Sequence[Keep | None]) -> Array:
    """The elements of an original value that the pruned one still has."""
    for axis, keep in enumerate(kept):
        if keep is not None:
            array = np.compress(keep.mask(array.shape[axis]), array, axis=axis)
    return array
