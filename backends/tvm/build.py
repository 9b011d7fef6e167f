"""From a Relax module to a shared object: bytecode, one object per kernel, linking."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax import vm_build
from tvm.runtime import _ffi_api as tvm_runtime

from ...ir.errors import UnsupportedError
from .cache import Cache
from .kernels.builder import KernelBuilder
from .link import link_shared
from .objects import compile_functions
from .targets import Target


def build_library(
    module: Any, digests: Mapping[str, str], target: Target, cache: Cache, path: Path
) -> tuple[int, int]:
    """Compile and link a module; the number of its kernels, and of those from the cache.

    `digests` are those of the functions that are named by their content. Raises
    UnsupportedError where TVM can't compile something, SecateurError where linking fails.
    """
    machine = tvm.target.Target(target.llvm())
    builder = relax.ExecBuilder()
    try:
        with machine:
            module = _pipeline()(module)
        module = vm_build._vmcodegen(builder, module)
    except Exception as error:  # TVM's errors have no common type
        text = " ".join(str(error).split())[:300]
        raise UnsupportedError(f"TVM can't compile the model for {target.name}: {text}") from None
    functions = {
        g.name_hint: f for g, f in module.functions.items() if isinstance(f, tirx.PrimFunc)
    }
    if not functions:  # a library of no kernels is none to TVM's loader
        functions["nothing"] = KernelBuilder().finish()
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        objects = compile_functions(functions, digests, target, cache, Path(folder))
        # The first object stands for all: the executable refers to one library of kernels.
        library = tvm_runtime.ModuleLoadStaticLibrary(str(objects.paths[0]), sorted(functions))
        executable = vm_build._ffi_api.VMLink(builder, machine, library, [], {})
        packed = Path(folder) / "executable.o"
        tvm_runtime.ModulePackImportsToLLVM(
            executable, False, json.dumps(target.llvm()), ""
        ).write_to_file(str(packed))
        link_shared(target, [str(p) for p in (*objects.paths, packed)], path)
    return len(functions), objects.reused


def _pipeline() -> Any:
    t = relax.transform
    return tvm.transform.Sequential(
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
