"""Another floating-point type for nodes of a model, as far as their definitions have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, defs, helper

from ..ir.graph import Graph, Node, Use, Value, normalize_domain, tensor_type
from ..ir.model import Model
from ..ir.tensor import Tensor


@dataclass(frozen=True)
class Retyped:
    """Positions of a node's inputs and outputs that become another type."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def retyped(node: Node, model: Model, old: int, new: int) -> Retyped | str:
    """What a node takes and gives as `new` in place of `old`, or why it can't."""
    domain = normalize_domain(node.domain)
    version = model.opsets.get(domain)
    if domain != "" or version is None or not defs.has(node.op_type, version, domain):
        return "it is no standard operator"
    if node.subgraphs():
        return "its states and results keep their types"
    schema = defs.get_schema(node.op_type, version, domain)
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    variables: dict[int, str] = {}
    for place, value in enumerate(node.inputs):
        if value is None:
            continue
        if tensor_type(value.type) is None and value.const is None:
            return f"'{value.name}' is no tensor"
        formal = _formal(schema.inputs, place)
        if _is_of(value, old) and formal is not None and formal.is_homogeneous:
            variables[place] = formal.type_str
    name = f"tensor({helper.tensor_dtype_to_np_dtype(new).name.replace('float32', 'float')})"
    usable = {v for v in variables.values() if name in allowed.get(v, ())}
    inputs = tuple(place for place, variable in variables.items() if variable in usable)
    if not inputs:
        return f"its definition has no {name[7:-1]}"
    outputs = []
    for place, value in enumerate(node.outputs):
        if value is not None and tensor_type(value.type) is None:
            return f"'{value.name}' is no tensor, or of unknown type"
        formal = _formal(schema.outputs, place)
        if _is_of(value, old) and formal is not None and formal.type_str in usable:
            outputs.append(place)
    return Retyped(inputs, tuple(outputs))


def _formal(
    formals: Sequence[defs.OpSchema.FormalParameter], place: int
) -> defs.OpSchema.FormalParameter | None:
    return formals[min(place, len(formals) - 1)] if formals else None


def _is_of(value: Value | None, dtype: int) -> bool:
    return value is not None and value.dtype == dtype


def retype(
    model: Model, roles: Mapping[Node, Retyped], old: int, new: int, *, keep_io: bool = True
) -> int:
    """Let nodes, those of bodies, too, compute in type `new` in place of `old`, with casts where
    others are.

    Inputs and outputs of bodies keep their types, and those of the model, unless asked otherwise.
    Returns the number of casts.
    """
    return _CastWriter(model, roles, old, new, keep_io=keep_io).write()


def widen(model: Model) -> bool:
    """Let all nodes that compute in float16, those of bodies, too, do so in float32; whether there
    are any.

    Inputs and outputs keep their types, of bodies, too. Casts that then change nothing go.
    """
    old, new = TensorProto.FLOAT16, TensorProto.FLOAT
    roles: dict[Node, Retyped] = {}
    for node in model.graph.all_nodes():
        role = retyped(node, model, old, new)
        if not isinstance(role, str):
            roles[node] = role
    if not any(role.outputs for role in roles.values()):
        return False
    retype(model, roles, old, new)
    for graph in model.graph.all_graphs():
        idle = []
        for node in graph.nodes:
            source, result = node.input(0), node.output(0)
            if node.op_type != "Cast" or source is None or result is None or source.dtype != new:
                continue
            if node.get("to") == new and result.can_be_replaced_by(source):
                result.replace_uses(source)
                idle.append(node)
        graph.remove_nodes(idle)
    return True


