"""The instructions of kernels for ARM, as they are disassembled.

Needs binutils for the machine, as Debian's gcc-aarch64-linux-gnu and gcc-arm-linux-gnueabihf bring.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.compile import compile_library
from secateur.backends.tvm.targets import parse_target
from secateur.ir.onnx_io import from_proto, to_proto
from tests.passes.recurrent_models import recurrent_model

from .graphs import Net, quantize
from .test_recurrent_bytes import store_weights

pytestmark = pytest.mark.slow

CHANNELS = 160

MULTIPLYING = ("convolution", "depthwise", "matmul", "winograd")

BRANCH = re.compile(r"(?:b|cbn?z|tbn?z|b\.?[a-z]{2})(?:\.n)?\s+(?:\w+, )?(?:#\d+, )?([0-9a-f]+) <")


def model(kind: str) -> onnx.ModelProto:
    """A convolution or product whose loop over the input's channels is what takes time."""
    net = Net(None, 0)
    if kind == "matmul":
        value = net.node("MatMul", "x", net.weight(CHANNELS, 96))
        return net.model({"x": (64, CHANNELS)}, [value])
    size = 3 if kind == "convolution" else 1
    weights = net.weight(96, CHANNELS, size, size)
    value = net.node("Conv", "x", weights, net.weight(96), pads=[size // 2] * 4, strides=[1, 1])
    return net.model({"x": (1, CHANNELS, 14, 14)}, [value])


def kernels(
    proto: onnx.ModelProto, target: str, folder: Path, copies: float = 0
) -> list[tuple[str, str]]:
    """Kind and code of each of a model's kernels."""
    machine = parse_target(target).machine
    tool = {"aarch64": "aarch64-linux-gnu-objdump", "armv7l": "arm-linux-gnueabihf-objdump"}
    if shutil.which(tool[machine]) is None:
        pytest.skip(f"needs {tool[machine]}")
    options = LibraryOptions("net", threads="none")
    folder.mkdir()
    compile_library(from_proto(proto), parse_target(target), folder, options, copies=copies)
    done = subprocess.run(
        [tool[machine], "-d", "--no-show-raw-insn", folder / "libnet.a"],
        capture_output=True,
        text=True,
        check=True,
    )
    parts = re.split(r"^[0-9a-f]+ <([a-z]+)_[0-9a-f]{16}>:$", done.stdout, flags=re.M)
    return [(k, c.split("\n\n")[0]) for k, c in zip(parts[1::2], parts[2::2], strict=True)]


def disassembled(
    proto: onnx.ModelProto, target: str, folder: Path, copies: float = 0
) -> tuple[str, int]:
    """Code of the kernel that multiplies, and how many bytes weights and the rest take."""
    found = [code for kind, code in kernels(proto, target, folder, copies) if kind in MULTIPLYING]
    assert len(found) == 1, "one kernel multiplies"
    return found[0], (folder / "libnet.so").stat().st_size


def loops(code: str) -> list[list[str]]:
    """Instructions of the innermost loops."""
    lines = [m.groups() for m in re.finditer(r"^\s*([0-9a-f]+):\s+(.*)$", code, re.M)]
    place = {int(at, 16): i for i, (at, _) in enumerate(lines)}
    found = []
    for i, (_, text) in enumerate(lines):
        branch = BRANCH.match(text)
        if branch and place.get(int(branch[1], 16), i + 1) <= i:
            found.append((place[int(branch[1], 16)], i))
    inner = [a for a in found if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [[text for _, text in lines[first : last + 1]] for first, last in inner]


def hot_loop(code: str, multiply: str) -> list[str]:
    """The innermost loop with the most multiplications."""
    return max(loops(code), key=lambda body: sum(bool(re.match(multiply, t)) for t in body))


FLOAT, BYTES, SIGNED = "float32", "uint8", "int8"


@pytest.mark.parametrize("kind", ["pointwise", "convolution", "matmul"])
@pytest.mark.parametrize(
    ("target", "precision", "multiply", "others"),
    [
        ("aarch64", BYTES, r"smull\s+v\d+\.8h", (r"smlal2?\s+v\d+\.8h", r"sadalp")),
        ("aarch64-cortex-a53", BYTES, r"smull\s+v\d+\.8h", (r"smlal2?\s+v\d+\.8h", r"sadalp")),
        ("aarch64-cortex-a72", BYTES, r"smull\s+v\d+\.8h", (r"smlal2?\s+v\d+\.8h", r"sadalp")),
        ("armv7-a", BYTES, r"vmull\.s8", (r"vmlal\.s8", r"vpadal\.s16")),
        ("armv7-a-cortex-a7", BYTES, r"vmull\.s8", (r"vmlal\.s8", r"vpadal\.s16")),
        ("aarch64-cortex-a76", BYTES, r"sdot\s+v\d+\.4s, v\d+\.16b, v\d+\.4b\[", ()),
        ("aarch64-neoverse-n1", BYTES, r"sdot\s+v\d+\.4s, v\d+\.16b, v\d+\.4b\[", ()),
        ("aarch64-neoverse-v1", SIGNED, r"smmla\s+v\d+\.4s, v\d+\.16b, v\d+\.16b", ()),
        ("aarch64-neoverse-v2", BYTES, r"usmmla\s+v\d+\.4s, v\d+\.16b, v\d+\.16b", ()),
        ("aarch64-cortex-a72", FLOAT, r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[", ()),
        ("aarch64-cortex-a76", FLOAT, r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[", ()),
    ],
)  # fmt: skip
def test_hot_loops(
    tmp_path: Path, kind: str, target: str, precision: str, multiply: str, others: tuple[str, ...]
) -> None:
    """The instructions are there, nothing is on the stack, and weights are bytes."""
    proto = model(kind)
    quantized = quantize(proto, precision) if precision != FLOAT else proto
    code, size = disassembled(quantized, target, tmp_path / "out")
    body = hot_loop(code, multiply)
    count = sum(bool(re.match(multiply, text)) for text in body)
    assert count >= (4 if target.startswith("armv7") else 8), body
    for other in others:
        assert any(re.match(other, text) for text in body), other
    # ARMv7 has 13 registers for addresses, one of which a product of many rows keeps there.
    spilled = [text for text in body if "[sp" in text and not re.match(r"(ldr|str)\s+(r|lr)", text)]
    assert not spilled
    if precision != FLOAT:
        weights = 96 * CHANNELS * (9 if kind == "convolution" else 1)
        assert size < weights + 45_000


@pytest.mark.parametrize("activation", ["", "Erf"])
@pytest.mark.parametrize(("rows", "columns"), [(200, 96), (128, 64)])
def test_rows_are_packed(tmp_path: Path, rows: int, columns: int, activation: str) -> None:
    """Many rows of floats: an eighth of the hot loop is no product, and nothing is on the stack."""
    net = Net(None, 0)
    value = net.node("MatMul", "x", net.weight(CHANNELS, columns))
    value = net.node(activation, value) if activation else value
    proto = net.model({"x": (rows, CHANNELS)}, [value])
    code, _ = disassembled(proto, "aarch64-cortex-a76", tmp_path / "out")
    multiply = r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\["
    body = hot_loop(code, multiply)
    count = sum(bool(re.match(multiply, text)) for text in body)
    assert count >= 24 * 12
    assert len(body) <= 1.125 * count
    assert not [text for text in body if "[sp" in text]
    assert sum("st4" in text for text in code.splitlines()) >= 2


def test_first_convolution_reads_taps_together(tmp_path: Path) -> None:
    """Of three channels a row's taps lie side by side: few loads are of one number."""
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(32, 3, 3, 3), strides=[2, 2])
    proto = net.model({"x": (1, 3, 65, 65)}, [value])
    code, _ = disassembled(proto, "aarch64-cortex-a76", tmp_path / "out")
    multiply = r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\["
    body = hot_loop(code, multiply)
    count = sum(bool(re.match(multiply, text)) for text in body)
    assert count >= 9 * 8
    assert len(body) <= 1.35 * count, body
    assert not [text for text in body if "[sp" in text]


@pytest.mark.parametrize(
    ("target", "stride", "multiply", "count"),
    [
        ("aarch64-cortex-a76", 1, r"sdot\s+v\d+\.4s", 24),
        ("aarch64-neoverse-v1", 2, r"usdot\s+v\d+\.4s", 24),
        ("aarch64-cortex-a72", 1, r"s(mull|mlal|addw)\S*\s+v\d+\.", 36),
    ],
)
def test_depthwise_loops(
    tmp_path: Path, target: str, stride: int, multiply: str, count: int
) -> None:
    """Three taps of four channels by one dot product, where there are any."""
    net = Net(None, 0)
    weights = net.weight(CHANNELS, 1, 3, 3)
    options = {"pads": [1, 1, 1, 1], "group": CHANNELS, "strides": [stride, stride]}
    value = net.node("Conv", "x", weights, net.weight(CHANNELS), **options)
    proto = quantize(net.model({"x": (1, CHANNELS, 16, 16)}, [value]))
    code, _ = disassembled(proto, target, tmp_path / "out")
    body = max(loops(code), key=len)
    assert sum(bool(re.match(multiply, text)) for text in body) >= count, body
    assert "-a72" in target or not any(re.match("s(mull|mlal)", text) for text in body)


@pytest.mark.parametrize(
    ("target", "precision", "multiply"),
    [
        ("aarch64", BYTES, r"smlal2?\s+v\d+\.4s, v\d+\.[48]h, v\d+\.h\["),
        ("aarch64-cortex-a72", BYTES, r"smlal2?\s+v\d+\.4s, v\d+\.[48]h, v\d+\.h\["),
        ("armv7-a", BYTES, r"vmlal\.s16\s+q\d+, d\d+, d\d+\["),
        ("aarch64-cortex-a72", FLOAT, r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\["),
        ("aarch64-cortex-a76", FLOAT, r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\["),
    ],
)
def test_hot_loops_of_winograds_scheme(
    tmp_path: Path, target: str, precision: str, multiply: str
) -> None:
    """Products by one element of a register; nothing is on the stack."""
    proto = model("convolution")
    proto = quantize(proto) if precision == BYTES else proto
    body = hot_loop(disassembled(proto, target, tmp_path / "out", math.inf)[0], multiply)
    assert sum(bool(re.match(multiply, text)) for text in body) >= 16, body
    assert not [text for text in body if "[sp" in text and not re.match(r"ldr\s+(r|lr)", text)]


@pytest.mark.parametrize(
    ("target", "precision", "multiply", "most"),
    [
        ("aarch64-cortex-a72", FLOAT, r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[", 1.75),
        ("aarch64-cortex-a72", SIGNED, r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[", 1.75),
        ("aarch64-cortex-a76", SIGNED, r"sdot\s+v\d+\.4s, v\d+\.16b, v\d+\.4b\[", 1.35),
    ],
)
def test_hot_loops_of_recurrent_layers(
    tmp_path: Path, target: str, precision: str, multiply: str, most: float
) -> None:
    """Little but products; nothing is on the stack."""
    layer = recurrent_model("LSTM", steps=9, batch=1, hidden=256, inputs="x w r b")
    if precision == SIGNED:
        store_weights(layer)
    found = dict(kernels(to_proto(layer), target, tmp_path / "out"))
    body = hot_loop(found["recurrent"], multiply)
    count = sum(bool(re.match(multiply, text)) for text in body)
    assert count >= 32
    assert len(body) <= most * count, body
    assert not [text for text in body if "[sp" in text]


def test_what_surrounds_products_of_bytes(tmp_path: Path) -> None:
    """As in squeeze-and-excite networks: images are interleaved by one instruction, functions of
    bytes looked up, products rounded four vectors at a time."""
    net = Net(None, 0)
    value = net.node("Conv", "x", net.weight(32, 3, 3, 3), pads=[1, 1, 1, 1])
    value = net.node(
        "Relu", net.node("Conv", net.node("HardSwish", value), net.weight(32, 32, 1, 1))
    )
    gate = net.node("Conv", net.node("GlobalAveragePool", value), net.weight(32, 32, 1, 1))
    value = net.node("Mul", value, net.node("HardSigmoid", gate, alpha=1 / 6))
    value = net.node("Conv", value, net.weight(32, 32, 1, 1))
    proto = quantize(net.model({"x": (1, 3, 32, 32)}, [value]))
    found = kernels(proto, "aarch64-cortex-a72", tmp_path / "out")
    own = [code for kind, code in found if kind == "elementwise" and "sqxtn" in code]
    image, product = sorted(own, key=lambda code: "st4" not in code)
    assert re.search(r"\sst4\s+{v\d+\.16b", image)
    assert not re.search(r"\sumov\s", image)
    narrowed = [sum("sqxtn2" in text for text in body) for body in loops(product)]
    assert max(narrowed) == 2
    looked_up = [code for kind, code in found if re.search(r"\stbx\s+v\d+\.16b, {v\d+", code)]
    assert looked_up
    assert not any("fdiv" in code for code in looked_up)
