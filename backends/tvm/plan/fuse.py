"""Fusion: elementwise operations move into the operations that produce their operands."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from .copies import absorb_copies
from .operations import BlockProductOp, ElementwiseOp, Fused, MatMulOp, Plan, ProductOp, RowsOp
from .programs import Program, ProgramBuilder, compose, merge_operands, simplify
from .tensors import Operation, PlanTensor, View

log = logging.getLogger(__name__)


def fuse(plan: Plan) -> None:
    """Merge elementwise operations into producers that nothing else reads; then finish.

    The merged operation takes the place of the later one, so everything that it reads
    has been computed. One pass in order suffices, since each merge leaves a producer
    that the next elementwise operation may merge with.
    """
    plan.link()
    result: dict[Operation, None] = {}
    gone: set[Operation] = set()
    for op in plan.operations:
        current = op
        if isinstance(op, ElementwiseOp):
            op.views, op.program = _merge_equal(op.views, op.program)
            while isinstance(current, ElementwiseOp):
                found = _mergeable(current, gone, result)
                if found is None:
                    break
                producer, view = found
                log.debug(
                    "%s: fused into %s of %s",
                    current.label,
                    type(producer).__name__,
                    producer.label,
                )
                del result[producer]
                gone |= {producer, current}
                current = _merge(producer, current, view)
                for tensor in dict.fromkeys(current.reads()):
                    tensor.readers.append(current)
        result[current] = None
        for tensor in current.outputs:
            tensor.producer = current
    plan.operations = list(result)
    plan.link()
    absorb_copies(plan)
    for op in plan.operations:
        if isinstance(op, Fused):
            _scale_constants(op)
    plan.link()


def _mergeable(
    op: ElementwiseOp, gone: set[Operation], available: dict[Operation, None]
) -> tuple[Operation, View] | None:
    """A producer of one of the operation's operands that can absorb it, with that operand."""
    for view in op.views:
        producer = view.tensor.producer
        if producer is None or producer not in available:
            continue
        if any(r is not op and r not in gone for r in view.tensor.readers):
            continue
        if _can_merge(producer, op, view):
            return producer, view
    return None


def _can_merge(producer: Operation, op: ElementwiseOp, view: View) -> bool:
    tensor = view.tensor
    if tensor.kept or not view.is_whole:
        return False
    if view.shape != op.output.shape:
        return False
    if sum(v.tensor is tensor for v in op.views) != 1:
        return False
    if isinstance(producer, (ElementwiseOp, Fused)) and _length(producer, op) > _LONGEST:
        return False
    if isinstance(producer, ElementwiseOp):
        return True
    if not isinstance(producer, Fused):
        return False
    others = [v for v in op.views if v is not view]
    return all(v.is_whole and _fits(producer, v.tensor, op.output.shape) for v in others)


_LONGEST = 256
"""Instructions of a program: longer ones take TVM more than a share of their own."""


def _length(producer: ElementwiseOp | Fused, op: ElementwiseOp) -> int:
    return len(producer.program.instructions) + len(op.program.instructions)


def _fits(producer: Fused, tensor: PlanTensor, shape: tuple[int, ...]) -> bool:
    """Whether a kernel's epilogue can read a tensor: whole, one number, per column or channel, of
    products by constants also one number per row.

    Products of two run-time values read whatever broadcasts.
    """
    if tensor.elements == 1:
        return True
    if isinstance(producer, RowsOp) and producer.reduces:
        return False
    if tensor.shape == shape or isinstance(producer, ProductOp):
        return True
    if isinstance(producer, RowsOp):
        row = producer.extents[1]
        return producer.extents[2] == 1 and tensor.elements == row == tensor.shape[-1]
    if isinstance(producer, (BlockProductOp, MatMulOp)) and tensor.shape == (*shape[:-1], 1):
        return True
    if isinstance(producer, (BlockProductOp, MatMulOp)) or len(shape) not in (3, 4):
        return tensor.elements == shape[-1] == tensor.shape[-1]
    own = (1,) * (len(shape) - len(tensor.shape)) + tensor.shape
    if any(d != 1 for d in own[2:]) or own[1] != shape[1]:
        return False
    return own[0] in (1, shape[0]) and (tensor.const is None or own[0] == 1)


def _merge(producer: Operation, op: ElementwiseOp, view: View) -> Operation:
    """The producer with the operation's program appended, defining the latter's output."""
    position = op.views.index(view)
    if isinstance(producer, ElementwiseOp):
        program = compose(op.program, {position: producer.program})
        views = [*op.views[:position], *producer.views, *op.views[position + 1 :]]
        views, program = _merge_equal(views, program)
        return ElementwiseOp(op.label, op.outputs, views, simplify(program))
    assert isinstance(producer, Fused)
    count = len(producer.operands)
    others = [v.tensor for i, v in enumerate(op.views) if i != position]
    dtypes = [*producer.program.operands, *(t.dtype for t in others)]
    builder = ProgramBuilder(dtypes)
    inner = builder.inline(producer.program, range(count + 1))
    arguments, following = [], count + 1
    for i in range(len(op.views)):
        if i == position:
            arguments.append(inner)
        else:
            arguments.append(following)
            following += 1
    builder.inline(op.program, arguments)
    program, tensors = merge_operands(builder.build(), [None, *producer.operands, *others])
    return dataclasses.replace(
        producer,
        label=producer.label,
        outputs=op.outputs,
        operands=[t for t in tensors if t is not None],
        program=simplify(program),
    )


def _merge_equal(views: list[View], program: Program) -> tuple[list[View], Program]:
    """Let whole views of one tensor be one operand."""
    keys = [v.tensor if v.is_whole else v for v in views]
    program, distinct = merge_operands(program, keys)
    by_key = {id(k): v for k, v in zip(keys, views, strict=True)}
    return [by_key[id(k)] for k in distinct], program


def _scale_constants(op: Fused) -> None:
    """Requantization multiplies by (input scale * weight scale) / output scale: fold the latter.

    32-bit accumulators times factors below 1 are integers of 32 bits: then it is `bounded`.
    """
    instructions = list(op.program.instructions)
    for position, instruction in enumerate(instructions):
        if instruction.name != "requantize":
            continue
        index = instruction.arguments[1] - 1
        tensor = op.operands[index]
        assert tensor.const is not None
        values = (tensor.const / np.float32(instruction["scale"])).astype(np.float32)
        op.operands[index] = PlanTensor(tensor.name, "float32", tensor.shape, const=values)
        if np.abs(values).max() < 1.0:
            instructions[position] = instruction.replace(bounded=True)
    op.program = Program(op.program.operands, tuple(instructions))
    used = {a for s in op.program.instructions for a in s.arguments}
    keep = [i for i in range(len(op.operands)) if i + 1 in used]
    if len(keep) != len(op.operands):
        mapping = {0: 0, **{old + 1: new + 1 for new, old in enumerate(keep)}}
        builder = ProgramBuilder(
            [op.program.operands[0], *(op.program.operands[i + 1] for i in keep)]
        )
        positions = [mapping.get(i, 0) for i in range(len(op.program.operands))]
        builder.inline(op.program, positions)
        op.operands = [op.operands[i] for i in keep]
        op.program = builder.build()
