"""The numbers of a report: what a model is, its cost, and where they were measured."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from onnx import TensorProto

from ..ir.cost import Cost, count
from ..ir.graph import Value
from ..ir.model import Model
from ..ir.onnx_io import proto_bytes
from ..ir.tensor import Array
from ..passes.inline import InlineFunctions
from ..passes.simplify.defaults import inputs_with_defaults
from ..passes.sizes import CountedSizes, axis_name, infer_sizes
from ..reporting.report import Latency, Stage
from .runners import Runner, measure_latency

LATENCY_SECONDS = 2.0
"""Time that measuring the latency of all runners together should take."""

_PACKAGES = ("secateur", "numpy", "onnx", "onnxruntime", "apache-tvm")


def measure_stage(name: str, model: Model, seconds: float) -> Stage:
    """Size and cost of a model whose shapes are inferred; latency and accuracy come later."""
    cost = cost_of(model)
    return Stage(
        name=name,
        seconds=seconds,
        nodes=cost.nodes,
        parameters=cost.parameters,
        macs=cost.macs,
        uncounted=len(cost.uncounted),
        file_bytes=file_bytes(model),
    )


def cost_of(model: Model) -> Cost:
    """As `count`, where a function's multiply-accumulates count at each of its calls."""
    cost = _count(model)
    if not model.functions:
        return cost
    model = model.clone()
    InlineFunctions().run(model)
    infer_sizes(model)
    running = _count(model)
    return dataclasses.replace(
        cost, macs=running.macs, per_node=running.per_node, uncounted=running.uncounted
    )


def _count(model: Model) -> Cost:
    """What a model costs at the usual sizes of its inputs."""
    _, shape_of = CountedSizes.usual(model)
    return count(model, shape_of)


def open_sizes(model: Model) -> list[str]:
    """The sizes that inputs leave open: symbols, or input and axis."""
    sizes = [
        axis_name(value, axis)
        for value in model.graph.inputs
        if value.const is None
        for axis, size in enumerate(value.shape or ())
        if not isinstance(size, int)
    ]
    return list(dict.fromkeys(sizes))


def file_bytes(model: Model) -> int:
    """Bytes of the model's ONNX file, and of the external data files it refers to."""
    external = {
        id(v.const): v.const.nbytes
        for graph in model.all_graphs()
        for v in graph.initializers.values()
        if v.const is not None and v.const.is_external
    }
    return proto_bytes(model) + sum(external.values())


def latencies(runners: Mapping[str, Runner], feed: Mapping[str, Array]) -> dict[str, Latency]:
    """Latency of each runner on one feed, measured in turns."""
    start = time.perf_counter()
    for runner in runners.values():
        runner.run(feed)
    trial = time.perf_counter() - start
    repeats = int(min(max(LATENCY_SECONDS / max(trial, 1e-6), 5), 200))
    return measure_latency(runners, feed, repeats=repeats)


def describe_model(model: Model) -> dict[str, Any]:
    """What a reader wants to know about the input model."""
    counted = dict(CountedSizes.usual(model)[0].chosen)
    return {
        "file": None if model.path is None else str(model.path),
        "ir_version": int(model.extra.ir_version),
        "opsets": {domain or "ai.onnx": version for domain, version in model.opsets.items()},
        "inputs": [describe_value(v) for v in model.graph.inputs if v.const is None],
        "outputs": [describe_value(v) for v in model.graph.outputs],
        "counted_at": counted,
        "counted_as_1": [size for size in open_sizes(model) if size not in counted],
        "inputs_with_defaults": len(inputs_with_defaults(model)),
    }


def describe_value(value: Value) -> dict[str, Any]:
    """Name, element type and shape (unknown sizes: None)."""
    shape = value.shape
    return {
        "name": value.name,
        "type": TensorProto.DataType.Name(value.dtype).lower(),
        "shape": None if shape is None else list(shape),
    }


def environment() -> dict[str, str]:
    """Machine and versions that numbers depend on."""
    facts = {"cpu": _cpu_name(), "machine": platform.machine(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
