"""What an artifact says of itself: its target and limits, its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import onnx

from ....ir.dependencies.batch import Batch
from ....ir.graph import Node, Value
from ....ir.model import Model
from ..faults import LIMITS
from ..plan.operations import Plan
from ..plan.sizes import shown
from ..plan.tensors import PlanTensor
from ..targets import Target
from .cpu_features import required_flags

METADATA_VERSION = 1

Ends = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Name, element type and shape of every input and of every output."""


def with_samples(batch: Batch) -> set[str]:
    """Names of the inputs that have samples along their first axis, and of the outputs that
    have a piece for each of them there: to be asked before lowering replaces values."""
    return {v.name for v in (*batch.inputs, *batch.outputs)} if batch.is_proven else set()


def metadata_of(interface: Ends, target: Target, samples: Set[str]) -> dict[str, Any]:
    """What an artifact says of itself; shapes are those of one sample, `batched` says which
    inputs and outputs are among `samples`."""
    inputs, outputs = interface
    for entry in (*inputs, *outputs):
        entry["batched"] = entry["name"] in samples
    return {
        "version": METADATA_VERSION,
        "target": target.name,
        "cpu_flags": sorted(frozenset.intersection(*map(required_flags, target.levels))),
        "small": target.small,
        "limits": LIMITS,
        "inputs": inputs,
        "outputs": outputs,
    }


def library_interface(plan: Plan, quantized: Mapping[str, dict[str, Any]]) -> Ends:
    def describe(name: str, tensor: PlanTensor, shape: Sequence[int]) -> dict[str, Any]:
        sizes = [d if isinstance(d, int) else shown(d) for d in shape]
        fields = {"name": name, "dtype": tensor.dtype, "shape": sizes}
        return {**fields, **quantized.get(name, {})}

    outputs = zip(plan.outputs, plan.output_shapes(), strict=True)
    return (
        [describe(t.name, t, t.shape) for t in plan.inputs],
        [describe(name, tensor, shape) for (name, tensor), shape in outputs],
    )


def caches_of(plan: Plan) -> list[dict[str, Any]]:
    """Inputs that outputs continue, by their names, each with the axis along which it grows."""
    names = {tensor: name for name, tensor in plan.outputs}
    return [
        {"input": cache.past.name, "output": names[cache.tensor], "axis": cache.axis}
        for cache in plan.caches
    ]


def quantized_ends(model: Model) -> dict[str, dict[str, Any]]:
    """Scale and zero point of the inputs and outputs that hold quantized numbers."""
    found = {}
    for value in model.graph.inputs:
        nodes = value.users
        if nodes and all(n.op_type == "DequantizeLinear" and n.input(0) is value for n in nodes):
            found[value.name] = [_scale_of(n) for n in nodes]
    for value in model.graph.outputs:
        node = value.producer
        if node is not None and node.op_type == "QuantizeLinear":
            found[value.name] = [_scale_of(node)]
    return {
        name: each[0]
        for name, each in found.items()
        if each[0] and each.count(each[0]) == len(each)
    }


def _scale_of(node: Node) -> dict[str, Any]:
    """Of QuantizeLinear and DequantizeLinear of one constant scale for all elements."""
    scale, zero = node.input(1), node.input(2)
    if scale is None or scale.const is None or scale.const.size != 1:
        return {}
    if zero is not None and (zero.const is None or zero.const.size != 1):
        return {}
    point = 0 if zero is None or zero.const is None else int(zero.const.numpy().item())
    return {"scale": float(scale.const.numpy().item()), "zero_point": point}


def container_interface(model: Model) -> Ends:
    """Inputs and outputs of a container may be of any type."""

    def describe(value: Value) -> dict[str, Any]:
        shape = value.shape
        sizes = None if shape is None else [d if isinstance(d, int) else None for d in shape]
        known = value.dtype != onnx.TensorProto.UNDEFINED
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(value.dtype)) if known else None
        return {"name": value.name, "dtype": dtype, "shape": sizes}

    return [describe(v) for v in model.graph.inputs], [describe(v) for v in model.graph.outputs]
