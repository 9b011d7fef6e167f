"""Values within the bodies of If, Loop and Scan, as runs of a model make them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ...ir.errors import SecateurError
from ...ir.graph import Attribute, Graph, Node, Value, make_tensor_type, outer_reads, tensor_type
from ...ir.model import Model
from ...ir.partition import extract
from ...ir.reference import Session
from ...ir.tensor import Array, Tensor
from ..body_results import hand_out, name_all_results
from .walk import RunValues


class BodyError(SecateurError):
    """Values of a body can't be had."""


@dataclass(frozen=True)
class Turn:
    """The values of one time that a body runs, by name; what surrounds it included."""

    arrays: Mapping[str, Array]
    runs: int = field(default=1, init=False)

    def value(self, name: str, run: int) -> Array:
        return self.arrays[name]


class WholeBody:
    """A subgraph of a node of the main graph, as it runs where the node does.

    Values are asked for by names that the model has for values of the body, or for what the
    node reads; those that the body is given each time are there, too. Bodies within bodies
    aren't looked into.
    """

    def __init__(self, model: Model, graph: Graph, names: Collection[str]) -> None:
        self._model, self._graph, self._node = model, graph, _parent(graph)
        if self._node.op_type == "Scan" and len(self._node.inputs) != len(graph.inputs):
            raise BodyError("it lies in a Scan as before operator set 9, over batches")
        self.reads = _reads(model, self._node)
        wanted = _named(graph, [v.name for v in graph.inputs] + list(names), self.reads)
        if any(tensor_type(value.type) is None for value in wanted):
            raise BodyError("it lies in a subgraph in which not all values are known to be tensors")
        self._inside = wanted
        self._session: Session | None = None

    @property
    def inputs(self) -> list[str]:
        """What the body is given each time."""
        return [value.name for value in self._graph.inputs]

    def turns(self, values: RunValues, run: int) -> Iterator[Turn]:
        """One for each time that the body runs, given what the node reads in a run."""
        around = {name: values.value(name, run) for name in self.reads}
        if self._session is None:
            self._session = _session(self._probe())
        try:
            found = self._session.run({n: around[n] for n in self._session.input_names})
        except SecateurError:
            kind = self._node.op_type
            why = f"values of its subgraph change their shapes while '{self._node.label}' ({kind})"
            raise BodyError(f"{why} runs") from None
        taken, *arrays = found.values()
        names = [value.name for value in self._inside]
        if self._node.op_type == "If":
            if taken:
                yield Turn({**around, **dict(zip(names, arrays, strict=True))})
            return
        for turn in range(len(taken)):
            yield Turn(
                {**around, **{n: np.asarray(a[turn]) for n, a in zip(names, arrays, strict=True)}}
            )

    def _probe(self) -> Model:
        """The node as a model whose outputs are a mark for each turn, and the values of it."""
        results = [value for value in self._node.outputs if value is not None]
        part, _ = extract(self._model, [self._node], results)
        (node,) = part.graph.nodes
        position = self._node.subgraphs().index(self._graph)
        body = node.subgraphs()[position]
        if node.op_type == "If":
            _drop_results(part, node, body)
        else:
            name_all_results(part, node)
        own = {value.name: value for value in body.values()}
        mark = _constant(part, body, np.array(True))
        no_mark = partial(_constant, part, array=np.array(False))
        results = [hand_out(part, node, body, mark, no_mark)]
        for value in (own[value.name] for value in self._inside):
            same = _forward(part, body, value)
            results.append(hand_out(part, node, body, same, partial(_nothing_like, part, value)))
        part.graph.replace_outputs(results)
        return part


