"""Small models whose C libraries are tested, and building programs with them."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.compile import compile_library
from secateur.backends.tvm.graph.open_sizes import read_admitted
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto

from ..tvm.graphs import Array, Net, quantize

RUN = Path(__file__).with_name("run.c")
OPEN = Path(__file__).with_name("open.c")

FLAGS = [
    "-std=c99",
    "-D_ISOC11_SOURCE",
    "-D_GNU_SOURCE",
    "-pedantic",
    "-Wall",
    "-Wextra",
    "-Werror",
]


def convolutions() -> onnx.ModelProto:
    """Winograd, direct and depthwise convolutions, of a size that is shared among threads."""
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(32, 3, 3, 3), net.weight(32), pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(32, 32, 3, 3), pads=[1, 1, 1, 1])
    value = net.node("Relu", value)
    value = net.node("Conv", value, net.weight(32, 1, 3, 3), group=32, pads=[1, 1, 1, 1])
    value = net.node("Conv", value, net.weight(24, 32, 1, 1))
    return net.model({"x": (1, 3, 40, 40)}, [value])


def integers() -> onnx.ModelProto:
    """The same in int8."""
    return quantize(convolutions())


def ranged() -> onnx.ModelProto:
    """A vector as bytes whose range the run finds, and back."""
    make, kind = onnx.helper, onnx.TensorProto
    nodes = [
        make.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        make.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [[make.make_tensor_value_info(name, kind.FLOAT, [99])] for name in "xy"]
    graph = make.make_graph(nodes, "ranged", *ends)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)


def lowest(lowest_weight: int) -> onnx.ModelProto:
    """Convolutions of bytes whose weights are all the lowest number, or 127."""
    make = onnx.helper
    low, high = lowest_weight, 127
    weights = np.where(np.arange(16 * 24) % 5 > 0, low, high).reshape(16, 24, 1, 1)
    depthwise = np.where(np.arange(16 * 9) % 7 > 0, low, high).reshape(16, 1, 3, 3)
    constants = {
        "s": np.float32(0.25),
        "z": np.uint8(128),
        "sw": np.float32(2**-14),
        "zw": np.int8(0),
        "w": weights.astype(np.int8),
        "d": depthwise.astype(np.int8),
    }
    nodes = [
        make.make_node("DequantizeLinear", ["x", "s", "z"], ["xf"]),
        make.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"]),
        make.make_node("DequantizeLinear", ["d", "sw", "zw"], ["df"]),
        make.make_node("Conv", ["xf", "wf"], ["af"]),
        make.make_node("QuantizeLinear", ["af", "s", "z"], ["a"]),
        make.make_node("DequantizeLinear", ["a", "s", "z"], ["aq"]),
        make.make_node("Conv", ["aq", "df"], ["bf"], group=16, pads=[1, 1, 1, 1]),
        make.make_node("QuantizeLinear", ["bf", "s", "z"], ["b"]),
        make.make_node("DequantizeLinear", ["b", "s", "z"], ["y"]),
    ]
    value = make.make_tensor_value_info
    graph = make.make_graph(
        nodes,
        "lowest",
        [value("x", onnx.TensorProto.UINT8, [1, 24, 7, 7])],
        [value("y", onnx.TensorProto.FLOAT, [1, 16, 7, 7])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)


def enlarged() -> onnx.ModelProto:
    """Resize of wide rows, whose kernel keeps more than lies on a stack."""
    return text(
        """agraph (float[1, 8, 24, 300] x) => (float[1, 8, 48, 600] y) <float[4] s = {1, 1, 2, 2}> {
        y = Resize <mode = "linear"> (x, , s)
        }"""
    )


def batch() -> onnx.ModelProto:
    """Samples of an open batch, a table that all share, and a result that has no samples."""
    return text(
        """agraph (float[n, 6] x, float[4] w) => (float[n, 4] y, float[4] z)
        <float[6, 4] m = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23}> {
        a = MatMul(x, m)
        y = Add(a, w)
        z = Mul(w, w)
        }"""
    )


def lookup() -> onnx.ModelProto:
    """Indices that a run may find out of range, and names with any character."""
    model = text(
        """agraph (int64[3] i, float[5, 2] t) => (float[3, 2] y) {
        y = Gather(t, i)
        }"""
    )
    model.graph.node[0].input[1] = model.graph.input[0].name = 'a*/"\\\n%s??/'
    model.graph.node[0].output[0] = model.graph.output[0].name = "größe"
    return model


def text(graph: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {graph}')


def sequence() -> onnx.ModelProto:
    """Rows of an open number, each with a weight, and samples of an open batch."""
    return text(
        """agraph (float[n, length, 6] x, float[1, length] w)
        => (float[n, length, 4] y, float[n, 6, length] z)
        <float[6, 4] m = {0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23}> {
        a = MatMul(x, m)
        b = Softmax <axis = 1> (a)
        c = Sqrt(b)
        y = Softmax <axis = 1> (c)
        t = Transpose <perm = [0, 2, 1]> (x)
        z = Mul(t, w)
        }"""
    )


def build(
    model: onnx.ModelProto,
    folder: Path,
    name: str,
    target: str = "native",
    sizes: tuple[str, ...] = (),
    copies: float = math.inf,
    **options: Any,
) -> Path:
    """Compile a library into `folder`, by default with all copies of weights that are worth it."""
    folder.mkdir(exist_ok=True)
    machine = parse_target(target)
    library = LibraryOptions(name, shared=machine.links, **options)
    admitted = read_admitted(sizes)
    compile_library(from_proto(model), machine, folder, library, sizes=admitted, copies=copies)
    return folder


def program(
    folder: Path, name: str, compiler: str = "gcc", *flags: str, source: Path = RUN
) -> Path:
    """The program `run.c`, or another, with a library that it is linked with statically."""
    path = folder / "run"
    defined = [f'-DHEADER="{name}.h"', f"-DMODEL={name}", f"-I{folder}"]
    archive = folder / f"lib{name}.a"
    command = [compiler, *FLAGS, *flags, *defined, source, archive, "-lm", "-o", path]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def run(
    path: Path,
    inputs: list[Array],
    *options: str,
    emulator: tuple[str, ...] = (),
    samples: int = 1,
    threads: int = 1,
    pool: str = "own",
) -> subprocess.CompletedProcess[str]:
    """Run a program of `program`; its results lie beside it in `out`."""
    given, out = path.with_name("in"), path.with_name("out")
    given.write_bytes(b"".join(np.ascontiguousarray(a).tobytes() for a in inputs))
    words = [str(path), str(given), str(out), str(samples), str(threads), pool, *options]
    return subprocess.run(
        [*emulator, *words], capture_output=True, text=True, check=False, timeout=300
    )


def has(*programs: str) -> bool:
    return all(shutil.which(p) is not None for p in programs)
