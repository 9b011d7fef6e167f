"""Operators with two lowerings: what the fast rule accepts against the plain loops.

Each operator is drawn and taken from ONNX's cases: as it is, with all operands but the first
constant, and in float64. All parts are compiled twice, the second time without fast rules.
Fast rules stay beside loops only where they decline something that loops take.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from onnx import TensorProto, helper, numpy_helper

from secateur.backends.tvm.lowering import lower
from secateur.backends.tvm.lowering.elementwise import POWERS
from secateur.backends.tvm.lowering.loops import RULES as LOOPS
from secateur.backends.tvm.lowering.lower import RULES, Lowering
from secateur.ir.graph import Node
from secateur.ir.ops import Trait, with_trait
from secateur.ir.stand_ins import INTERNAL
from tests.backend_cases import generated_cases
from tests.backends.tvm.joined import Joined, Part, compile_parts, frozen, part_of

from .random_builder import Builder
from .random_graphs import Graph, available, compare, graph_of, grow
from .random_nodes import ENTRIES
from .test_every_operator import assert_close

PAIRS = sorted(RULES.keys() & LOOPS.keys())
OPSETS = (22, 18, 13)

ONLY_CONSTANTS = {"Dropout", "DynamicQuantizeLinear", "Identity", *with_trait(Trait.IN_ORDER)}
"""Operators whose elements stay where they are, whatever their type, or that take one type: their
fast rule leaves only constants and tensors without elements to the plain one."""

NO_PART = {"SimplifiedLayerNormalization": "ONNX has no case of it; see test_contrib.py"}
"""Operators without parts, and why."""

RARE = {"LayerNormalization": 6}
"""Operators few of whose drawn forms are fast: how many times as many are drawn."""

Record = dict[str, set[bool]]


def test_there_is_a_plain_one_for_every_fast_one() -> None:
    """But of operators that the compiler makes itself, where their kernel takes them."""
    own = {op_type for op_type in RULES if op_type.startswith(INTERNAL)}
    assert RULES.keys() - own <= LOOPS.keys()


def test_there_is_one_fast_rule_for_an_operator() -> None:
    """Tables of two files that both have an operator would hide a rule."""
    modules = [module for module in vars(lower).values() if isinstance(module, ModuleType)]
    modules = [module for module in modules if module.__package__ == lower.__package__]
    tables = [module.RULES for module in modules if "RULES" in vars(module)]
    counts = Counter(op_type for table in tables for op_type in table)
    assert counts.keys() == RULES.keys()
    assert set(counts.values()) == {1}


# --- parts ---------------------------------------------------------------------------------


def parts(cases: int, draws: int) -> tuple[list[Part], dict[str, Graph]]:
    """Parts of all pairs, and the graphs of those that are drawn, by name."""
    found: list[Part] = []
    count: dict[str, int] = defaultdict(int)
    for case in generated_cases():
        nodes = case.model.graph.node
        if not case.data or len(nodes) != 1 or nodes[0].op_type not in PAIRS:
            continue
        if count[nodes[0].op_type] >= cases:
            continue
        arrays = [numpy_helper.to_array(x) if isinstance(x, TensorProto) else x
                  for x in case.data[0][0]]  # fmt: skip
        part = part_of(case.name, case.model, arrays)
        if (
            part is not None
            and part.feeds
            and all(x.dtype.kind in "fiub" for x in part.feeds.values())
        ):
            count[nodes[0].op_type] += 1
            found += variants(part)
    found += map(power, POWERS)
    found += of_integers()
    graphs = {}
    for op_type in PAIRS:
        for number in range(draws * RARE.get(op_type, 1)):
            graph = drawn(op_type, number)
            if graph is not None:
                graphs[graph.part.name] = graph
                found.append(graph.part)
    return found, graphs


def power(exponent: float) -> Part:
    """Pow by one of the exponents that its fast rule knows."""
    x = np.float32([0.0, -0.0, 0.3, 1.0, 2.5, -1.5, 1e20, 1e-20, np.inf, -np.inf, np.nan])
    graph = helper.make_graph(
        [helper.make_node("Pow", ["x", "e"], ["y"])],
        "power",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [numpy_helper.from_array(np.float32(exponent), "e")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Part(f"power {exponent}", model, {"x": x})


def of_one_node(
    op_type: str, feeds: dict[str, Any], results: dict[str, int], **attributes: Any
) -> Part:
    """A model of one node; `results` are its outputs' element types."""
    graph = helper.make_graph(
        [helper.make_node(op_type, [*feeds], [*results], **attributes)],
        op_type,
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in feeds.items()
        ],
        [helper.make_tensor_value_info(n, dtype, None) for n, dtype in results.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Part(f"{op_type} {[(x.dtype.name, x.shape) for x in feeds.values()]}", model, feeds)


def of_integers() -> Iterator[Part]:
    """What ONNX's cases lack: integers as floats with the extremes among them, products with a
    vector."""
    random = np.random.default_rng(0)
    for dtype in ("int8", "uint8", "int16", "int32"):
        limits = np.iinfo(dtype)
        x = random.integers(limits.min, limits.max, 67, dtype, endpoint=True)
        x[:3] = limits.min, limits.max, 0
        yield of_one_node("Cast", {"x": x}, {"y": TensorProto.FLOAT}, to=TensorProto.FLOAT)
    matrix, vector = (random.integers(0, 255, shape, np.uint8) for shape in ((5, 7), (7,)))
    yield of_one_node("MatMulInteger", {"a": matrix, "b": vector}, {"y": TensorProto.INT32})


def variants(part: Part) -> Iterator[Part]:
    yield part
    if len(part.feeds) > 1:
        yield frozen(part)
    if any(x.dtype == np.float32 for x in part.feeds.values()):
        for dtype in ("float64", "bool"):
            other = retyped(part, dtype)
            if other is not None:
                yield other


def retyped(part: Part, dtype: str) -> Part | None:
    """With another type in the place of float32, where the operator has that."""
    model = onnx.ModelProto()
    model.CopyFrom(part.model)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return None
    feeds = {n: x.astype(dtype) if x.dtype == np.float32 else x for n, x in part.feeds.items()}
    return Part(f"{part.name}, {dtype}", model, feeds)


def drawn(op_type: str, number: int) -> Graph | None:
    """A graph of little more than one node, by the operator's entry."""
    random = np.random.default_rng([zlib.crc32(op_type.encode()), number])
    opset = OPSETS[number % len(OPSETS)]
    if op_type not in ENTRIES or op_type not in available(opset):
        return None
    builder = Builder(random, opset, batch=False)
    for _ in range(50):
        if grow(builder, op_type):
            made = {o for node in builder.nodes for o in node.output}
            outputs = [v for v in builder.values if v.name in made]
            name = f"drawn {op_type} {number}"
            return graph_of(builder, builder.nodes, builder.inputs, outputs, name)
    return None


# --- comparing -----------------------------------------------------------------------------


def recording(record: Record) -> dict[str, Callable[[Lowering, Node], bool]]:
    """The fast rules, which note what they answer."""

    def noted(op_type: str) -> Callable[[Lowering, Node], bool]:
        def rule(lowering: Lowering, node: Node) -> bool:
            answer = RULES[op_type](lowering, node)
            record[op_type].add(answer)
            return answer

        return rule

    return {op_type: noted(op_type) for op_type in RULES}


@dataclasses.dataclass
class Both:
    """Artifacts of the same parts, with and without fast rules, and what these answered."""

    graphs: dict[str, Graph]
    fast: list[Joined]
    plain: list[Joined]
    record: Record


def compile_both(folder: Path, monkeypatch: pytest.MonkeyPatch, cases: int, draws: int) -> Both:
    chosen, graphs = parts(cases, draws)
    record: Record = defaultdict(set)
    made = {}
    for kind, rules in (("fast", recording(record)), ("plain", {})):
        monkeypatch.setattr(lower, "RULES", rules)
        refused: dict[str, str] = {}
        (folder / kind).mkdir()
        made[kind] = list(compile_parts(chosen, folder / kind, refused=refused))
        chosen = [part for part in chosen if part.name not in refused]
        assert len(refused) < 0.1 * len(chosen), refused
    return Both(graphs, made["fast"], made["plain"], record)


def results(artifacts: list[Joined]) -> dict[str, dict[str, Any]]:
    found = {}
    for joined in artifacts:
        outputs = joined.run({prefix: part.feeds for prefix, part in joined.parts.items()})
        found.update({part.name: outputs[prefix] for prefix, part in joined.parts.items()})
    return found


def check(both: Both) -> Record:
    fast, plain = results(both.fast), results(both.plain)
    operators = {p.name: p.operators for j in both.fast for p in j.parts.values()}
    assert plain.keys() <= fast.keys()
    problems = []
    for name, wanted in plain.items():
        graph = both.graphs.get(name)
        values = {} if graph is None else {v.name: v for v in graph.outputs}
        for output, array in wanted.items():
            if output in values:
                problem = compare(values[output], fast[name][output], array)
                problems += [f"{name}: {problem}"] if problem else []
                continue
            try:
                assert_close(fast[name][output], array, f"{name}: {output}", operators[name])
            except AssertionError as error:
                problems.append(str(error))
    assert not problems, "\n".join(problems)
    return both.record


def check_answers(record: Record) -> None:
    """That each fast rule has accepted something, and declined something."""
    accepted = {op for op, answers in record.items() if True in answers}
    declined = {op for op, answers in record.items() if False in answers}
    assert set(PAIRS) - accepted == NO_PART.keys()
    assert set(PAIRS) - declined - NO_PART.keys() <= ONLY_CONSTANTS


def test_fast_rules_compute_what_plain_loops_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(compile_both(tmp_path, monkeypatch, cases=1, draws=0))


@pytest.mark.slow
def test_fast_rules_compute_what_plain_loops_do_in_all_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_answers(check(compile_both(tmp_path, monkeypatch, cases=4, draws=3)))
