"""Runs a converted model twice in ncnn, MNN or LiteRT, the second time between markers.

    python emulated.py MARK.so PEER FILE NAME,TYPE,DIMENSION,... ...

For `arm_peers.py`, by an AArch64 Python under qemu, which has only NumPy and the peer. TYPE is
NumPy's. One thread; float32 wherever a peer could choose less.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping

import numpy as np

Feeds = Mapping[str, np.ndarray]


def ncnn_run(file: str, feeds: Feeds) -> Callable[[], object]:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{name}", False)
    net.load_param(f"{file}.param")
    net.load_model(f"{file}.bin")
    arrays = [np.ascontiguousarray(a[0]) for a in feeds.values()]

    def run() -> object:
        extractor = net.create_extractor()
        for index, array in enumerate(arrays):
            extractor.input(f"in{index}", ncnn.Mat(array))
        return np.array(extractor.extract("out0")[1])

    return run


def mnn_run(file: str, feeds: Feeds) -> Callable[[], object]:
    import MNN
    import MNN.expr as expressions

    manager = MNN.nn.create_runtime_manager(
        ({"backend": "CPU", "numThread": 1, "precision": "high"},)
    )
    net = MNN.nn.load_module_from_file(file, list(feeds), ["output"], runtime_manager=manager)
    variables = []
    for array in feeds.values():
        whole = np.issubdtype(array.dtype, np.integer)
        kind = expressions.int if whole else expressions.float
        shape = list(array.shape)
        variables.append(expressions.const(array.ravel().tolist(), shape, expressions.NCHW, kind))

    def run() -> object:
        found = net.forward(variables)
        return np.array((found[0] if isinstance(found, (list, tuple)) else found).read())

    return run


def litert_run(file: str, feeds: Feeds) -> Callable[[], object]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(file, num_threads=1)
    interpreter.allocate_tensors()
    for place, array in zip(interpreter.get_input_details(), feeds.values(), strict=True):
        interpreter.set_tensor(place["index"], array.astype(place["dtype"]))

    def run() -> object:
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return run


def main() -> None:
    library, peer, file, *inputs = sys.argv[1:]
    mark = ctypes.CDLL(library).mark
    random = np.random.default_rng(0)
    feeds = {}
    for word in inputs:
        name, dtype, *shape = word.split(",")
        sizes = tuple(map(int, shape))
        whole = np.issubdtype(np.dtype(dtype), np.integer)
        values = random.integers(0, 100, sizes) if whole else random.standard_normal(sizes)
        feeds[name] = values.astype(dtype)
    run = {"ncnn": ncnn_run, "mnn": mnn_run, "litert": litert_run}[peer](file, feeds)
    run()
    mark()
    found = run()
    mark()
    print("shape", np.shape(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
