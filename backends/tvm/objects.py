"""Object files of kernels: one for each, from the cache where it has been compiled before."""

from __future__ import annotations

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

_SCHEME = "2"
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
    """Write an object file for each function into `folder`.

    One after the other, since TVM doesn't promise that its passes bear threads. `digests`
    are those of functions that are named by their content; the others are computed here.
    Raises UnsupportedError where TVM can't compile a function.
    """
    names = sorted(functions)
    machine = tvm.target.Target(target.llvm())
    paths, reused = [], 0
    for index, name in enumerate(names):
        path = folder / f"{index:05d}.o"
        paths.append(path)
        key = _key(name, digests.get(name) or digest(functions[name]), target)
        found = cache.get(key)
        if found is not None:
            path.write_bytes(found)
            reused += 1
            continue
        try:
            _compile(name, functions[name], machine, path)
        except Exception as error:  # TVM's errors have no common type
            text = " ".join(str(error).split())[:300]
            raise UnsupportedError(
                f"TVM can't compile kernel {name} for {target.name}: {text}"
            ) from None
        cache.put(key, path.read_bytes())
    if reused < len(names):
        cache.trim()
    return Objects(paths, reused)


def _compile(name: str, function: Any, machine: Any, path: Path) -> None:
    """Write one object file.

    Kernels don't check their arguments: they are called by the bytecode alone, whose
    function checks the model's inputs.
    """
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    with tvm.transform.PassContext(config={"tirx.disable_assert": True}):
        tvm.tirx.build(module, target=machine, pipeline="default").write_to_file(str(path))


def _key(name: str, content: str, target: Target) -> str:
    parts = [_SCHEME, *_versions(), json.dumps(target.llvm(), sort_keys=True), name, content]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _versions() -> tuple[str, str]:
    return tvm.__version__, str(tvm.get_global_func("target.llvm_version_major")())
