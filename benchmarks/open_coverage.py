"""One backend case with all of its sizes open; `coverage.py --open` runs them all.

Each size of the case's inputs is replaced by a symbol, the same for equal sizes, and the model
compiled once. The artifact runs at the case's own sizes and at others, with the inputs repeated
or cut to them, against ONNX Runtime on the same model.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from coverage import Case, Outcome, difference, feeds_of, operator_of

OTHER_SIZES = (lambda n: n + 1, lambda n: 2 * n + 3)
"""The sizes that a case is run at besides its own."""


def run_open_case(case: Case) -> Outcome:
    """Compile a case with open sizes and run it at several; never raises."""
    from secateur.ir.errors import SecateurError

    start = time.perf_counter()
    operator = operator_of(case)
    ran = 0

    def outcome(status: str, detail: str = "") -> Outcome:
        runtime = "pass" if ran else "error"
        return Outcome(status, runtime, operator, time.perf_counter() - start, detail)

    model, sizes = open_model(case)
    if _reference(model, _kept(feeds_of(case), model)) is None or not sizes:
        return outcome("error", "ONNX Runtime doesn't run it" if sizes else "no size to open")
    try:
        with tempfile.TemporaryDirectory() as folder:
            runtime = _compile(model, Path(folder))
            for change in (lambda n: n, *OTHER_SIZES):
                chosen = {name: change(size) for name, size in sizes.items()}
                feeds = resized(feeds_of(case), model, chosen)
                reference = _reference(model, feeds)
                if reference is None:
                    continue
                ran += 1
                found = runtime.run(feeds)
                wrong = difference([found[v.name] for v in model.graph.output], reference, case)
                if wrong:
                    return outcome("wrong", f"{chosen}: {wrong}")
    except SecateurError as error:
        ran += 1
        return outcome("error", str(error)[:500])
    except Exception:  # whatever else escapes is a defect
        ran += 1
        return outcome("crash", traceback.format_exc()[-1500:])
    return outcome("pass")


def open_model(case: Case) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The case's model with the sizes open in which ONNX Runtime takes others, and what the case
    has for each. Short vectors of integers, and scales, which give results their sizes, are
    constants."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    feeds = feeds_of(case)
    for value in list(model.graph.input):
        given = feeds.get(value.name)
        if isinstance(given, np.ndarray) and _is_parameter(value.name, given):
            model.graph.initializer.append(onnx.numpy_helper.from_array(given, value.name))
            model.graph.input.remove(value)
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    sizes = _open(model, feeds, lambda size: True)
    if _reference(model, _kept(feeds, model)) is None:
        return model, sizes
    free = {}
    for name, size in sizes.items():
        changed = {**sizes, name: size + 1}
        if _reference(model, resized(feeds, model, changed)) is not None:
            free[name] = size
    return model, _open(model, feeds, lambda size: f"d{size}" in free)


def _is_parameter(name: str, given: np.ndarray[Any, Any]) -> bool:
    integers = given.dtype.kind in "iu" and given.ndim <= 1 and given.size <= 16
    return integers or name in ("scales", "roi", "sizes")


def _open(
    model: onnx.ModelProto, feeds: Mapping[str, Any], chosen: Callable[[int], bool]
) -> dict[str, int]:
    """Name the inputs' sizes that are larger than 1 and chosen."""
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        given = feeds.get(value.name)
        if not isinstance(given, np.ndarray) or not value.type.HasField("tensor_type"):
            continue
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in given.shape:
            if size > 1 and chosen(size):
                sizes[f"d{size}"] = size
                shape.dim.add(dim_param=f"d{size}")
            else:
                shape.dim.add(dim_value=size)
    return sizes


def _kept(feeds: Mapping[str, Any], model: onnx.ModelProto) -> dict[str, Any]:
    """Those of the model's inputs."""
    return {v.name: feeds[v.name] for v in model.graph.input if v.name in feeds}


def resized(
    feeds: Mapping[str, Any], model: onnx.ModelProto, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Inputs of other sizes, made of the elements of those given."""
    made = _kept(feeds, model)
    for value in model.graph.input:
        array = feeds.get(value.name)
        if isinstance(array, np.ndarray) and value.type.HasField("tensor_type"):
            dims = value.type.tensor_type.shape.dim
            shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims]
            made[value.name] = (
                np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)
            )
    return made


def _compile(model: onnx.ModelProto, folder: Path) -> Any:
    from secateur.backends.tvm.artifact.runtime import Runtime
    from secateur.backends.tvm.cache import Cache
    from secateur.backends.tvm.compile import compile_model
    from secateur.backends.tvm.targets import parse_target
    from secateur.ir.onnx_io import from_proto
    from secateur.ir.symbolic.analysis import Admitted

    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    names = {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim}
    path = folder / "model.so"
    compile_model(
        from_proto(proto),
        parse_target("native"),
        path,
        cache=Cache.none(),
        sizes={name: Admitted(1) for name in names if name},
    )
    return Runtime(path)


def _reference(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any] | None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        return list(session.run(None, dict(feeds)))
    except Exception:  # ONNX Runtime raises a family of unrelated types
        return None
