"""Text as models: the inverse of the printer, by recursive descent."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

import numpy as np
from google.protobuf.message import DecodeError
from onnx import (
    AttributeProto,
    FunctionProto,
    ModelProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
    helper,
)

from ..element_count import element_count
from ..errors import ModelError
from ..graph import Attribute, Dimension, Graph, Node, Value, make_tensor_type
from ..model import Function, Model
from ..tensor import Tensor
from .tokens import TYPE_NUMBERS

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<comment>//[^\n]*)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<number>-?(?:inf|nan|\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![A-Za-z0-9_./:-]))
    | (?P<word>[A-Za-z0-9_/][A-Za-z0-9_./-]*(?::(?!:)[A-Za-z0-9_./-]+)*)
    | (?P<mark>->|::|\.\.\.|[%@?*(){}\[\]<>=,:])
    )""",
    re.VERBOSE,
)

T = TypeVar("T")

Literal = bytes | int | float | bool
"""A string, a number or a truth value, as texts have them."""


def parse_model(text: str) -> Model:
    """The model that `text` describes. Raises ModelError, with the line, where it is none.

    Text in which constants are left out (`...`) describes no whole model.
    """
    parser = _TextParser(text)
    try:
        return parser.model()
    except _TextError:
        raise
    except RecursionError:
        reason = "nested too deeply"
    except (ModelError, DecodeError, OverflowError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())  # of numpy, or of a proto's fields
    parser.position = max(0, parser.position - 1)  # what was taken last
    raise parser.mistake(reason)


class _TextError(ModelError):
    """A mistake whose line is known."""


class _TextScope:
    """Names visible in a graph of the text: its own, then those of the graphs around it."""

    def __init__(self, outer: _TextScope | None = None) -> None:
        self.values: dict[str, Value] = {}
        self.outer = outer

    def find(self, name: str) -> Value | None:
        scope: _TextScope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return None


