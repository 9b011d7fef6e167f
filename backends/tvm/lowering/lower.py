"""Lowering a model to a plan: a rule for each node in order, then fusion."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar

import numpy as np

from ....ir.errors import UnsupportedError
from ....ir.graph import Node, Value, outer_reads, type_shape
from ....ir.infer import blamed, infer_node
from ....ir.model import Model
from ....ir.stand_ins import REQUIRE
from ....ir.symbolic.analysis import Admitted
from ....ir.tensor import Tensor as Constants
from ..errors import UnsupportedNodesError
from ..functions.tables import use_tables
from ..graph import sequences
from ..graph.expand import RequiredRange
from ..graph.loops import LoopBody, is_branching, is_loop
from ..graph.open_sizes import OpenSizes, follow_sizes
from ..graph.prepare import Prepared, choose_branches, prepare
from ..plan.caches import hold_caches
from ..plan.fuse import fuse
from ..plan.operations import ElementwiseOp, LoopsOp, Plan
from ..plan.programs import Program
from ..plan.sizes import OpenSizeError, is_open, stand_in
from ..plan.tensors import PlanTensor, View
from ..targets import Target
from ..tensorir.builder import KernelBuilder, load
from ..tensorir.types import PrimFunc
from . import (
    convolution,
    convolution_transpose,
    elementwise,
    integer,
    matmul,
    pooling,
    recurrent,
    resize,
    rows,
    shapes,
)
from .branches import lower_branches
from .context import Constant, Lowering, Stored
from .loop import lower_loop
from .loops import RULES as LOOPS
from .loops import key
from .loops.base import OperatorCall, to, within
from .loops.expectations import expect, require
from .loops.operands import check_operands
from .loops.sizes import known_contents, require_told
from .phases import part_phases

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

RULES: dict[str, Callable[[Lowering, Node], bool]] = {
    **elementwise.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **matmul.RULES,
    **integer.RULES,
    **rows.RULES,
    **recurrent.RULES,
    **convolution_transpose.RULES,
    **shapes.RULES,
    **resize.RULES,
}
"""Fast rules by the operators' `key`; each may leave a node to plain loops."""

OPEN_RULES = frozenset(
    name
    for family in (
        elementwise,
        shapes,
        rows,
        matmul,
        recurrent,
        convolution,
        convolution_transpose,
        pooling,
        resize,
        integer,
    )
    for name in family.RULES
)
"""Operators whose fast rule also takes sizes that only a run fixes."""

NOT_LOWERED = {
    "Constant": "constants are folded before",
    **dict.fromkeys(
        sequences.RULES.keys() - {"If", "Identity"},
        "which tensors its sequence or optional holds is known only at run time",
    ),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"),
        "compiled models have no strings",
    ),
    "ImageDecoder": "it decodes files, for which compiled models have no library",
}
"""Operators that have been considered and aren't lowered, and why."""


def lower(
    model: Model,
    target: Target,
    admitted: Mapping[str, Admitted] | None = None,
    before_fusion: Callable[[Plan], None] | None = None,
    *,
    declared_sizes: bool = False,
    plain: AbstractSet[str] = frozenset(),
) -> Plan:
    """The fused plan of a model whose shapes are inferred.

    `admitted` says of sizes that inputs leave open, by name, what they may be; any from 1 on
    without, and 0 where that is defined. `before_fusion` may change the plan when every node has
    its operations. With `declared_sizes` operands lead to the declared sizes, or a run fails. Of
    nodes whose labels are in `plain` come plain loops.
    Raises UnsupportedNodesError, naming every node that has no place in a compiled model.
    """
    written = {n.label: n.op_type for n in model.graph.nodes}
    prepared = prepare(model)
    part_phases(model)
    sizes = follow_sizes(model, admitted or {}, declared=declared_sizes)
    while sizes is not None and choose_branches(model, prepared.refused):
        sizes = follow_sizes(model, admitted or {}, declared=declared_sizes)
    lowering = Lowering(model, target, sizes, plain)
    for a, b in sizes.required if sizes is not None else ():
        lowering.require_equal(stand_in(a), stand_in(b))
    lowering.plan.operators.update((n.label, n.op_type) for n in model.graph.nodes)
    lowering.plan.operators.update(written)
    _lower_graph(lowering, prepared)
    _check_names(lowering.plan)
    if before_fusion is not None:
        before_fusion(lowering.plan)
    hold_caches(lowering.plan)
    fuse(lowering.plan)
    use_tables(lowering.plan, target)
    return lowering.plan


def _lower_body(
    outer: Lowering, body: LoopBody, prepared: Prepared, sizes: OpenSizes | None
) -> Plan:
    """The fused plan of a loop's body."""
    lowering = Lowering(body.model, outer.target, sizes, outer.plain)
    lowering.plan.operators.update((n.label, n.op_type) for n in body.model.graph.nodes)
    _lower_graph(lowering, prepared, apart=False)
    fuse(lowering.plan)
    use_tables(lowering.plan, outer.target)
    return lowering.plan


