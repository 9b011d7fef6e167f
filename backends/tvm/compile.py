"""Compiling a model into a shared object for TVM's virtual machine."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax import vm_build
from tvm.runtime import _ffi_api as tvm_runtime

from ...ir.errors import UnsupportedError
from ...ir.infer import infer_shapes
from ...ir.model import Model
from ...ir.onnx_io import atomic_files
from ...passes.simplify import simplify_pipeline
from .cache import Cache
from .choices import Choices
from .emit import Emitter
from .kernels.builder import KernelBuilder
from .link import link_shared
from .lowering.frontend import lower
from .objects import compile_functions
from .plan import Plan, RegionOp
from .targets import Target, can_run_here

__all__ = ["CompileReport", "can_run_here", "compile_model"]

METADATA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What compilation made.

    `kernels` are the distinct ones, `reused` of them came from the cache. `converted`
    are ONNX nodes left to TVM's converters.
    """

    seconds: float
    kernels: int
    reused: int
    operations: int
    converted: tuple[str, ...]
    bytes: int


def compile_model(
    model: Model,
    target: Target,
    path: str | os.PathLike[str],
    *,
    winograd: bool = True,
    cache: Cache | None = None,
) -> CompileReport:
    """Compile `model` (unchanged) for `target` into the shared object `path`.

    A symbolic first dimension of every input and output is a batch: the artifact
    computes one sample, and `Runtime` runs it once for each. `winograd=False` keeps
    float32 convolutions direct, which is slower and rounds less. Kernels that `cache`,
    by default the user's, knows are not compiled again; the result is the same.

    Raises UnsupportedError naming the node where something can't be lowered, and
    SecateurError where linking or writing fails. The file appears whole or not at all.
    """
    start = time.perf_counter()
    path = Path(path)
    work = model.clone()
    for step in simplify_pipeline():
        step.run(work)
    batched = _fix_batch(work)
    infer_shapes(work)
    plan = lower(work, target)
    emitter = Emitter(plan, target, Choices(target, winograd=winograd))
    module = emitter.emit(json.dumps(_metadata(plan, work, target, batched)))
    with atomic_files(path) as (temporary,), tempfile.TemporaryDirectory() as scratch:
        kernels, reused = _build(
            module, emitter.digests, target, cache or Cache.of_user(), temporary, Path(scratch)
        )
        size = temporary.stat().st_size
    converted = tuple(
        f"{n.name or n.output[0]} ({n.op_type})"
        for op in plan.operations
        if isinstance(op, RegionOp)
        for n in op.model.graph.node
    )
    return CompileReport(
        time.perf_counter() - start, kernels, reused, len(plan.operations), converted, size
    )


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


def _build(
    module: Any,
    digests: Mapping[str, str],
    target: Target,
    cache: Cache,
    path: Path,
    scratch: Path,
) -> tuple[int, int]:
    """Compile and link a Relax module; the number of its kernels, and of those reused."""
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
    machine = tvm.target.Target(target.llvm())
    builder = relax.ExecBuilder()
    try:
        with machine:
            module = pipeline(module)
        module = vm_build._vmcodegen(builder, module)
    except Exception as error:  # TVM's errors have no common type
        text = " ".join(str(error).split())[:300]
        raise UnsupportedError(f"TVM can't compile the model for {target.name}: {text}") from None
    functions = {
        g.name_hint: f for g, f in module.functions.items() if isinstance(f, tirx.PrimFunc)
    }
    if not functions:  # a library of no kernels is none to TVM's loader
        functions["nothing"] = KernelBuilder().finish()
    objects = compile_functions(functions, digests, target, cache, scratch)
    # The first object stands for all: the executable refers to one library of kernels.
    library = tvm_runtime.ModuleLoadStaticLibrary(str(objects.paths[0]), sorted(functions))
    executable = vm_build._ffi_api.VMLink(builder, machine, library, [], {})
    packed = scratch / "executable.o"
    tvm_runtime.ModulePackImportsToLLVM(
        executable, False, json.dumps(target.llvm()), ""
    ).write_to_file(str(packed))
    link_shared(target, [str(p) for p in (*objects.paths, packed)], path)
    return len(functions), objects.reused
