"""The reference executor: ONNX Runtime on the IR, for folding, calibration and checks."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from .errors import RunError, SecateurError
from .external import EMBED_LIMIT, constant_tensors
from .graph import Value
from .infer import VALUE_LIMIT
from .model import Model
from .onnx_io import save, to_proto, to_proto_without_weights
from .scratch import scratch_folder
from .tensor import Array
from .trial_process import Interface, LocalSession
from .trials import TrialSession, may_end_process


class Session:
    """A model loaded in ONNX Runtime (CPU).

    `optimize=False` runs the graph as written, so that intermediate values and
    roundings are those of the operators' definitions: what ONNX Runtime's own rewrites add
    to a comparison is then not in it. With `fast` it computes as it does by itself, which is what
    its time is measured of; else it avoids sums of bytes that may saturate, which costs it half
    of its speed, and roundings of its own. A `trial` is of a model, or of inputs, that nobody has
    run before: where it might end the process, it has another one (`ir/trials.py`).
    """

    def __init__(
        self,
        model: Model,
        *,
        optimize: bool = True,
        threads: int = 1,
        trial: bool = False,
        fast: bool = False,
    ) -> None:
        try:
            with _session_source(_with_split_outputs(model)) as source:
                self._session: LocalSession | TrialSession
                if trial and may_end_process(model):
                    self._session = TrialSession(source, optimize=optimize, threads=threads)
                else:
                    self._session = LocalSession(
                        source, optimize=optimize, threads=threads, exact=not fast
                    )
        except Exception as error:  # ONNX Runtime raises a family of unrelated types
            text = one_line(error)
            where = _where(model, text)
            raise SecateurError(f"ONNX Runtime rejects the model: {text}{where}") from None
        interface: Interface = self._session.interface
        inputs, self.output_names = interface
        self.input_names = list(inputs)
        self._halves = {name for name, kind in inputs.items() if kind == "tensor(float16)"}

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run once. Returns the named outputs, by default all.

        What is float32 and wanted in float16 is rounded.
        """
        names = list(outputs) if outputs is not None else self.output_names
        try:
            results = self._session.run(names, narrowed(feeds, self._halves))
        except Exception as error:
            raise RunError(f"ONNX Runtime failed: {one_line(error)}") from None
        return dict(zip(names, results, strict=True))


def detached(array: Array) -> Array:
    """An array that may be kept: a session's outputs are views of a block of memory that holds
    all values of its run, and goes only with the last of them."""
    return array if array.flags.owndata else array.copy()


def narrowed(feeds: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
    """Inputs, those of these names in float16 where they are float32."""
    return {
        name: array.astype(np.float16) if name in names and array.dtype == np.float32 else array
        for name, array in feeds.items()
    }


def load_problem(model: Model) -> str | None:
    """Why ONNX Runtime can't load the model, if it can't.

    Of a model with many weights only the types are looked at, where that is enough to load it.
    """
    if sum(tensor.nbytes for tensor in constant_tensors(model)) > _WEIGHTS:
        proto = to_proto_without_weights(model, VALUE_LIMIT)
        with contextlib.suppress(Exception):
            LocalSession(proto.SerializeToString(), optimize=False, threads=1)
            return None
    try:
        Session(model, optimize=False, trial=True)
    except SecateurError as error:
        return str(error)
    return None


_WEIGHTS = 2**26
"""Bytes of constants above which loading without them saves time and memory."""


def _with_split_outputs(model: Model) -> Model:
    """The model, or a copy in which no output of a Split is left out: ONNX Runtime's kernel
    writes to those, too, and ends the process."""
    if not any(n.op_type == "Split" and None in n.outputs for n in model.all_nodes()):
        return model
    copy = model.clone()
    for node in copy.all_nodes():
        if node.op_type == "Split" and None in node.outputs:
            named = [v or Value(copy.fresh_name("unused")) for v in node.outputs]
            for index, value in enumerate(named):
                value.producer, value.output_index = node, index
            node.outputs = tuple(named)
    return copy


@contextlib.contextmanager
def _session_source(model: Model) -> Iterator[bytes | str]:
    """The serialized model, or, where it has external data or is too large, a file."""
    constants = constant_tensors(model)
    if sum(t.nbytes for t in constants) > EMBED_LIMIT or any(t.is_external for t in constants):
        with scratch_folder() as folder:
            path = folder / "model.onnx"
            save(model, path)
            proto = onnx.load(path, load_external_data=False)
            _separate_weights(proto.graph)
            path.write_bytes(proto.SerializeToString())
            yield str(path)
    else:
        proto = to_proto(model)
        _separate_weights(proto.graph)
        yield proto.SerializeToString()


def _separate_weights(graph: onnx.GraphProto) -> None:
    """Give every reader of int8 weights its own, with a zero point.

    To multiply exactly, ONNX Runtime turns weights and their zero points into uint8. It makes
    a single zero point where channels have none, and stumbles over what it converted before.
    """
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _separate_weights(body)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names = {*constants, *(n for node in graph.node for n in (*node.input, *node.output))}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))

    def own(tensor: onnx.TensorProto, hint: str) -> str:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = fresh(hint)
        graph.initializer.append(copy)
        return copy.name

    def fresh(name: str) -> str:
        while name in names:
            name += "_"
        names.add(name)
        return name

    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        integers = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        scale = constants.get(node.input[1]) if integers is not None else None
        given = constants.get(node.input[2]) if len(node.input) > 2 else None
        if integers is None or scale is None or (given is None and any(node.input[2:])):
            continue
        if integers.data_type != onnx.TensorProto.INT8:
            continue
        zero = given or numpy_helper.from_array(np.zeros(tuple(scale.dims), np.int8))
        result = node.output[0]
        del node.input[2:]
        node.input.append(own(zero, f"{result}.zero_point"))
        if len(readers[integers.name]) > 1:
            node.input[0] = own(integers, f"{result}.integers")
        for reader, position in readers.get(result, [])[1:]:
            other = onnx.NodeProto()
            other.CopyFrom(node)
            other.name = ""
            other.input[0] = own(integers, f"{result}.integers")
            other.input[2] = own(zero, f"{result}.zero_point")
            other.output[0] = reader.input[position] = fresh(f"{result}.copy")
            nodes.append(other)
    if len(nodes) > len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _where(model: Model, text: str) -> str:
    """The first node that `text` may be about, if it names an operator and no node."""
    labels = [node.label for node in model.all_nodes() if f"{node.op_type}(" in text]
    return f" (node '{labels[0]}')" if labels and not any(x in text for x in labels) else ""


def one_line(error: Exception) -> str:
    """An exception's text on one line, without ONNX Runtime's source locations."""
    text = " ".join(str(error).split())
    return text.split(" : ", 2)[-1][:400] if text.startswith("[ONNXRuntimeError]") else text[:400]
