"""Compiling a model into a shared object for TVM's virtual machine."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from ...ir.errors import SecateurError, UnsupportedError
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.onnx_io import atomic_files
from ...passes.simplify import simplify_pipeline
from .emit import Emitter
from .link import link_shared
from .lowering.frontend import lower
from .plan import Plan, RegionOp
from .targets import Target, can_run_here

__all__ = ["Built", "CompileReport", "build_executable", "can_run_here", "compile_model"]

METADATA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What compilation made: time, distinct kernels, and ONNX nodes left to TVM's converters."""

    seconds: float
    kernels: int
    operations: int
    converted: tuple[str, ...]
    bytes: int


def compile_model(
    model: Model,
    target: Target,
    path: str | os.PathLike[str],
    *,
    winograd: bool = True,
) -> CompileReport:
    """Compile `model` (unchanged) for `target` into the shared object `path`.

    A symbolic first dimension of every input and output is a batch: the artifact
    computes one sample, and `Runtime` runs it once for each. `winograd=False` keeps
    float32 convolutions direct, which is slower and rounds less.

    Raises UnsupportedError naming the node where something can't be lowered, and
    SecateurError where linking or writing fails. The file appears whole or not at all.
    """
    start = time.perf_counter()
    path = Path(path)
    built = build_executable(model, target, winograd=winograd)
    with atomic_files(path) as (temporary,), tempfile.TemporaryDirectory() as scratch:
        _export(built.executable, target, temporary, scratch)
        size = temporary.stat().st_size
    converted = tuple(
        f"{n.name or n.output[0]} ({n.op_type})"
        for op in built.plan.operations
        if isinstance(op, RegionOp)
        for n in op.model.graph.node
    )
    return CompileReport(
        time.perf_counter() - start,
        built.kernels,
        len(built.plan.operations),
        converted,
        size,
    )


@dataclasses.dataclass(frozen=True)
class Built:
    """A compiled model that is not yet a file; `Runtime.in_memory` runs it here."""

    executable: Any
    plan: Plan
    kernels: int


def build_executable(
    model: Model, target: Target, *, winograd: bool = True
) -> Built:
    """What `compile_model` does before it links. `model` stays unchanged."""
    work = model.clone()
    for step in simplify_pipeline():
        step.run(work)
    batched = _fix_batch(work)
    infer_shapes(work)
    plan = lower(work, target)
    emitter = Emitter(plan, target, use_winograd=winograd)
    module = emitter.emit(json.dumps(_metadata(plan, work, target, batched)))
    return Built(_build(module, target), plan, len(emitter.kernels))


def _fix_batch(model: Model) -> bool:
    """Set a symbolic batch dimension to 1; whether there was one."""
    graph = model.graph
    values = [v for v in graph.inputs if model.constant(v) is None]
    batched = bool(values) and all(_leads_symbolic(v) for v in values)
    batched = batched and all(_leads_symbolic(v) for v in graph.outputs)
    if not batched:
        return False
    names = {v.shape[0] for v in values if v.shape}
    for value in graph.values():
        shape = value.shape
        if shape is None or value.const is not None:
            continue
        if any(isinstance(d, str) and d in names for d in shape) or value in values:
            fixed = [1 if d in names and d is not None else d for d in shape]
            if value in values:
                fixed[0] = 1
            value.set_tensor_type(value.dtype, fixed)
    for value in graph.outputs:
        if value.shape:
            value.set_tensor_type(value.dtype, [1, *value.shape[1:]])
    return True


def _leads_symbolic(value: Any) -> bool:
    return bool(value.shape) and not isinstance(value.shape[0], int)


def _metadata(plan: Plan, model: Model, target: Target, batched: bool) -> dict[str, Any]:
    def describe(name: str, tensor: Any) -> dict[str, Any]:
        return {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape)}

    return {
        "version": METADATA_VERSION,
        "target": target.name,
        "batched": batched,
        "inputs": [describe(t.name, t) for t in plan.inputs],
        "outputs": [describe(name, t) for name, t in plan.outputs],
    }


def _build(module: Any, target: Target) -> Any:
    t = relax.transform
    pipeline = tvm.transform.Sequential(
        [
            t.ToNonDataflow(),
            t.RemovePurityChecking(),
            t.CallTIRRewrite(),
            t.StaticPlanBlockMemory(),
            t.LowerAllocTensor(),
            t.LowerRuntimeBuiltin(),
            t.ComputePrimValue(),
            t.VMShapeLower(),
            t.AttachGlobalSymbol(),
        ]
    )
    try:
        return tvm.compile(module, tvm.target.Target(target.llvm()), relax_pipeline=pipeline)
    except Exception as error:  # TVM's errors have no common type
        text = " ".join(str(error).split())[:300]
        raise UnsupportedError(f"TVM can't compile the model for {target.name}: {text}") from None


def _export(executable: Any, target: Target, path: Path, scratch: str) -> None:
    def link(output: str, objects: list[str], options: Any = None, **_: Any) -> None:
        link_shared(target, objects, Path(output))

    link.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(path), fcompile=link, workspace_dir=scratch)
    if not path.exists():
        raise SecateurError(f"{path}: the linker wrote nothing")
