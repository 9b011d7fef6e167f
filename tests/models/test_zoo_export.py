"""Writing the zoo with torch. Skipped where the extra `torch` is not installed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import load
from secateur.ir.reference import Session
from secateur.models.zoo import ZOO, load_tiny, random_inputs

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
pytest.importorskip("onnxscript", reason="needs the extra 'torch'")

from secateur.models.zoo.__main__ import main  # noqa: E402
from secateur.models.zoo.export import build, export, to_onnx  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *itertools.product(["resnet8", "shufflenet_v1", "bert", "gru"], ["folded", "kept"]),
        ("resnet8", "dynamo"),
        *(
            pytest.param(n, "dynamo", marks=pytest.mark.slow)
            for n in ("shufflenet_v1", "bert", "gru")
        ),
    ],
)
def test_writes_what_is_committed(name: str, variant: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(name, path, variant, "tiny")
    model, committed = load(path), load_tiny(name, variant)
    feeds = random_inputs(committed)
    np.testing.assert_allclose(
        Session(model).run(feeds)["output"],
        Session(committed).run(feeds)["output"],
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("densenet121", 7_978_856),
        ("efficientnet_b0", 5_288_548),
        ("inception_v3", 23_834_568),  # without the auxiliary classifier
        ("mobilenet_v1", 4_231_976),
        ("mobilenet_v2", 3_504_872),
        ("mobilenet_v3_small", 2_542_856),
        ("regnet_y_400mf", 4_344_144),
        ("resnet50", 25_557_032),
        ("resnext50", 25_028_904),
        ("shufflenet_v2", 2_278_604),
        ("squeezenet", 1_235_496),
        ("vit_tiny", 5_717_416),
    ],
)
def test_full_size_is_the_published_one(name: str, parameters: int) -> None:
    with torch.device("meta"):
        module = ZOO[name].build("full")
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_writes_the_same_bytes(tmp_path: Path) -> None:
    for path in (tmp_path / "a.onnx", tmp_path / "b.onnx"):
        export("shufflenet_v2", path, "kept", "tiny")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_file_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that loses a layer must not go unnoticed."""
    module = build(ZOO["lenet5"], "tiny")
    forward = module.forward
    monkeypatch.setattr(
        module, "forward", lambda x: forward(x) * (1.0 if torch.onnx.is_in_onnx_export() else 2.0)
    )
    with pytest.raises(SecateurError, match="ONNX Runtime and torch differ"):
        to_onnx(module, ZOO["lenet5"], "folded", "tiny")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="no model 'alexnet' in the zoo; there are resnet8"):
        export("alexnet", tmp_path / "a.onnx", "kept")
    with pytest.raises(SecateurError, match="no variant 'odd'"):
        export("lenet5", tmp_path / "a.onnx", "odd")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path) -> None:
    arguments = ["lenet5", "--scale", "tiny", "-o", str(tmp_path)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "lenet5.folded.onnx",
        "lenet5.kept.onnx",
    ]
    again = CliRunner().invoke(main, [*arguments, "--missing"])
    assert again.output == ""
    assert CliRunner().invoke(main, ["alexnet", "-o", str(tmp_path)]).exit_code == 1