class _CastWriter:
    """Changes the types of values, and writes a Cast wherever readers want another."""

    def __init__(
        self, model: Model, roles: Mapping[Node, Retyped], old: int, new: int, *, keep_io: bool
    ) -> None:
        self.old, self.new = old, new
        self.model = model
        self.graph = model.graph
        self.graphs = list(model.graph.all_graphs())
        self.roles = roles
        self.keep_io = keep_io
        self.changed = {n.outputs[p] for n, role in roles.items() for p in role.outputs}
        self.floats = [
            (v, graph) for graph in self.graphs for v in graph.values() if _is_of(v, old)
        ]
        self.casts: dict[tuple[Value, int], Value] = {}
        self.at_start: dict[Graph, list[Node]] = {}
        self.after: dict[Node, list[Node]] = {}

    def write(self) -> int:
        """Returns the number of casts."""
        inputs = [v for v in self.graph.inputs if _is_of(v, self.old)]
        if not self.keep_io:
            self.changed |= {v for v in inputs if v.const is None}
        for value, graph in self.floats:
            uses = list(value.uses)
            if self.model.constant(value) is not None:
                self.constant(value, graph, uses)
                continue
            if value in self.changed:
                value.set_tensor_type(self.new, value.shape)
            for use in uses:
                self.convert(value, graph, use)
        names = {value.name for value in self.changed if value is not None}
        for graph in self.graphs:
            graph.value_info = [
                v for v in graph.value_info if isinstance(v, Value) or v.name not in names
            ]
            order = self.at_start.get(graph, [])
            for node in graph.nodes:
                order += [node, *self.after.get(node, ())]
            graph.nodes = order
        return len(self.casts)

    def wants_new(self, use: Use) -> bool:
        role = self.roles.get(use.user) if isinstance(use.user, Node) else None
        if use.user is self.graph:
            return not self.keep_io
        return role is not None and use.position in role.inputs

    def convert(self, value: Value, graph: Graph, use: Use) -> None:
        new = self.wants_new(use)
        if new == (value in self.changed):
            return
        if use.user is self.graph:
            cast = self.cast(value, graph, new)
            if not cast.is_graph_output:
                value.name, cast.name = cast.name, value.name
                value.info, cast.info = cast.info, value.info
            self.graph.set_output(use.position, cast)
        elif isinstance(use.user, Node):
            use.user.set_input(use.position, self.cast(value, graph, new))
        else:
            use.user.set_output(use.position, self.cast(value, graph, new))

    def cast(self, value: Value, graph: Graph, new: bool) -> Value:
        """A value of a graph in the other type, there, so that bodies within share it."""
        dtype = self.new if new else self.old
        found = self.casts.get((value, dtype))
        if found is None:
            found = self.casts[value, dtype] = Value(self.model.fresh_name(f"{value.name}_cast"))
            found.set_tensor_type(dtype, value.shape)
            node = Node("Cast", [value], [found])
            node.set("to", dtype)
            node.graph = graph
            if value.producer is None:
                self.at_start.setdefault(graph, []).append(node)
            else:
                self.after.setdefault(value.producer, []).append(node)
        return found

    def constant(self, value: Value, graph: Graph, uses: Sequence[Use]) -> None:
        """Give the nodes that want it a constant of the new type; all, where none wants another."""
        wanting = [use for use in uses if self.wants_new(use) and isinstance(use.user, Node)]
        tensor = self.model.constant(value)
        if not wanting or tensor is None:
            return
        with np.errstate(over="ignore"):
            array = tensor.numpy().astype(helper.tensor_dtype_to_np_dtype(self.new))
        other = Tensor.from_array(array, self.new)
        if value.const is not None and len(wanting) == len(uses) and not value.is_input:
            value.const = other
            value.set_tensor_type(self.new, other.shape)
            return
        name = self.model.fresh_name(f"{value.name}_{array.dtype.name}")
        new = graph.add_initializer(name, other)
        for use in wanting:
            assert isinstance(use.user, Node)
            use.user.set_input(use.position, new)
        if value.uses:
            return
        if value.producer is not None:
            graph.remove_nodes({value.producer})
        elif not value.is_input:
            del graph.initializers[value.name]
