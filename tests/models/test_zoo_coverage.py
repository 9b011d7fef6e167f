"""The pruning benchmark's own parts: what it measures, and what it calls a failure."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from secateur.ir.cost import count
from secateur.ir.infer import infer_shapes
from secateur.ir.onnx_io import load, save
from secateur.models.zoo import ZOO, load_tiny, random_inputs, tiny_path

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = ROOT / "benchmarks" / "pruning_coverage.py"
    spec = importlib.util.spec_from_file_location("pruning_coverage", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["resnet8", "unet", "bert", "lstm"])
def test_measures_what_fixed_shapes_say(benchmark: ModuleType, name: str) -> None:
    model = load_tiny(name, "folded")
    infer_shapes(model)
    measured, shapes = benchmark.measure(tiny_path(name, "folded"), random_inputs(model))
    assert measured.macs == count(model).macs > 0
    assert shapes == {"output": model.graph.outputs[0].shape}


@pytest.mark.parametrize("name", ["shufflenet_v1", "yolo", "bert", "gqa_decoder", "gru"])
def test_computed_shapes_cost_the_same(benchmark: ModuleType, name: str) -> None:
    """Chains of shape computations, which inference may not see through, are no discount."""
    costs = []
    for variant in ("folded", "kept"):
        feeds = random_inputs(load_tiny(name, variant), sizes={"batch": 1})
        costs.append(benchmark.measure(tiny_path(name, variant), feeds)[0].macs)
    assert costs[0] == costs[1]


class TestOutcomes:
    def outcome(self, benchmark: ModuleType, folder: Path, pruned: Path) -> object:
        bench = benchmark.Bench(folder, 0.5, "tiny", 1.0)
        bench.models = tiny_path("lenet5", "folded").parent
        case = benchmark.Case("lenet5", "folded", "tiny")
        return bench._measure(case, pruned, {"seconds": 1.0, "error": 0.0, "effect": 0.0})

    def test_the_model_itself_keeps_everything(self, benchmark: ModuleType, tmp_path: Path) -> None:
        outcome = self.outcome(benchmark, tmp_path, tiny_path("lenet5", "folded"))
        assert outcome == benchmark.Outcome(None, 1.0, 1.0, 1.0, error=0.0, effect=0.0)

    def test_another_output_shape_does_not_run(self, benchmark: ModuleType, tmp_path: Path) -> None:
        model = load(tiny_path("lenet5", "folded"))
        last = model.graph.nodes[-1].inputs[0]
        assert last is not None
        model.graph.nodes[-1].outputs[0].replace_uses(last)
        save(model, tmp_path / "other.onnx")
        outcome = self.outcome(benchmark, tmp_path, tmp_path / "other.onnx")
        assert outcome.failure == "does not run"

    def test_a_model_that_does_not_load_does_not_run(
        self, benchmark: ModuleType, tmp_path: Path
    ) -> None:
        model = load(tiny_path("lenet5", "folded"))
        model.graph.nodes[0].op_type = "NoSuchOperator"
        save(model, tmp_path / "other.onnx")
        outcome = self.outcome(benchmark, tmp_path, tmp_path / "other.onnx")
        assert outcome.failure == "does not run"

    def test_table_says_who_failed_and_what_is_inexact(self, benchmark: ModuleType) -> None:
        case = benchmark.Case("lenet5", "folded", "tiny")
        outcomes = {
            "secateur": benchmark.Outcome(
                None, 0.4, 0.31, 0.1, error=1e-2, effect=1.0, locked=("why",)
            ),
            "onnxsim 0.8.1": benchmark.Outcome(None, 0.3, 0.2, 0.1),
            "Torch-Pruning 1.6.1": benchmark.Outcome("crash", detail="IndexError"),
        }
        row = list(benchmark.table({case: outcomes}))[-1]
        assert row == (
            "| lenet5 | folded | 31% | 40% | 0.1 | **inexact** (1e-02) "
            "| 20% | 30% | 0.1 | crash |  |  |"
        )
        lines = list(benchmark.summary({case: outcomes}))
        assert lines[0] == "1 models; secateur: 0 exact, 0 failed."
        assert "- lenet5, folded: behind a peer. why" in lines


def test_an_empty_mask_proves_nothing(benchmark: ModuleType) -> None:
    assert benchmark.Outcome(None, macs=0.3, error=1e-7, effect=0.5).exact
    assert not benchmark.Outcome(None, macs=0.3, error=1e-7, effect=0.0).exact
    assert not benchmark.Outcome(None, macs=0.3, error=1e-3, effect=0.5).exact
    assert not benchmark.Outcome("crash", macs=0.3, error=0.0, effect=0.5).exact


def test_the_documentation_lists_the_zoo() -> None:
    text = (ROOT / "docs" / "zoo.md").read_text()
    listed = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert [name for name in listed if name in ZOO] == list(ZOO)
