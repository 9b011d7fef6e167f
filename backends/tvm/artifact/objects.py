"""Object files of kernels: one for each, from the cache where it has been compiled before."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tvm
from tvm import tirx

from ....ir.advance import advanced
from ....ir.errors import UnsupportedError
from ..cache import Cache
from ..targets import Target
from ..tensorir.bfloat import with_definitions
from ..tensorir.types import Machine, Module, PrimFunc
from .convention import Signature, split, take_pointers, take_task
from .toolchain import compile_source, compiler_version

log = logging.getLogger(__name__)

NATIVE = Path(__file__).with_name("native")
"""The folder of C sources that artifacts have parts of."""

_PACKED = 1
"""TVM's calling convention of functions that need no wrapper any more."""

_SCHEME = "5"
"""Part of every key: to be changed with how functions become objects."""


@dataclasses.dataclass(frozen=True)
class Objects:
    """Object files in the order of the functions' names, and how each function is called;
    `reused` came from the cache."""

    paths: Sequence[Path]
    signatures: Mapping[str, Signature]
    reused: int


def compile_functions(
    functions: Mapping[str, PrimFunc],
    digests: Mapping[str, str],
    target: Target,
    cache: Cache,
    folder: Path,
    first: int = 0,
) -> Objects:
    """Write an object file for each function into `folder`, numbered from `first` on.

    One after the other, since TVM doesn't promise that its passes bear threads. `digests`
    are those of the functions' content. Raises UnsupportedError where TVM can't compile a function.
    """
    names = sorted(functions)
    machine = tvm.target.Target(target.llvm())
    paths, signatures, reused = [], {}, 0
    for index, name in enumerate(advanced(names, len(names)), first):
        path = folder / f"{index:05d}.o"
        paths.append(path)

        def compile_kernel(name: str = name) -> bytes:
            try:
                return _compile(name, functions[name], machine, folder)
            except Exception as error:  # TVM's errors have no common type
                text = " ".join(str(error).split())[:300]
                raise UnsupportedError(
                    f"TVM can't compile kernel {name} for {target.name}: {text}"
                ) from None

        content, known = _provide(cache, _key(name, digests[name], target), compile_kernel)
        signature, _, code = content.partition(b"\n")
        signatures[name] = Signature.from_json(signature.decode())
        path.write_bytes(code)
        reused += known
    if reused < len(names):
        cache.trim()
    return Objects(paths, signatures, reused)


def compile_runtime(
    target: Target, cache: Cache, folder: Path, sources: Sequence[str]
) -> list[Path]:
    """Write the objects of C sources of `NATIVE`. Raises SecateurError."""
    headers = sorted(NATIVE.glob("*.h"))
    paths = []
    for name in sources:
        source = NATIVE / name
        path = folder / f"{source.stem}.o"
        paths.append(path)

        def compile_file(source: Path = source, path: Path = path) -> bytes:
            compile_source(target, source, path)
            return path.read_bytes()

        texts = [file.read_text(encoding="utf-8") for file in (source, *headers)]
        text = "\n".join([compiler_version(target), *texts])
        path.write_bytes(_provide(cache, _key(name, text, target), compile_file)[0])
    return paths


def lacking_in_libc(target: Target) -> list[str]:
    """Sources of what compilers expect of a library of theirs, which artifacts don't need."""
    return ["arithmetic.c"] if target.machine == "armv7l" else []


def _provide(cache: Cache, key: str, make: Callable[[], bytes]) -> tuple[bytes, bool]:
    """What the cache has under a key, else what `make` gives; whether the cache had it."""
    found = cache.get(key)
    if found is not None:
        log.debug("%s: from the cache", key)
        return found, True
    log.debug("%s: compiled", key)
    made = make()
    cache.put(key, made)
    return made, False


def _compile(name: str, function: PrimFunc, machine: Machine, folder: Path) -> bytes:
    """A line that says how the kernel is called, then the object file."""
    functions, signature = split(name, function)
    defined = {n: with_definitions(f) for n, f in functions.items()}
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in defined.items()})
    module = _pipeline(machine)(module)
    path = folder / "kernel.o"
    tvm.get_global_func("target.build.llvm")(module, machine).write_to_file(str(path))
    return signature.to_json().encode() + b"\n" + path.read_bytes()


def _pipeline(machine: Machine) -> Callable[[Module], Module]:
    """TVM's default passes, those that CPUs need, with a calling convention of our own.

    Without LowerTVMBuiltin, which gives local buffers to a runtime: they stay on the stack.
    """
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
            _each(take_pointers),
            t.FP8StorageLegalize(),
            t.BF16StorageLegalize(),
            t.LowerIntrin(),
            _each(take_task),
        ]
    )


def _each(change: Callable[[PrimFunc], PrimFunc]) -> tvm.transform.Pass:
    """A pass that changes every function."""

    def apply(module: Module, _: tvm.transform.PassContext) -> Module:
        functions = {
            name: change(function).with_attr("calling_conv", _PACKED)
            for name, function in module.functions.items()
        }
        return tvm.IRModule(functions, attrs=module.attrs)

    return tvm.transform.module_pass(apply, opt_level=0)


def _key(name: str, content: str, target: Target) -> str:
    parts = [_SCHEME, *_versions(), json.dumps(target.llvm(), sort_keys=True), name, content]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, str]:
    return tvm.__version__, str(tvm.get_global_func("target.llvm_version_major")())
