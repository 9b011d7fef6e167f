"""Object files of kernels: one for each, from the cache where it has been compiled before."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from ....ir.errors import UnsupportedError
from ..cache import Cache
from ..targets import Target
from ..tensorir.types import PrimFunc
from .toolchain import compile_source

log = logging.getLogger(__name__)

_CPU = 1
"""DLPack's device type."""

_PACKED = 1
"""TVM's calling convention of functions that need no wrapper any more."""

_SCHEME = "3"
"""Part of every key: to be changed with how functions become objects."""


@dataclasses.dataclass(frozen=True)
class Objects:
    """Object files in the order of the functions' names; `reused` came from the cache."""

    paths: Sequence[Path]
    reused: int


def compile_functions(
    functions: Mapping[str, PrimFunc],
    digests: Mapping[str, str],
    target: Target,
    cache: Cache,
    folder: Path,
) -> Objects:
    """Write an object file for each function into `folder`.

    One after the other, since TVM doesn't promise that its passes bear threads. `digests`
    are those of the functions' content. Raises UnsupportedError where TVM can't compile a function.
    """
    names = sorted(functions)
    machine = tvm.target.Target(target.llvm())
    paths, reused = [], 0
    for index, name in enumerate(names):
        path = folder / f"{index:05d}.o"
        paths.append(path)

        def compile_kernel(name: str = name, path: Path = path) -> None:
            try:
                _compile(name, functions[name], machine, path)
            except Exception as error:  # TVM's errors have no common type
                text = " ".join(str(error).split())[:300]
                raise UnsupportedError(
                    f"TVM can't compile kernel {name} for {target.name}: {text}"
                ) from None

        reused += _provide(path, cache, _key(name, digests[name], target), compile_kernel)
    if reused < len(names):
        cache.trim()
    return Objects(paths, reused)


def compile_runtime(target: Target, cache: Cache, folder: Path) -> list[Path]:
    """Write the objects of what kernels need besides libc. Raises SecateurError."""
    names = ["runtime.c", *(["division.c"] if target.machine == "armv7l" else [])]
    paths = []
    for name in names:
        source = Path(__file__).with_name("native") / name
        paths.append(folder / f"{source.stem}.o")
        key = _key(name, source.read_text(encoding="utf-8"), target)
        make = functools.partial(compile_source, target, source, paths[-1])
        _provide(paths[-1], cache, key, make)
    return paths


def _provide(path: Path, cache: Cache, key: str, make: Callable[[], None]) -> bool:
    """Write an object from the cache, else by `make`; whether it was in the cache."""
    found = cache.get(key)
    if found is not None:
        path.write_bytes(found)
        log.debug("%s: from the cache", key)
        return True
    log.debug("%s: compiled", key)
    make()
    cache.put(key, path.read_bytes())
    return False


def _compile(name: str, function: PrimFunc, machine: Any, path: Path) -> None:
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    module = _pipeline(machine)(module)
    tvm.get_global_func("target.build.llvm")(module, machine).write_to_file(str(path))


def _pipeline(machine: Any) -> Any:
    """TVM's default passes, those that CPUs need, with a calling convention of our own."""
    s, t = tvm.s_tir.transform, tirx.transform
    return tvm.transform.Sequential(
        [
            t.BindTarget(machine.with_host(machine)),
            s.CanonicalizeLoop(),
            s.LowerInitBlock(),
            s.PlanAndUpdateBufferAllocationLocation(),
            s.ConvertBlocksToOpaque(),
            s.CompactBufferAllocation(),
            s.LowerMatchBuffer(),
            s.StmtSimplify(),
            s.LowerOpaqueBlock(),
            t.FlattenBuffer(),
            t.BF16ComputeLegalize(),
            t.NarrowDataType(32),
            s.LoopPartition(),
            t.VectorizeLoop(True),
            t.StorageRewrite(),
            s.HoistIfThenElse(),
            t.UnrollLoop(),
            s.RenormalizeSplitPattern(),
            t.StmtSimplify(),
            t.RemoveNoOp(),
            s.RewriteUnsafeSelect(),
            t.CommonSubexprElim(),
            t.FP8ComputeLegalize(),
            t.VerifyMemory(),
            tvm.transform.module_pass(_by_pointers, opt_level=0),
            t.FP8StorageLegalize(),
            t.BF16StorageLegalize(),
            t.LowerTVMBuiltin(),
            t.LowerIntrin(),
        ]
    )


def _by_pointers(module: Any, _: Any) -> Any:
    """Make every function an `int name(void *, ...)` of its buffers' addresses.

    TVM's own convention passes tensors, which functions then check. Nothing is said of
    the addresses' alignment, so that any will do.
    """
    return tvm.IRModule(
        {name: _take_pointers(function) for name, function in module.functions.items()},
        attrs=module.attrs,
    )


def _take_pointers(function: PrimFunc) -> Any:
    pointers, body = [], []
    for buffer in function.params:
        kind = tvm.ir.PointerType(tvm.ir.PrimType(str(buffer.dtype)), "global")
        pointers.append(tirx.Var(f"{buffer.name}_pointer", kind))
        body.append(tirx.DeclBuffer(buffer, data=pointers[-1]))
    inner = function.body
    for key, value in (("device_id", 0), ("device_type", _CPU)):
        default = tvm.runtime.convert("default")
        inner = tirx.AttrStmt(default, key, tirx.IntImm("int32", value), inner)
    body += [inner, tirx.stmt.Return(tirx.IntImm("int32", 0))]
    result = tirx.PrimFunc(pointers, tirx.SeqStmt(body), tvm.ir.PrimType("int32"), function.attrs)
    return result.with_attr("calling_conv", _PACKED)


def _key(name: str, content: str, target: Target) -> str:
    parts = [_SCHEME, *_versions(), json.dumps(target.llvm(), sort_keys=True), name, content]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, str]:
    return tvm.__version__, str(tvm.get_global_func("target.llvm_version_major")())