class _TextParser:
    """Reads tokens of the text form from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        position = 0
        end = len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                position += len(text[position:]) - len(text[position:].lstrip())
                self._fail_at(position, f"unexpected {text[position]!r}")
            kind = str(match.lastgroup)
            if kind != "comment":
                self.tokens.append((kind, match.group(kind), match.start(kind)))
            position = match.end()
        self.tokens.append(("end", "", end))
        self.position = 0

    # --- tokens --------------------------------------------------------------------

    def mistake(self, message: str, at: int | None = None) -> _TextError:
        """An error at the next token, or at a position in the text."""
        position = self.tokens[self.position][2] if at is None else at
        line = self.text.count("\n", 0, position) + 1
        return _TextError(f"text form, line {line}: {message}")

    def _fail_at(self, position: int, message: str) -> NoReturn:
        raise self.mistake(message, position)

    def fail(self, message: str) -> NoReturn:
        raise self.mistake(message)

    def peek(self, *texts: str) -> bool:
        kind, text, _ = self.tokens[self.position]
        return kind in ("mark", "word", "number") and text in texts

    def take(self) -> tuple[str, str]:
        kind, text, _ = self.tokens[self.position]
        if kind == "end":
            self.fail("the text ends too early")
        self.position += 1
        return kind, text

    def accept(self, text: str) -> bool:
        if self.peek(text):
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected '{text}', found '{self.tokens[self.position][1] or 'the end'}'")

    def name(self) -> str:
        kind, text = self.take()
        if kind == "string":
            return self.unquote(text)
        if kind not in ("word", "number"):
            self.position -= 1
            self.fail(f"expected a name, found '{text}'")
        return text

    def string(self) -> str:
        kind, text = self.take()
        if kind != "string":
            self.position -= 1
            self.fail(f"expected a string, found '{text}'")
        return self.unquote(text)

    def unquote(self, text: str) -> str:
        try:
            return str(json.loads(text, strict=False))
        except ValueError:
            self.fail(f"malformed string {text}")

    def integer(self) -> int:
        _, text = self.take()
        try:
            return int(text)
        except ValueError:
            self.position -= 1
            self.fail(f"expected an integer, found '{text}'")

    def list_of(self, item: Callable[[], T], close: str) -> list[T]:
        items: list[T] = []
        while not self.peek(close):
            items.append(item())
            if not self.peek(close):
                self.expect(",")
        self.expect(close)
        return items

    # --- models --------------------------------------------------------------------

    def model(self) -> Model:
        self.expect("model")
        self.expect("<")
        extra = ModelProto()
        self.list_of(lambda: self._model_field(extra), ">")
        graph = self.graph(None)
        functions = []
        while self.peek("function"):
            functions.append(self.function())
        if self.tokens[self.position][0] != "end":
            self.fail(f"unexpected '{self.tokens[self.position][1]}'")
        return Model(graph, extra, functions)

    def _model_field(self, extra: ModelProto) -> None:
        field = self.name()
        self.expect("=")
        if field in ("ir_version", "model_version"):
            setattr(extra, field, self.integer())
        elif field == "opset":
            for domain, version in self._opsets():
                extra.opset_import.add(domain=domain, version=version)
        elif field == "metadata":
            self.expect("[")
            for key, value in self.list_of(self._entry, "]"):
                extra.metadata_props.add(key=key, value=value)
        elif field in ("producer_name", "producer_version", "domain", "doc_string"):
            setattr(extra, field, self.string())
        else:
            self.fail(f"a model has no '{field}'")

    def _entry(self) -> tuple[str, str]:
        key = self.string()
        self.expect("=")
        return key, self.string()

    def _opsets(self) -> list[tuple[str, int]]:
        def entry() -> tuple[str, int]:
            domain = self.string()
            self.expect("=")
            return domain, self.integer()

        self.expect("[")
        return self.list_of(entry, "]")

    def function(self) -> Function:
        self.expect("function")
        extra = FunctionProto(domain=self.string())
        self.expect("::")
        extra.name = self.name()
        if self.accept("::"):
            extra.overload = self.name()
        self.expect("<")
        self.list_of(lambda: self._function_attribute(extra), ">")
        self.expect("opset")
        for domain, version in self._opsets():
            extra.opset_import.add(domain=domain, version=version)
        return Function(self._graph_rest(Graph(extra.name), _TextScope()), extra)

    def _function_attribute(self, extra: FunctionProto) -> None:
        key = self.name()
        if self.accept("="):
            extra.attribute_proto.append(self.attribute_value(key, _TextScope()).proto)
        else:
            extra.attribute.append(key)

    def graph(self, outer: _TextScope | None) -> Graph:
        self.expect("graph")
        return self._graph_rest(Graph(self.name()), _TextScope(outer))

    def _graph_rest(self, graph: Graph, scope: _TextScope) -> Graph:
        self.expect("(")
        for value in self.list_of(self._declaration, ")"):
            self._define(value, scope)
            graph.add_input(value)
        self.expect("->")
        self.expect("(")
        start = self.position
        outputs = self.list_of(self._declaration, ")")
        self.expect("{")
        while not self.accept("}"):
            if self.peek("const"):
                self._constant(graph, scope)
            else:
                graph.add_node(self.node(scope))
        for declared in outputs:
            found = scope.find(declared.name)
            if found is None:
                self._fail_at(self.tokens[start][2], f"nothing defines output '%{declared.name}'")
            found.type = declared.type if declared.type is not None else found.type
            graph.add_output(found)
        results = (v for node in graph.nodes for v in node.outputs if v is not None)
        graph.value_info += [v for v in results if v.type is not None and not v.is_graph_output]
        return graph

    def _declaration(self) -> Value:
        self.expect("%")
        name = self.name()
        return Value(name, self.type() if self.accept(":") else None)

    def _define(self, value: Value, scope: _TextScope) -> None:
        if value.name in scope.values:
            self.fail(f"'%{value.name}' is defined twice")
        scope.values[value.name] = value

    def _constant(self, graph: Graph, scope: _TextScope) -> None:
        self.expect("const")
        self.expect("%")
        name = self.name()
        self.expect(":")
        tensor = self.tensor()
        value = scope.values.get(name)
        if value is not None and value.is_input and value.const is None:
            value.const = tensor
            graph.initializers[name] = value
        else:
            self._define(graph.add_initializer(name, tensor), scope)

    # --- nodes ---------------------------------------------------------------------

    def node(self, scope: _TextScope) -> Node:
        outputs = [self._output()]
        while self.accept(","):
            outputs.append(self._output())
        self.expect("=")
        domain, operator, overload = self._operator()
        label = self.name() if self.accept("@") else ""
        self.expect("(")
        inputs = self.list_of(lambda: self._input(scope), ")")
        attributes: dict[str, Attribute] = {}
        if self.accept("{"):
            attributes = dict(self.list_of(lambda: self._attribute(scope), "}"))
        if self.accept(":"):
            self._types(outputs)
        node = Node(
            operator, inputs, outputs, attributes, domain=domain, name=label, overload=overload
        )
        for body in node.subgraphs():
            body.parent = node
        for value in outputs:
            if value is not None:
                self._define(value, scope)
        return node

    def _operator(self) -> tuple[str, str, str]:
        domain, operator, overload = "", self.name(), ""
        if self.tokens[self.position - 1][0] == "string" and self.accept("::"):
            domain, operator = operator, self.name()
        if self.accept("::"):
            overload = self.name()
        return domain, operator, overload

    def _output(self) -> Value | None:
        if self.accept("_"):
            return None
        self.expect("%")
        return Value(self.name())

    def _input(self, scope: _TextScope) -> Value | None:
        if self.accept("_"):
            return None
        self.expect("%")
        name = self.name()
        value = scope.find(name)
        if value is None:
            self.position -= 1
            self.fail(f"'%{name}' is used before anything defines it")
        return value

    def _types(self, outputs: list[Value | None]) -> None:
        types = self.list_of(self.type, ")") if self.accept("(") else [self.type()]
        if len(types) != len(outputs):
            self.fail(f"{len(types)} types for {len(outputs)} results")
        for value, type_ in zip(outputs, types, strict=True):
            if value is not None:
                value.type = type_

    def _attribute(self, scope: _TextScope) -> tuple[str, Attribute]:
        key = self.name()
        self.expect("=")
        return key, self.attribute_value(key, scope)

    def attribute_value(self, key: str, scope: _TextScope) -> Attribute:
        if self.accept("@"):
            reference = self.name()
            self.expect(":")
            proto = AttributeProto(name=key, ref_attr_name=reference, type=self._kind())
            return Attribute(proto)
        if self.peek("graph"):
            return Attribute(
                AttributeProto(name=key, type=AttributeProto.GRAPH), [self.graph(scope)]
            )
        if self.accept("graphs"):
            self.expect("[")
            graphs = self.list_of(lambda: self.graph(scope), "]")
            return Attribute(AttributeProto(name=key, type=AttributeProto.GRAPHS), graphs)
        if self.accept("tensor"):
            tensor = self.tensor()
            if tensor.is_sparse:
                return Attribute(helper.make_attribute(key, tensor.to_sparse_proto("")))
            return Attribute(helper.make_attribute(key, tensor.to_proto("")))
        if self.accept("tensors"):
            self.expect("[")
            protos = [t.to_proto("") for t in self.list_of(self.tensor, "]")]
            return Attribute(AttributeProto(name=key, type=AttributeProto.TENSORS, tensors=protos))
        if self.accept("type"):
            kind = AttributeProto.TYPE_PROTO
            return Attribute(AttributeProto(name=key, type=kind, tp=self.type()))
        if self.accept("proto"):
            return Attribute(AttributeProto.FromString(self._bytes()))
        if self.accept("empty"):
            return Attribute(AttributeProto(name=key, type=self._kind()))
        return self._plain_attribute(key)

    def _plain_attribute(self, key: str) -> Attribute:
        start = self.tokens[self.position][2]
        value = self._literals()
        if value == []:
            self._fail_at(start, "an empty list has no type; write 'empty ints', say")
        try:
            return Attribute(helper.make_attribute(key, value))
        except (TypeError, ValueError, OverflowError):
            self._fail_at(start, f"'{key}' has values of different types, or out of range")

    def _kind(self) -> AttributeProto.AttributeType:
        word = self.name()
        kinds: dict[str, AttributeProto.AttributeType] = dict(AttributeProto.AttributeType.items())
        if word.upper() not in kinds:
            self.fail(f"there is no attribute type '{word}'")
        return kinds[word.upper()]

    def _literals(self) -> Literal | list[Literal]:
        if self.accept("["):
            return self.list_of(self._literal, "]")
        return self._literal()

    def _literal(self) -> Literal:
        kind, text = self.take()
        if kind == "string":
            return self.unquote(text).encode("utf-8", "surrogateescape")
        if kind == "number":
            return int(text) if text.lstrip("-").isdigit() else float(text)
        if text not in ("true", "false"):
            self.position -= 1
            self.fail(f"expected a value, found '{text}'")
        return text == "true"

    # --- types and tensors ---------------------------------------------------------

    def type(self) -> TypeProto | None:
        if self.accept("?"):
            return None
        if self.accept("seq"):
            return helper.make_sequence_type_proto(self._inner())
        if self.accept("optional"):
            return helper.make_optional_type_proto(self._inner())
        if self.accept("map"):
            self.expect("(")
            key = self._element_type()
            self.expect(",")
            value = self.type()
            self.expect(")")
            return helper.make_map_type_proto(key, value or TypeProto())
        sparse = self.accept("sparse")
        dtype = self._element_type()
        self.expect("[")
        shape: list[Dimension] | None = None
        if self.accept("*"):
            self.expect("]")
        else:
            shape = self.list_of(self._size, "]")
        if sparse:
            return helper.make_sparse_tensor_type_proto(dtype, shape)
        return make_tensor_type(dtype, shape)

    def _inner(self) -> TypeProto:
        self.expect("(")
        inner = self.type()
        self.expect(")")
        return inner or TypeProto()

    def _element_type(self) -> int:
        word = self.name()
        if word == "undefined":
            return int(TensorProto.UNDEFINED)
        if word not in TYPE_NUMBERS:
            self.position -= 1
            self.fail(f"there is no element type '{word}'")
        return TYPE_NUMBERS[word]

    def _size(self) -> Dimension:
        if self.accept("?"):
            return None
        kind, text = self.take()
        if kind == "string":
            return self.unquote(text)
        return int(text) if kind == "number" else text

    def tensor(self) -> Tensor:
        sparse = self.accept("sparse")
        dtype = self._element_type()
        self.expect("[")
        shape = self.list_of(self.integer, "]")
        self.expect("=")
        if self.accept("..."):
            self.position -= 1
            self.fail("the constant's elements are left out; print the model with all of them")
        if self.accept("base64"):
            data = self._bytes()
            if sparse:
                return Tensor.from_sparse(SparseTensorProto.FromString(data))
            return Tensor.from_proto(TensorProto(data_type=dtype, dims=shape, raw_data=data))
        start = self.tokens[self.position][2]
        elements = self._flat()
        if len(elements) != element_count(shape):
            self._fail_at(start, f"{len(elements)} elements do not fill the shape {shape}")
        if dtype == TensorProto.STRING:
            strings = np.array(elements, dtype=object).reshape(shape)
            return Tensor.from_array(strings, dtype)
        try:
            array = np.array(elements, helper.tensor_dtype_to_np_dtype(dtype)).reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            self._fail_at(start, f"malformed elements ({error})")
        return Tensor.from_array(array, dtype)

    def _flat(self) -> list[Literal]:
        if self.accept("["):
            return [x for part in self.list_of(self._flat, "]") for x in part]
        return [self._literal()]

    def _bytes(self) -> bytes:
        try:
            return base64.b64decode(self.string(), validate=True)
        except ValueError:
            self.fail("malformed base64")
