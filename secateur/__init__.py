"""Prune, quantize and compile ONNX models for edge devices.

    model = secateur.load("model.onnx")
    report = secateur.optimize(model, "out", target="x86-64-v3", macs=0.7)
    outputs = secateur.Runtime("out/model.so").run({"input": array})

Names are imported on first use, so that `import secateur` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.tvm.artifact.runtime import Runtime
    from .data.feedback import with_states
    from .ir.errors import SecateurError
    from .ir.onnx_io import load, save
    from .pipeline.optimize import optimize

__all__ = ["Runtime", "SecateurError", "load", "optimize", "save", "with_states"]

_HOME = {
    "Runtime": ".backends.tvm.artifact.runtime",
    "SecateurError": ".ir.errors",
    "load": ".ir.onnx_io",
    "optimize": ".pipeline.optimize",
    "save": ".ir.onnx_io",
    "with_states": ".data.feedback",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
