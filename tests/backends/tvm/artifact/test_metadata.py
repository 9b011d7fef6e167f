"""What an artifact says of the numbers that it takes and gives."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.metadata import container_interface, quantized_ends
from secateur.ir.text import parse_model

MODEL = """model <ir_version = 8, opset = ["" = 17]>
graph g (
  %a: uint8[2, 3], %b: int8[2, 3], %c: uint8[2, 3], %d: uint8[2, 3], %e: uint8[2, 3],
  %f: uint8[2, 3], %scale: float[]
) -> (%p: float[2, 3], %q: uint8[2, 3], %r: int8[2, 3], %s: uint8[2, 3], %t: uint8[2, 3]) {
  const %half: float[] = 0.5
  const %quarter: float[1] = [0.25]
  const %each: float[3] = [0.5, 0.25, 0.125]
  const %seven: uint8[] = 7
  const %minus: int8[1] = [-3]
  const %zeros: uint8[3] = [0, 1, 2]
  %a0 = DequantizeLinear(%a, %half)
  %b0 = DequantizeLinear(%b, %quarter, %minus)
  %c0 = DequantizeLinear(%c, %half, %seven)
  %c1 = DequantizeLinear(%c, %half)
  %d0 = DequantizeLinear(%d, %each, %zeros)
  %e0 = DequantizeLinear(%e, %scale)
  %f0 = DequantizeLinear(%f, %half, %seven)
  %f1 = DequantizeLinear(%f, %half, %seven)
  %p = Sum(%a0, %b0, %c0, %c1, %d0, %e0, %f0, %f1)
  %q = QuantizeLinear(%p, %half)
  %r = QuantizeLinear(%p, %quarter, %minus)
  %s = QuantizeLinear(%p, %each, %zeros)
  %t = QuantizeLinear(%p, %scale)
}"""


def test_scales_are_told_where_one_constant_holds_for_all_elements_and_readers() -> None:
    """`c` is read in two ways, `d` and `s` have a scale for each channel, those of `e` and `t` are
    computed."""
    assert quantized_ends(parse_model(MODEL)) == {
        "a": {"scale": 0.5, "zero_point": 0},
        "b": {"scale": 0.25, "zero_point": -3},
        "f": {"scale": 0.5, "zero_point": 7},
        "q": {"scale": 0.5, "zero_point": 0},
        "r": {"scale": 0.25, "zero_point": -3},
    }


def test_a_container_tells_sizes_and_types_as_far_as_they_are_known() -> None:
    model = parse_model("""model <ir_version = 8, opset = ["" = 17]>
graph g (
  %a: float[2, n], %b: int8[], %c: string[0], %d: float16[*], %s: seq(float[1])
) -> (%e: float[n], %f: uint8[2]) {
  %e = Squeeze(%a)
  %f = Cast(%b) {to = 2}
}""")
    inputs, outputs = container_interface(model)
    known = [("a", "float32", [2, None]), ("b", "int8", []), ("c", "object", [0])]
    assert [(v["name"], v["dtype"], v["shape"]) for v in inputs] == [
        *known,
        ("d", "float16", None),
        ("s", None, None),
    ]
    assert [(v["name"], v["dtype"], v["shape"]) for v in outputs] == [
        ("e", "float32", [None]),
        ("f", "uint8", [2]),
    ]
