"""The backend cases with an operand of another type, or of none, each run in a child process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence

from onnx import ModelProto, ValueInfoProto, helper

from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto

from .backend_cases import generated_cases

_MOST_NODES = 6
"""More have the cases that write an operator's definition out."""


def _declarations(name: str) -> Iterator[ValueInfoProto]:
    """An input of that name with every kind of type, of which little or nothing is known."""
    yield ValueInfoProto(name=name)
    for kind in ("tensor_type", "sequence_type", "optional_type", "map_type"):
        empty = ValueInfoProto(name=name)
        getattr(empty.type, kind).SetInParent()
        yield empty
    for dtype, shape in ((1, None), (1, []), (1, ["a", "b"]), (7, [1]), (7, [0])):
        yield helper.make_tensor_value_info(name, dtype, shape)
    yield helper.make_tensor_sequence_value_info(name, 1, None)


def models(kinds: int | None = None) -> Iterator[tuple[str, ModelProto]]:
    """A case of each operator and number of operands, with each input declared anew; and left out.

    `kinds`: how many of the declarations.
    """
    seen = set()
    for case in generated_cases():
        graph = case.model.graph
        key = frozenset((n.domain, n.op_type, len(n.input)) for n in graph.node)
        if key in seen or len(graph.node) > _MOST_NODES:
            continue
        seen.add(key)
        for index, given in enumerate(graph.input):
            for number, declaration in enumerate(_declarations(given.name)):
                if kinds is not None and number >= kinds:
                    break
                proto = _without_results(case.model)
                proto.graph.input[index].CopyFrom(declaration)
                yield f"{case.name}, input {index}, declaration {number}", proto
        for node in range(len(graph.node)):
            if graph.node[node].input:
                proto = _without_results(case.model)
                proto.graph.node[node].input[0] = ""
                yield f"{case.name}, node {node}, no first input", proto


def _without_results(model: ModelProto) -> ModelProto:
    """A copy that declares no types of outputs."""
    proto = ModelProto()
    proto.CopyFrom(model)
    for output in proto.graph.output:
        output.ClearField("type")
    return proto


def failures(cases: Sequence[tuple[str, ModelProto]], step: Callable[[Model], object]) -> list[str]:
    """Cases at which a step ends the process, hangs, or fails with other than its own errors."""
    found = []
    while cases:
        done, messages, status = _child(cases, step)
        found += messages
        if status == 0:
            break
        found.append(f"{cases[done][0]}: ended with {status}")
        cases = cases[done + 1 :]
    return found


def _child(
    cases: Sequence[tuple[str, ModelProto]], step: Callable[[Model], object]
) -> tuple[int, list[str], int]:
    """Run cases in a child; how many are done, what it reports, its status."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with os.fdopen(writer, "w") as report:
            for name, proto in cases:
                signal.alarm(60)
                try:
                    step(from_proto(proto))
                except SecateurError:
                    pass
                except BaseException as error:
                    print(f"! {name}: {type(error).__name__}: {error}", file=report)
                print(".", file=report, flush=True)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as report:
        lines = report.read().splitlines()
    _, status = os.waitpid(pid, 0)
    return lines.count("."), [line[2:] for line in lines if line.startswith("! ")], status
