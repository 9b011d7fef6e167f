"""OpenVINO as one more runner, where the package `openvino` is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from secateur.ir.model import Model
from secateur.ir.onnx_io import to_proto

Feeds = dict[str, Any]


def is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def open_model(model: Model, threads: int, *, exact: bool = True) -> Callable[[Feeds], Feeds]:
    """A function that runs the model: one stream, floats in full precision or, where not `exact`,
    in the one that OpenVINO takes by itself, bfloat16 where the CPU has instructions for it.

    Raises RuntimeError where OpenVINO can't read or compile the model.
    """
    import openvino

    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
    }
    if exact:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    read = core.read_model(to_proto(model).SerializeToString())
    request = core.compile_model(read, "CPU", options).create_infer_request()
    names = [value.name for value in model.graph.outputs]

    def run(feeds: Feeds) -> Feeds:
        results = request.infer(feeds)
        return {name: results[i] for i, name in enumerate(names)}

    return run
