"""Object files of kernels: one for each, from the cache where it has been compiled before."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm

from ...ir.errors import UnsupportedError
from .cache import Cache
from .targets import Target
from .threads import available_cpus

_SCHEME = "1"
"""Part of every key: to be changed with how functions become objects."""


@dataclasses.dataclass(frozen=True)
class Objects:
    """Object files in the order of the functions' names; `reused` came from the cache."""

    paths: Sequence[Path]
    reused: int


def digest(function: Any) -> str:
    """A hexadecimal digest of a function's TensorIR."""
    return hashlib.sha256(tvm.ir.save_json(function).encode()).hexdigest()


def compile_functions(
    functions: Mapping[str, Any],
    digests: Mapping[str, str],
    target: Target,
    cache: Cache,
    folder: Path,
) -> Objects:
    """Write an object file for each function into `folder`, by several threads.

    `digests` are those of functions whose names depend on nothing else; the others are
    computed here. Raises UnsupportedError where TVM can't compile a function.
    """
    names = sorted(functions)
    keys = {n: _key(n, digests.get(n) or digest(functions[n]), target) for n in names}
    paths = {n: folder / f"{index:05d}.o" for index, n in enumerate(names)}
    missing = []
    for name in names:
        found = cache.get(keys[name])
        if found is None:
            missing.append(name)
        else:
            paths[name].write_bytes(found)
    machine = tvm.target.Target(target.llvm())

    def build(name: str) -> None:
        _compile(name, functions[name], machine, paths[name])
        cache.put(keys[name], paths[name].read_bytes())

    with concurrent.futures.ThreadPoolExecutor(len(available_cpus())) as executor:
        for name, work in {n: executor.submit(build, n) for n in missing}.items():
            try:
                work.result()
            except (OSError, UnsupportedError):
                raise
            except Exception as error:  # TVM's errors have no common type
                text = " ".join(str(error).split())[:300]
                raise UnsupportedError(
                    f"TVM can't compile kernel {name} for {target.name}: {text}"
                ) from None
    if missing:
        cache.trim()
    return Objects([paths[n] for n in names], len(names) - len(missing))


def _compile(name: str, function: Any, machine: Any, path: Path) -> None:
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    tvm.tirx.build(module, target=machine, pipeline="default").write_to_file(str(path))


def _key(name: str, content: str, target: Target) -> str:
    parts = [_SCHEME, *_versions(), json.dumps(target.llvm(), sort_keys=True), name, content]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, str]:
    return tvm.__version__, str(tvm.get_global_func("target.llvm_version_major")())
