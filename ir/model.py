"""Models: a main graph, model-local functions, and what surrounds them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from onnx import FunctionProto, ModelProto, TensorProto

from .copying import Copier
from .display import printable
from .graph import Graph, Node, Value, normalize_domain, tensor_type
from .tensor import Tensor


class Function:
    """A model-local function; `graph` is its body, `extra` the rest of the proto."""

    def __init__(self, graph: Graph, extra: FunctionProto) -> None:
        self.graph = graph
        self.extra = extra

    @property
    def key(self) -> tuple[str, str, str]:
        """(domain, name, overload)"""
        return (self.extra.domain, self.extra.name, self.extra.overload)

    @property
    def opsets(self) -> dict[str, int]:
        """Version of each operator set that the body imports, by domain."""
        return {normalize_domain(o.domain): int(o.version) for o in self.extra.opset_import}


class Model:
    """A whole model; `extra` is the model proto without graph and functions."""

    def __init__(
        self,
        graph: Graph,
        extra: ModelProto,
        functions: Sequence[Function] = (),
        path: Path | None = None,
    ) -> None:
        self.graph = graph
        self.extra = extra
        self.functions = {f.key: f for f in functions}
        self.path = path
        self._names: set[str] | None = None
        self._suffixes: dict[str, int] = {}  # the last number that `fresh_name` tried, by hint

    @property
    def opsets(self) -> dict[str, int]:
        """Version of each imported operator set, by domain."""
        return {normalize_domain(o.domain): int(o.version) for o in self.extra.opset_import}

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return self.opsets.get("", 1)

    def constant(self, value: Value | None) -> Tensor | None:
        """The tensor of an initializer or Constant node that no run can change, else None.

        From IR version 4 an initializer that is also a graph input is a default
        that the caller may override, so it does not count (ONNX IR, "Graphs").
        """
        if value is None:
            return None
        if value.const is not None:
            return None if value.is_input and self.extra.ir_version >= 4 else value.const
        node = value.producer
        if node is not None and node.op_type == "Constant" and normalize_domain(node.domain) == "":
            return _constant_tensor(node)
        return None

    def fresh_name(self, hint: str) -> str:
        """A value or node name that the model doesn't use yet, reserved from now on."""
        if self._names is None:
            self._names = set(self._all_names())
        name, count = hint, self._suffixes.get(hint, 0)
        while name in self._names:
            count += 1
            name = f"{hint}_{count}"
        self._suffixes[hint] = count
        self._names.add(name)
        return name

    def separate_names(self) -> None:
        """Give a value of a subgraph a name of its own where another value has its name, too.

        Names are unique along a path of nested graphs only, so that the branches of an If may
        use the same ones (ONNX IR, "Names Within a Graph"); what is noted by name needs to tell
        them apart. Equal models get equal names.
        """
        seen: set[str] = set()
        for graph in self.graph.all_graphs():
            for value in graph.values():
                if value.name in seen:
                    value.name = self.fresh_name(value.name)
                    value.info = None
                seen.add(value.name)
            graph.initializers = {value.name: value for value in graph.initializers.values()}

    def _repr_html_(self) -> str:
        """Inputs, outputs and what the model is made of, for notebooks."""
        counts = Counter(node.op_type for node in self.all_nodes())
        operators = ", ".join(f"{n} {count}" for n, count in counts.most_common())
        constants = [v.const for v in self.graph.initializers.values() if v.const is not None]
        weights = sum(math.prod(constant.shape) for constant in constants)
        rows = [
            *(("input", _signature(v)) for v in self.graph.inputs if v.const is None),
            *(("output", _signature(v)) for v in self.graph.outputs),
            ("operators", f"{counts.total():,}: {operators}"),
            ("initializers", f"{len(self.graph.initializers):,} with {weights:,} elements"),
            ("opset", ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in self.opsets.items())),
        ]
        cells = "".join(
            f'<tr><th style="text-align: left">{name}</th>'
            f'<td style="text-align: left">{escape(printable(text))}</td></tr>'
            for name, text in rows
        )
        title = self.path.name if self.path is not None else self.graph.name
        return f"<table><caption>{escape(printable(title))}</caption><tbody>{cells}</tbody></table>"

    def _all_names(self) -> Iterator[str]:
        for graph in self.all_graphs():
            for value in graph.values():
                yield value.name
            for node in graph.nodes:
                yield node.name

    def all_graphs(self) -> Iterator[Graph]:
        yield from self.graph.all_graphs()
        for function in self.functions.values():
            yield from function.graph.all_graphs()

    def all_nodes(self) -> Iterator[Node]:
        for graph in self.all_graphs():
            yield from graph.nodes

    def clone(self) -> Model:
        """An independent copy; constants, being immutable, are shared."""
        functions = [Function(Copier().graph(f.graph), f.extra) for f in self.functions.values()]
        extra = ModelProto()
        extra.CopyFrom(self.extra)
        return Model(Copier().graph(self.graph), extra, functions, self.path)


def _signature(value: Value) -> str:
    """A value's name, type and shape."""
    tensor = tensor_type(value.type)
    if tensor is None:
        return f"{value.name}: no tensor"
    kind = TensorProto.DataType.Name(value.dtype).lower()
    shape = "?" if value.shape is None else ", ".join(str(s or "?") for s in value.shape)
    return f"{value.name}: {kind}[{shape}]"


def _constant_tensor(node: Node) -> Tensor | None:
    """The tensor of a Constant node in any of its forms (ONNX operator Constant)."""
    for name, attribute in node.attributes.items():
        if attribute.proto.ref_attr_name:
            return None
        if name == "value":
            return attribute.tensor or Tensor.from_proto(attribute.proto.t)
        if name == "sparse_value":
            return Tensor.from_sparse(attribute.proto.sparse_tensor)
        if name in ("value_float", "value_floats"):
            return Tensor.from_array(np.asarray(attribute.value, np.float32))
        if name in ("value_int", "value_ints"):
            return Tensor.from_array(np.asarray(attribute.value, np.int64))
        if name in ("value_string", "value_strings"):
            return Tensor.from_array(np.asarray(attribute.value, object), TensorProto.STRING)
    return None