def _lower_graph(lowering: Lowering, prepared: Prepared, *, apart: bool = True) -> None:
    """Lower all nodes of a model, whose inputs and outputs become those of the plan; these are
    tensors of their own where they are to lie apart."""
    model, refused = lowering.model, prepared.refused
    failures = _Failures()
    for value in model.graph.inputs:
        if value.const is not None and model.constant(value) is not None:
            continue
        try:
            tensor = lowering.tensor(value)
        except UnsupportedError as error:
            failures.add_input(value, error)
            continue
        lowering.plan.inputs.append(tensor)
        lowering.items[value] = Stored(tensor)
        lowering.read_sizes(value, value.name)
    for node in model.graph.nodes:
        if node.outputs and all(v in prepared.held for v in node.outputs):
            continue  # it makes a sequence, whose tensors others make
        if node in refused:
            failures.add(node, refused[node], lowering)
        elif not failures.reach(node, lowering):
            step = functools.partial(_lower_within, lowering, node, prepared)
            failures.watch(node, lowering, step)
    failures.check()
    for value in model.graph.outputs:
        held = prepared.held.get(value)
        if held is None:
            _add_output(lowering, value, value.name, apart=apart)
        elif held.is_sequence or held.is_absent:
            names = [f"{value.name}[{index}]" for index in range(len(held.elements))]
            for element, name in zip(held.elements, names, strict=True):
                _add_output(lowering, element, name, apart=apart)
            lowering.plan.sequences[value.name] = None if held.is_absent else names
        else:
            _add_output(lowering, held.elements[0], value.name, apart=apart)


class _Failures:
    """Nodes that can't be lowered, so that one error names them all."""

    def __init__(self) -> None:
        self.reasons: dict[Node, str] = {}
        self.dependents: list[Node] = []
        self.inputs: list[str] = []
        self.unknown: set[Value] = set()

    def add_input(self, value: Value, error: UnsupportedError) -> None:
        self.inputs.append(str(error))
        self.unknown.add(value)

    def watch(self, node: Node, lowering: Lowering, step: Callable[[], None]) -> None:
        """Run a step that lowers a node."""
        try:
            step()
        except UnsupportedError as error:
            self.add(node, str(error), lowering)

    def add(self, node: Node, reason: str, lowering: Lowering) -> None:
        """Note a failure."""
        log.debug("%s (%s): refused: %s", node.label, node.op_type, reason)
        self.reasons[node] = reason
        self._pretend(node, lowering)

    def reach(self, node: Node, lowering: Lowering) -> bool:
        """Whether a node can't be lowered because of what it reads."""
        if self.unknown.isdisjoint(outer_reads(node)):
            return False
        self.dependents.append(node)
        self._pretend(node, lowering)
        return True

    def _pretend(self, node: Node, lowering: Lowering) -> None:
        """Let a node's results, where their types are known, be read as if they were there."""
        for value in node.outputs:
            if value is None or value in lowering.items:
                continue
            try:
                lowering.items[value] = Stored(lowering.tensor(value))
            except UnsupportedError:
                self.unknown.add(value)

    def check(self) -> None:
        if self.reasons or self.inputs:
            raise UnsupportedNodesError(self.reasons, self.dependents, self.inputs)


def _lower_node(lowering: Lowering, node: Node, claims: AbstractSet[Value]) -> None:
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        return
    outputs = [v for v in node.outputs if v is not None]
    if outputs and all(v in lowering.items for v in outputs):
        return  # a rule of an earlier node covered this one
    if (node.domain, node.op_type) == REQUIRE:
        _apply(require, lowering, node, OperatorCall(lowering, node))
        return
    if is_loop(node):
        _apply(lower_loop, lowering, node, lowering, node, _lower_body)
        return
    if is_branching(node):
        _apply(lower_branches, lowering, node, lowering, node, _lower_body)
        return
    name = key(node.op_type, node.domain)
    if _apply(known_contents, lowering, node, lowering, node):
        return
    _apply(require_told, lowering, node, lowering, node)
    if _is_standard(node):
        _apply(_confirm, lowering, node, lowering, node, claims)
        _apply(check_operands, lowering, node, OperatorCall(lowering, node))
    rule = None if _has_empty(lowering, node) else RULES.get(name)
    if (name not in OPEN_RULES and lowering.is_open(node)) or node.label in lowering.plain:
        rule = None
    has_windows = name in convolution.RULES or name in pooling.RULES
    if rule is not None and not has_windows and lowering.may_read_nothing(node):
        rule = None  # plain loops take operands without elements
    if rule is not None and _apply_fast(rule, lowering, node):
        log.debug("%s (%s): by %s.%s", node.label, name, rule.__module__, rule.__qualname__)
        return
    loops = LOOPS.get(name)
    if loops is None:
        why = NOT_LOWERED.get(name, "there is no lowering for this operator")
        raise UnsupportedError(f"node '{node.label}' ({name}): {why}")
    declined = ", which the rule for it declined" if rule is not None else ""
    log.debug("%s (%s): as plain loops%s", node.label, name, declined)
    _apply(loops, lowering, node, OperatorCall(lowering, node))


