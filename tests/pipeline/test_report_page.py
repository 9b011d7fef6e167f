"""report.html, report.json's schema, and what reads them: also from hostile names and files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import secateur
from secateur.backends.tvm.lowering import elementwise
from secateur.checking.drawing import draw
from secateur.checking.layers import compare_layers, first_departure
from secateur.checking.measure import measure_stage
from secateur.cli import main
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import from_proto, load, save
from secateur.ir.tensor import Tensor
from secateur.passes.base import Context
from secateur.passes.quantize import QuantizeStatic
from secateur.passes.sizes import infer_sizes
from secateur.pipeline.transform import quantize_file
from secateur.reporting.graph_layout import HEIGHT, WIDTH, lay_out
from secateur.reporting.html import inspection_page, report_page
from secateur.reporting.report import Report, count_text
from secateur.reporting.schema import PAGE, report_schema, schema_text

pytest.importorskip("jinja2")

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x1b[31m{{ 7 * 7 }}"


def network(last: str = "last") -> Model:
    """Two convolutions beside each other and a classifier, whose last node's name is given."""
    random = np.random.default_rng(3)
    weights = {
        "w": random.standard_normal((16, 3, 3, 3)).astype(np.float32) / 3,
        "u": random.standard_normal((16, 3, 3, 3)).astype(np.float32) / 3,
        "v": random.standard_normal((16, 5)).astype(np.float32) / 4,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "left"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["x", "u"], ["c"], "right"),
        helper.make_node("Add", ["b", "c"], ["d"], "sum"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "v"], ["y"], last),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


