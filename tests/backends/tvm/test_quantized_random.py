"""Random graphs in every scheme, compiled: as ONNX Runtime computes the same file.

Integers are the same but where the floats that are rounded lie so near to a tie that another order
of their sums may fall on its other side (`rounding_room.py`); float16 is as near as its steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")

from secateur.backends.tvm.artifact.runtime import Runtime
from secateur.backends.tvm.compile import compile_model
from secateur.backends.tvm.targets import parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto
from secateur.ir.reference import Session
from secateur.passes.base import Context
from secateur.passes.quantize import SCHEMES, Quantize
from tests.passes.rounding_room import UnknownError, room
from tests.passes.test_quantize_random import networks

STEP = 2.0**-10
"""Of float16, as a share of the largest number."""

WAYS: dict[str, dict[str, Any]] = {name: {"scheme": name} for name in SCHEMES}
WAYS |= {
    "int8-signed, of 7 bits, per tensor": {
        "scheme": "int8-signed",
        "reduce_range": True,
        "per_channel": False,
    },
    "int8, int16 activations": {"activation": "int16"},
    "dynamic, of 7 bits, per tensor": {
        "scheme": "dynamic",
        "reduce_range": True,
        "per_channel": False,
    },
}
STATIC = [w for w, options in WAYS.items() if SCHEMES[options.get("scheme", "int8")].needs_samples]

SATURATING = () if "vnni" in parse_target("native").features else ("dynamic", "dynamic-per-token")
"""Ways whose products of bytes saturate in ONNX Runtime on this machine, but for 7-bit weights."""

SETTINGS = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # smaller cases take minutes to find
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ],
)


def written(proto: onnx.ModelProto, feeds: Any, way: str, left: set[int]) -> Model:
    """The model in a scheme, with the nodes at some places left in float."""
    model = from_proto(proto)
    names = [node.name for node in model.graph.nodes if node.name]
    ignore = tuple(f"{names[place]}" for place in left if place < len(names))
    options = WAYS[way] | ({"accuracy": "fast"} if way in STATIC else {})
    if way in SATURATING:
        options |= {"reduce_range": True}
    try:
        Session(model, optimize=False).run(feeds)
        Quantize(**options, ignore=ignore, table=False).run(model, Context(feeds))
    except SecateurError:
        reject()  # not one that ONNX Runtime takes, or nothing in it is quantized
    return model


def differences(model: Model, feeds: Any, folder: Path, *, half: bool) -> list[str]:
    """Outputs further from ONNX Runtime's than rounding explains."""
    compile_model(model.clone(), parse_target("native"), folder / "m.so", declared_sizes=True)
    have = Runtime(folder / "m.so").run(feeds)
    want = Session(model, optimize=False).run(feeds)
    if half:
        steps = 2 * STEP * (1 + sum(len(node.inputs) > 1 for node in model.graph.nodes))
        allowed: Any = {n: steps * np.abs(a).max(initial=1e-3) for n, a in want.items()}
    else:
        allowed = room(model, feeds)
    found = []
    for name, array in want.items():
        assert (have[name].dtype, have[name].shape) == (array.dtype, array.shape)
        gap = np.abs(have[name].astype(np.float64) - array)
        slack = 1e-6 * np.abs(array).max(initial=1e-6)
        if np.any(gap > 2 * allowed[name] + slack):
            found.append(f"{name}: {gap.max()} over {np.max(allowed[name])}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_scheme_is_as_onnx_runtime_computes_it(way: str, tmp_path: Path) -> None:
    @SETTINGS
    @given(networks(), st.sets(st.integers(0, 8), max_size=2))
    def check(case: tuple[onnx.ModelProto, dict[str, Any]], left: set[int]) -> None:
        proto, feeds = case
        for value in proto.graph.input:  # samples of one run share scales
            value.CopyFrom(onnx.helper.make_tensor_value_info("x", 1, feeds["x"].shape))
        model = written(proto, feeds, way, left)
        try:
            found = differences(model, feeds, tmp_path, half=way == "float16")
        except UnknownError:
            reject()
        assert not found

    check()