def _apply_fast(rule: Callable[[Lowering, Node], bool], lowering: Lowering, node: Node) -> bool:
    """Whether a fast rule takes a node; it declines where it needs to know an open size."""
    operations, items = lowering.plan.operations, lowering.items
    before = len(operations), len(items)
    try:
        with blamed(node, lowering.model, rule):
            return rule(lowering, node)
    except OpenSizeError as error:
        log.debug("%s (%s): %s", node.label, node.op_type, error)
    del operations[before[0] :]
    while len(items) > before[1]:
        items.popitem()  # the last that came
    return False


def _apply(
    rule: Callable[..., _Result], lowering: Lowering, node: Node, *arguments: object
) -> _Result:
    """What a rule makes of a node; an error that names both where it fails by itself."""
    try:
        with blamed(node, lowering.model, rule):
            return rule(*arguments)
    except OpenSizeError as error:
        raise UnsupportedError(f"node '{node.label}' ({node.op_type}): {error}") from None


def _confirm(lowering: Lowering, node: Node, claims: AbstractSet[Value]) -> None:
    """Hold declared shapes of a node's results against its operands, now or at run time."""
    claimed = [] if lowering.sizes is not None else [v for v in node.outputs if v in claims]
    if not claimed or not _has_rule(node):
        return
    shapes = [lowering.shape(v) for v in claimed if v is not None]
    constants = {
        v: Constants.from_array(np.asarray(item.array))
        for v in node.inputs
        if v is not None and isinstance(item := lowering.item(v), Constant) and item.scale is None
    }
    found = dict(zip(node.outputs, infer_node(lowering.model, node, constants), strict=True))
    if [type_shape(found[v]) for v in claimed] != shapes:
        expect(OperatorCall(lowering, node))


def _has_empty(lowering: Lowering, node: Node) -> bool:
    """Whether the node reads or defines a tensor without elements."""
    return any(v is not None and 0 in (v.shape or ()) for v in (*node.inputs, *node.outputs))


def _is_standard(node: Node) -> bool:
    return node.domain in ("", "ai.onnx")


def _has_rule(node: Node) -> bool:
    return key(node.op_type, node.domain) in {*RULES, *LOOPS}


def _lower_within(lowering: Lowering, node: Node, prepared: Prepared) -> None:
    """Lower a node, checks of what it reads first."""
    for value in [v for v in outer_reads(node) if v in prepared.bounds]:
        _require_within(lowering, value, prepared.bounds.pop(value))
    _lower_node(lowering, node, prepared.claims)
    for result in node.outputs:
        if result is not None:
            lowering.read_sizes(result, node.label)


def _require_within(lowering: Lowering, value: Value, bound: RequiredRange) -> None:
    """Let the value, from here on, be a copy that is made where its numbers are in range."""
    constant = lowering.constant(value)
    high = bound.high + sum(lowering.shape(operand)[axis] for operand, axis in bound.axes)
    if constant is not None:
        least, most = (constant.min(), constant.max()) if constant.size else (bound.low, -1)
        is_within = bound.low <= least and (is_open(high) or most < high)
        if not is_within:
            raise UnsupportedError(
                f"node '{bound.label}' ({bound.op_type}): '{value.name}' is out of range"
            )
        lowering.require_at_most(int(most) + 1, high)
        return
    source = lowering.stored(value)
    checked = lowering.tensor(value)

    def build() -> PrimFunc:
        k = KernelBuilder()
        elements = source.elements
        size = elements if is_open(elements) else max(1, elements)  # no parameter is empty
        x, y = (k.parameter(name, (size,), source.dtype) for name in "XY")
        with k.loop(elements, "i") as i:
            number = within(k, load(x, i), bound.low, high)
            k.store(y, to(number, source.dtype), i)
        return k.finish()

    key = ("within", bound.low, high)
    lowering.add(LoopsOp(bound.label, [checked], [source], build, key))
    lowering.plan.operators[bound.label] = bound.op_type
    lowering.items[value] = Stored(checked)


def _check_names(plan: Plan) -> None:
    """Raise UnsupportedError where two outputs have one name, as those of a sequence may."""
    names = [*plan.sequences, *(name for name, _ in plan.outputs)]
    if plan.sequences and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UnsupportedError(f"two outputs are called '{twice}'")


def _add_output(lowering: Lowering, value: Value, name: str, *, apart: bool) -> None:
    item = lowering.item(value)
    tensor = lowering.stored(value)
    others = [tensor for _, tensor in lowering.plan.outputs]
    if not apart:
        lowering.plan.outputs.append((name, tensor))
        return
    if isinstance(item, Constant) or tensor in lowering.plan.inputs or tensor in others:
        tensor = _copy_of(lowering, tensor)
    lowering.plan.outputs.append((name, tensor))


def _copy_of(lowering: Lowering, tensor: PlanTensor) -> PlanTensor:
    copy = PlanTensor(tensor.name + "/output", tensor.dtype, tensor.shape)
    lowering.add(ElementwiseOp(tensor.name, [copy], [View.of(tensor)], Program((tensor.dtype,))))
    return copy