class SingleBody:
    """A subgraph of a node of the main graph, run by itself, with the weights that it has the
    first time."""

    def __init__(self, model: Model, graph: Graph, names: Collection[str]) -> None:
        self._model, self._graph, self._node = model, graph, _parent(graph)
        self.reads = _reads(model, self._node)
        self._inside = [v for v in _named(graph, names, self.reads) if not v.is_input]
        self._session: Session | None = None

    def turn(self, values: RunValues, run: int, number: int, given: Sequence[Array]) -> Turn:
        """The values of one time, given what the body is then given.

        A Scan's slices are not taken from there but from what the node reads.
        """
        arrays = {name: values.value(name, run) for name in self.reads}
        arrays |= {v.name: a for v, a in zip(self._graph.inputs, given, strict=True)}
        if self._node.op_type == "Scan":
            arrays |= self._slices(values, run, number)
        if not self._inside:
            return Turn(arrays)
        if self._session is None:
            part, _ = extract(self._model, self._graph.nodes, self._inside)
            self._session = _session(part)
        found = self._session.run({name: arrays[name] for name in self._session.input_names})
        return Turn({**arrays, **found})

    def _slices(self, values: RunValues, run: int, number: int) -> dict[str, Array]:
        """What each of the inputs that a Scan runs over gives the body, unless it is constant."""
        count = self._node.get("num_scan_inputs")
        axes = self._node.get("scan_input_axes", [0] * count)
        backwards = self._node.get("scan_input_directions", [0] * count)
        found = {}
        pairs = zip(self._node.inputs[-count:], self._graph.inputs[-count:], strict=True)
        for k, (whole, part) in enumerate(pairs):
            assert whole is not None
            if whole.name in self.reads:
                array = np.moveaxis(values.value(whole.name, run), axes[k], 0)
                if number >= len(array):
                    raise BodyError("its subgraph runs less often than that of the original")
                found[part.name] = array[-1 - number if backwards[k] else number]
        return found


def _session(part: Model) -> Session:
    try:
        return Session(part, threads=0)
    except SecateurError as error:
        raise BodyError(f"its subgraph can't be run for its values: {error}") from None


def _parent(graph: Graph) -> Node:
    assert graph.parent is not None
    return graph.parent


def _reads(model: Model, node: Node) -> list[str]:
    """Values that a node and its subgraphs read and that aren't constants."""
    return [v.name for v in dict.fromkeys(outer_reads(node)) if model.constant(v) is None]


def _named(graph: Graph, names: Collection[str], around: Collection[str]) -> list[Value]:
    """Values of a graph by name; the others of these names have to be around it."""
    inside = {value.name: value for value in graph.values()}
    missing = set(names) - set(inside) - set(around)
    if missing:
        raise BodyError(f"'{min(missing)}' is neither of its subgraph nor read by it")
    return [inside[name] for name in dict.fromkeys(names) if name in inside]


def _drop_results(part: Model, node: Node, body: Graph) -> None:
    """Let neither branch of an If compute more than what is added."""
    part.graph.replace_outputs([])
    for graph in node.subgraphs():
        graph.replace_outputs([])
        if graph is not body:
            graph.detach()
            graph.nodes, graph.initializers, graph.value_info = [], {}, []
    node.outputs = ()


def _forward(part: Model, graph: Graph, value: Value) -> Value:
    """The value under another name, since one that is an input can't always be a result."""
    result = Value(part.fresh_name("forwarded"), value.type)
    graph.add_node(Node("Identity", [value], [result]))
    return result


def _constant(part: Model, graph: Graph, array: Array) -> Value:
    tensor = Tensor.from_array(array)
    value = Value(part.fresh_name("constant"), make_tensor_type(tensor.dtype, tensor.shape))
    graph.add_node(Node("Constant", [], [value], {"value": Attribute.of("value", tensor)}))
    return value


def _nothing_like(part: Model, value: Value, graph: Graph) -> Value:
    """What a branch returns where the other one would return the value."""
    empty = _constant(part, graph, np.zeros([0] * (value.rank or 0), np.float32))
    result = Value(part.fresh_name("nothing"), make_tensor_type(value.dtype, None))
    graph.add_node(Node("Cast", [empty], [result], {"to": Attribute.of("to", value.dtype)}))
    return result