def samples(count: int = 12) -> dict[str, Any]:
    return {"x": np.random.default_rng(0).random((count, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a quantization, with everything that a report can have, under a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    model = network(HOSTILE)
    save(model, folder / "m.onnx")
    made = quantize_file(folder / "m.onnx", folder / "q.onnx", data=samples())
    infer_sizes(model)
    made.drawing = draw(model)
    quantized = load(folder / "q.onnx")
    feeds = [{"x": samples()["x"][:1]}]
    made.layers = [vars(layer) for layer in compare_layers(model, quantized, feeds)]
    made.operators = [
        {"node": HOSTILE, "op_type": "Conv", "microseconds": 3.0, "macs": 4000},
        {"node": "b", "op_type": "Add", "microseconds": 1.0, "macs": 0},
    ]
    made.warnings.append(HOSTILE)
    made.command = f"secateur optimize {HOSTILE}"
    content: dict[str, Any] = json.loads(made.to_json())
    return content


def test_the_page_has_every_part(report: dict[str, Any]) -> None:
    page = report_page(report, ["data:image/png;base64,AAAA"])
    for part in ("Stages", "Network", "Values by distance", "Latency by operator", "Samples as"):
        assert f"<h2>{part}" in page
    assert page.count('<g class="node') == 7
    assert "data:image/png;base64,AAAA" in page
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_the_page_names_branches_that_went(report: dict[str, Any]) -> None:
    branch = {"add": "<join>", "nodes": ["a", "b"], "macs": 1234}
    group = {"name": "g", "size": 4, "kept": 2, "score_lost": 0.1, "readers": ["a"]}
    run = {**report["passes"][0], "text": "prune-channels{macs=0.5}"}
    run["statistics"] = {"groups": [group], "branches": [branch]}
    page = report_page({**report, "passes": [run]})
    assert "Of the sum &lt;join&gt; a summand went whole: 2 nodes, 1,234 multiply-acc" in page


def test_the_page_says_what_numbers_hold_for(report: dict[str, Any]) -> None:
    """Sizes that costs count, the artifact in words, and the ends of the plots' axes."""
    stage = {**report["stages"][-1], "name": "artifact", "nodes": None, "macs": None}
    artifact = {
        "target": "x86-64-v3",
        "file_bytes": 12_345,
        "seconds": 2.0,
        "ran": False,
        "files": ["model.so"],
        "reason": "made for <another> machine",
        "compiler": {"left": [], "tuning": None, "accesses": {"proven": 5, "guarded": 1}},
        "reference": "quantized",
        "agreement": None,
        "level": "",
    }
    content = {**report, "stages": [*report["stages"], stage], "artifact": artifact}
    page = report_page(content)
    assert "MACs count N as 1 (--input-shape fixes them)." in page
    assert "Compiled for x86-64-v3 in 2.0 s: 12.3 kB." in page
    assert "Not run: made for &lt;another&gt; machine." in page
    most = max(stage["macs"] or 0 for stage in report["stages"])
    assert f'text-anchor="middle">{count_text(most)}</text>' in page
    assert "<h2>Artifact" not in report_page(report)


def test_values_of_the_worst_operators_are_drawn(report: dict[str, Any]) -> None:
    (drawn,) = re.findall(
        r'<div class="plots" id="histograms">.*?</div>', report_page(report), re.S
    )
    (run,) = [p for p in report["passes"] if p["text"].startswith("quantize")]
    known = [e for e in run["statistics"]["operators"] if sum(e["histogram"])]
    assert drawn.count("<figure>") == min(6, len(known)) > 1
    first = known[0]
    assert f"{first['low']:.3g}</text>" in drawn
    assert drawn.count("<rect") >= len([c for c in first["histogram"] if c])
    assert f"{round((first['high'] - first['low']) / first['step'])} steps" in drawn


def test_notebooks_show_tables() -> None:
    """Of reports and models, whose names are text."""
    model = network(HOSTILE)
    model.graph.outputs[0].name = HOSTILE
    shown = model._repr_html_()
    assert "x: float[N, 3, 8, 8]" in shown
    assert "7: Conv 2" in shown
    made = Report({"file": f"a/{HOSTILE}"}, {}, {})
    made.stages = [measure_stage("original", model, 0.0)]
    made.warnings = [HOSTILE]
    for text in (shown, made._repr_html_()):
        assert "<script" not in text
        assert "<img" not in text
        assert "\u202e" not in text
        assert text.count("<table") == text.count("</table") == 1
    assert "original" in made._repr_html_()


def test_names_of_a_model_are_text(report: dict[str, Any]) -> None:
    page = report_page(report)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "{{ 7 * 7 }}" in page  # not computed
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script>") == 1


def test_what_is_no_report_is_refused(tmp_path: Path, report: dict[str, Any]) -> None:
    for damaged in ({"stages": 3}, {**report, "stages": [{}]}, {**report, "passes": [{"text": 1}]}):
        with pytest.raises(SecateurError, match="a damaged one"):
            report_page(damaged)
    for content in ("", "[]", "{}", "[" * 100_000, json.dumps({**report, "schema": 99})):
        (tmp_path / "report.json").write_text(content)
        run = CliRunner().invoke(main, ["report", str(tmp_path)])
        assert run.exit_code == 1
        assert run.output.startswith("Error: ")
        assert run.output.count("\n") == 1


def test_the_schema_is_that_of_the_classes(report: dict[str, Any]) -> None:
    assert PAGE.read_text() == schema_text()
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(report_schema())
    validator.check_schema(report_schema())
    assert not list(validator.iter_errors(report))
    for broken in ({**report, "schema": 2}, {**report, "more": 1}, {**report, "stages": [{}]}):
        assert list(validator.iter_errors(broken))


def test_a_page_is_made_again(tmp_path: Path, report: dict[str, Any]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report))
    run = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert run.exit_code == 0, run.output
    page = tmp_path / "report.html"
    assert run.output.strip() == str(page)
    assert page.read_text() == report_page(report)
    page.write_text("as it was")
    CliRunner().invoke(main, ["report", str(tmp_path)])
    assert page.read_text() == "as it was"


def test_a_damaged_report_is_named(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"schema": 1, "stages": []}))
    run = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert run.exit_code == 1
    assert run.output.startswith(f"Error: {path}: no report.json, or a damaged one")


