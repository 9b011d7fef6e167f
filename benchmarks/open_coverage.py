"""One backend case with all of its sizes open; `coverage.py --open` runs them all.

Each size of the case's inputs is replaced by a symbol, the same for equal sizes, and the model
compiled once. The artifact runs at the case's own sizes and at others, with the inputs repeated
or cut to them, against ONNX Runtime on the same model.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import onnx
from coverage import Case, Outcome, difference, feeds_of, operator_of

from tests.backends.tvm.opened import SIZES, kept, open_model, reference, resized


def run_open_case(case: Case) -> Outcome:
    """Compile a case with open sizes and run it at several; never raises."""
    from secateur.ir.errors import SecateurError

    start = time.perf_counter()
    operator = operator_of(case)
    ran = 0

    def outcome(status: str, detail: str = "") -> Outcome:
        runtime = "pass" if ran else "error"
        return Outcome(status, runtime, operator, time.perf_counter() - start, detail)

    model, sizes = open_model(case.model, feeds_of(case))
    if reference(model, kept(feeds_of(case), model)) is None or not sizes:
        return outcome("error", "ONNX Runtime doesn't run it" if sizes else "no size to open")
    given = [x for x in case.outputs if x is not None]
    own = reference(case.model, feeds_of(case))
    if given and (own is None or difference(own, case.outputs, case)):
        return outcome("error", "ONNX Runtime computes something else than the case expects")
    try:
        with tempfile.TemporaryDirectory() as folder:
            runtime = _compile(model, Path(folder))
            for change in SIZES:
                chosen = {name: change(size) for name, size in sizes.items()}
                feeds = resized(feeds_of(case), model, chosen)
                expected = reference(model, feeds)
                if expected is None:
                    continue
                ran += 1
                found = runtime.run(feeds)
                wrong = difference([found[v.name] for v in model.graph.output], expected, case)
                if wrong:
                    return outcome("wrong", f"{chosen}: {wrong}")
    except SecateurError as error:
        ran += 1
        return outcome("error", str(error)[:500])
    except Exception:  # whatever else escapes is a defect
        ran += 1
        return outcome("crash", traceback.format_exc()[-1500:])
    return outcome("pass")


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