def test_two_reports_side_by_side(tmp_path: Path, report: dict[str, Any]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        other = {**report, "options": {**report["options"], "seed": name}}
        other["metrics"] = [{"name": "top1", "better": "higher", "unit": "share"}]
        last = {**report["stages"][-1], "metrics": {"top1": 0.875}}
        other["stages"] = [*report["stages"][:-1], last]
        (tmp_path / name / "report.json").write_text(json.dumps(other))
    paths = [str(tmp_path / name / "report.json") for name in ("a", "b")]
    run = CliRunner().invoke(main, ["compare", *paths])
    assert run.exit_code == 0, run.output
    assert 'seed: "a" | "b"' in run.output
    assert "step" not in run.output
    assert "top-1" in run.output
    assert run.output.count("87.50 %") == 2
    folders = [str(Path(path).parent) for path in paths]
    assert "87.50 %" in CliRunner().invoke(main, ["compare", *folders]).output
    run = CliRunner().invoke(main, ["compare", *paths, "--layers"])
    assert run.exit_code == 2


def test_a_drawing_of_a_model(tmp_path: Path) -> None:
    save(network(), tmp_path / "m.onnx")
    page = tmp_path / "m.html"
    run = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx"), "--html", str(page)])
    assert run.exit_code == 0, run.output
    text = page.read_text()
    assert text.count('<g class="node') == 7
    assert "MatMul" in text
    assert "MACs count N as 1 (--input-shape fixes them)." in text
    assert "input x: float [N, 3, 8, 8]" in text
    assert "constants alone" not in text


def test_what_constants_alone_make_is_not_drawn() -> None:
    """Exporters write dozens of such nodes, which would spread beside the network."""
    text = """<ir_version: 9, opset_import: ["": 18]>
    agraph (float[n, 4] x, bool flag) => (float[n, 4] y) {
    [one] a = Constant<value: tensor = float[1] {2.0}>()
    [two] b = Exp(a)
    [first] c = Mul(x, b)
    [last] y = If(flag)<then_branch = g () => (float[n, 4] t) { t = Add(c, b) },
        else_branch = h () => (float[n, 4] e) { e = Sub(c, b) }>
    }"""
    drawing = draw(from_proto(onnx.parser.parse_model(text)))
    assert drawing["total"] == 4
    assert [node["node"] for node in drawing["nodes"]] == ["first", "last"]
    assert [node["reads"] for node in drawing["nodes"]] == [[], [0]]
    constant = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 18]>
        agraph () => (float[1] y) { y = Constant<value: tensor = float[1] {2.0}>() }"""
    )
    assert len(draw(from_proto(constant))["nodes"]) == 1


def test_widths_groups_and_locks_are_drawn() -> None:
    model = network()
    infer_sizes(model)
    thin = model.clone()
    by_name = {value.name: value for value in thin.graph.values()}
    by_name["a"].set_tensor_type(TensorProto.FLOAT, ["N", 10, 6, 6])
    drawing = draw(model, thin)
    nodes = {node["node"]: node for node in drawing["nodes"]}
    assert nodes["left"]["channels"] == 16
    assert nodes["left"]["kept"] == 10
    assert nodes["right"]["kept"] is None
    assert nodes["sum"]["reads"] == [1, 2]
    assert nodes["left"]["groups"] == nodes["right"]["groups"]
    assert any("interface" in (group["lock"] or "") for group in drawing["groups"])
    large = Model(model.graph, model.extra)
    assert inspection_facts(large)["drawing"]["total"] == 7


def inspection_facts(model: Model) -> dict[str, Any]:
    facts = {"file": "m", "nodes": 1, "parameters": 1, "weight_bytes": 1, "macs": 1, "inputs": [],
             "outputs": [], "operators": [], "uncounted": [], "inputs_with_defaults": 0,
             "drawing": draw(model)}  # fmt: skip
    assert "<h2>Network" in inspection_page(facts)
    return facts


@pytest.mark.parametrize("seed", range(3))
def test_nodes_lie_beside_each_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    reads = [
        sorted({int(k) for k in random.integers(0, node, random.integers(0, 4))}) if node else []
        for node in range(60)
    ]
    layout = lay_out(reads)
    corners = np.array(layout.corners)
    for index, (x, y) in enumerate(corners):
        others = np.delete(corners, index, axis=0)
        apart = (abs(others[:, 0] - x) >= WIDTH) | (abs(others[:, 1] - y) >= HEIGHT)
        assert apart.all()
    assert (corners[:, 0] >= 0).all()
    assert (corners[:, 0] + WIDTH <= layout.width).all()
    assert (corners[:, 1] + HEIGHT <= layout.height).all()
    assert {(a, b) for a, b, _ in layout.paths} == {
        (r, n) for n, own in enumerate(reads) for r in own
    }
    assert all(corners[a][1] < corners[b][1] for a, b, _ in layout.paths)
    assert lay_out([]).corners == []


# --- values inside ------------------------------------------------------------------------


def test_the_first_value_that_departs_is_found(tmp_path: Path) -> None:
    model, other = network(), network()
    infer_sizes(model)
    weights = other.graph.initializers["u"]
    assert weights.const is not None
    weights.const = Tensor.from_array(weights.const.numpy() * np.float32(1.01))
    feeds = [samples(1)]
    found = compare_layers(model, other, feeds)
    first = first_departure(found)
    assert first is not None
    assert first.node == "right"
    assert [d.value for d in found if d.departs] == ["c", "d", "e", "f", "y"]
    assert first_departure(compare_layers(model, network(), feeds)) is None
    assert found[0].low == pytest.approx(found[1].low if found[0].low >= 0 else found[0].low)
    save(model, tmp_path / "a.onnx")
    save(other, tmp_path / "b.onnx")
    arguments = ["compare", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "--layers"]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 0, run.output
    assert "first that of 'right' (Conv)" in run.output
    shutil.copy(tmp_path / "b.onnx", tmp_path / "b.so")
    run = CliRunner().invoke(main, [*arguments[:2], str(tmp_path / "b.so"), "--layers"])
    assert run.exit_code == 1
    assert "has no values inside" in run.output


def test_a_node_that_is_compiled_wrongly_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(network(), tmp_path / "m.onnx")
    model = str(tmp_path / "m.onnx")
    command = ["compare", model, model, "--layers", "--target", "native"]
    run = CliRunner().invoke(main, command)
    assert run.exit_code == 0, run.output
    assert "are the same but for rounding" in run.output
    monkeypatch.setitem(elementwise._BINARY, "Add", "sub")
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    run = CliRunner().invoke(main, command)
    assert run.exit_code == 0, run.output
    assert "(Add)" in run.output.splitlines()[-1]
    for words in (command[:-3] + command[-2:], [*command[:-1], "riscv64"], [*command[:-1], "?"]):
        assert CliRunner().invoke(main, words).exit_code in (1, 2)


def test_a_quantized_model_departs_by_its_noise() -> None:
    model = network()
    infer_sizes(model)
    quantized = model.clone()
    QuantizeStatic().run(quantized, Context(samples()))
    found = compare_layers(model, quantized, [{"x": samples()["x"][:1]}])
    known = [d.sqnr_db for d in found if d.sqnr_db is not None]
    assert found
    assert all(15 < value < 60 for value in known)


# --- in a browser ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """No errors, no requests, nothing wider than a phone, light and dark, and a drawing that
    answers."""
    playwright = pytest.importorskip("playwright.sync_api")
    image = pytest.importorskip("PIL.Image")
    browser_path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    out = tmp_path / "out"
    save(network(HOSTILE), tmp_path / "m.onnx")
    labels = np.arange(12) % 5
    data = {**samples(), "labels": labels}
    secateur.optimize(
        tmp_path / "m.onnx",
        out,
        target="native",
        ratio=0.25,
        quantize="int8",
        calibration=samples(),
        evaluation=data,
        command="secateur optimize",
    )
    seen: list[str] = []
    with playwright.sync_playwright() as running:
        try:
            browser = running.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {error}")
        shots = {}
        for scheme, width in (("light", 1200), ("dark", 1200), ("light", 390)):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.on("console", lambda message: seen.append(message.text))
            page.on("pageerror", lambda error: seen.append(str(error)))
            page.on("dialog", lambda dialog: seen.append(dialog.message))
            page.on(
                "request",
                lambda request: (
                    seen.append(request.url)
                    if not request.url.startswith(("file:", "data:"))
                    else None
                ),
            )
            page.goto((out / "report.html").as_uri())
            for selector in ("#stages tr", "#network g.node", ".arena rect", "#operators tr"):
                assert page.locator(selector).count() >= 2, selector
            assert page.locator("#layers tr").count() >= 2
            for selector in ("#histograms rect", "#rounded rect"):
                fill = page.locator(selector).first.evaluate("bar => getComputedStyle(bar).fill")
                assert fill not in ("rgb(0, 0, 0)", "rgb(255, 255, 255)"), (selector, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            before = page.get_attribute("#network svg", "viewBox")
            page.click("#network button[data-zoom='0.8']")
            assert page.get_attribute("#network svg", "viewBox") != before
            page.locator("#network g.node").first.hover()
            assert "channels" in page.inner_text("#told")
            shots[scheme, width] = page.screenshot()
            page.close()
        browser.close()
    assert seen == []
    colours = {}
    for key, content in shots.items():
        path = tmp_path / "shot.png"
        path.write_bytes(content)
        with image.open(path) as shot:
            pixels = np.asarray(shot.convert("L"))
        assert len(np.unique(pixels)) > 30, key
        colours[key] = float(np.median(pixels))
    assert colours["light", 1200] > 200
    assert colours["dark", 1200] < 60
