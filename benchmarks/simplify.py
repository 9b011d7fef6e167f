"""Simplifiers side by side: nodes left and seconds, from one run.

    python benchmarks/simplify.py --peers PYTHON [--scaling] [--plot FILE.svg]

PYTHON is the interpreter of an environment with onnxsim, onnxslim, onnxscript and
onnxruntime; without it only secateur runs. The models are the light ones of the onnx
package and the project's tiny zoo. Every tool gets a parsed ModelProto and gives one
back (ONNX Runtime: a file); seconds are the best of `--repeats` runs, the tools taking
turns model by model. Results that hold operators of other domains don't count as fewest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("secateur", "onnxsim", "onnxslim", "onnxscript", "ort-basic")
FASTEST_OF = ("onnxsim", "onnxslim")


# --- one tool in its own process -----------------------------------------------------


def tool_secateur() -> Callable[[Any], Any]:
    sys.path.insert(0, str(ROOT))
    from secateur.ir.onnx_io import from_proto, to_proto
    from secateur.passes.simplify import Simplify

    def run(proto: Any) -> Any:
        model = from_proto(proto)
        Simplify().run(model)
        return to_proto(model)

    return run


def tool_onnxsim() -> Callable[[Any], Any]:
    import onnxsim

    def run(proto: Any) -> Any:
        result = onnxsim.simplify(proto)
        return result[0] if isinstance(result, tuple) else result

    return run


def tool_onnxslim() -> Callable[[Any], Any]:
    import onnxslim

    return lambda proto: onnxslim.slim(proto)


def tool_onnxscript() -> Callable[[Any], Any]:
    from onnxscript import optimizer

    return lambda proto: optimizer.optimize(proto)


def tool_ort_basic() -> Callable[[Any], Any]:
    import onnx
    import onnxruntime

    def run(proto: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = f"{folder}/out.onnx"
            providers = ["CPUExecutionProvider"]
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=providers)
            return onnx.load(options.optimized_model_filepath)

    return run


def serve(tool: str) -> None:
    """Answer each path on stdin with a line of JSON: nodes left, domains, seconds."""
    import onnx

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tools print must not mix with the answers
    run = globals()[f"tool_{tool.replace('-', '_')}"]()
    for line in sys.stdin:
        proto = onnx.load(line.strip())
        start = time.perf_counter()
        try:
            result = run(proto)
            answer: dict[str, Any] = {"seconds": time.perf_counter() - start, **describe(result)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:200]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def describe(proto: Any) -> dict[str, Any]:
    nodes = list(all_nodes(proto.graph))
    domains = sorted({n.domain for n in nodes} - {"", "ai.onnx", "ai.onnx.ml"})
    return {"nodes": len(nodes), "domains": domains}


def all_nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from all_nodes(body)


# --- the table -----------------------------------------------------------------------


class Worker:
    """A tool in a process of its own, asked one model at a time."""

    def __init__(self, tool: str, python: str) -> None:
        command = [python, str(Path(__file__)), "--serve", tool]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, path: Path) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{path}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": "the tool ended"}


def find_models(pattern: str) -> dict[str, Path]:
    import onnx

    light = Path(onnx.__file__).parent / "backend/test/data/light"
    paths = [*sorted(light.glob("*.onnx")), *sorted((ROOT / "models/zoo/data").glob("*.onnx"))]
    return {p.stem: p for p in paths if pattern in p.stem}


def compare(models: dict[str, Path], tools: dict[str, str], repeats: int) -> list[str]:
    """Print the table; the models in which secateur is not the best or not the fastest."""
    workers = {tool: Worker(tool, python) for tool, python in tools.items()}
    print(f"{'model':28}{'nodes':>6} " + "".join(f"{tool:>18}" for tool in tools))
    behind: list[str] = []
    for name, path in models.items():
        import onnx

        original = describe(onnx.load(str(path), load_external_data=False))["nodes"]
        best: dict[str, dict[str, Any]] = {}
        for _ in range(repeats):
            for tool, worker in workers.items():
                answer = worker.ask(path)
                if tool not in best or answer.get("seconds", 1e9) < best[tool].get("seconds", 1e9):
                    best[tool] = answer
        row = "".join(f"{cell(best[tool]):>18}" for tool in tools)
        verdict = judge(best)
        print(f"{name:28}{original:6} {row}  {verdict}", flush=True)
        if verdict:
            behind.append(f"{name}: {verdict}")
    return behind


def cell(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return "failed"
    mark = "*" if answer["domains"] else ""
    return f"{answer['nodes']}{mark} / {answer['seconds']:.3f} s"


def judge(best: dict[str, dict[str, Any]]) -> str:
    ours = best["secateur"]
    if "error" in ours:
        return ours["error"]
    others = {t: a for t, a in best.items() if t != "secateur" and "error" not in a}
    words = []
    standard = [a["nodes"] for a in others.values() if not a["domains"]]
    if standard and ours["nodes"] > min(standard):
        words.append(f"{ours['nodes'] - min(standard)} more nodes")
    times = [others[t]["seconds"] for t in FASTEST_OF if t in others]
    if times and ours["seconds"] > min(times):
        words.append(f"{ours['seconds'] / min(times):.1f}x the time")
    return ", ".join(words)


# --- scaling -------------------------------------------------------------------------


def scaling_model(nodes: int) -> Any:
    """Blocks of convolution, normalisation, a shape chain, a residual Add and transposes."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    made: list[Any] = []
    constants: dict[str, Any] = {
        "zero": np.int64(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
        "whole": np.array([0, 4, 3, 3]),
    }
    last = "x"
    for block in range(-(-nodes // 14)):
        p = f"block{block}/"
        constants[p + "w"] = random.standard_normal((4, 4, 1, 1)).astype(np.float32) / 2
        for name in ("scale", "bias", "mean", "var"):
            constants[p + name] = random.uniform(0.5, 1.5, 4).astype(np.float32)
        statistics = [p + n for n in ("scale", "bias", "mean", "var")]
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("Conv", [last, p + "w"], "c", {}),
            ("BatchNormalization", [p + "c", *statistics], "n", {}),
            ("Relu", [p + "n"], "r", {}),
            ("Identity", [p + "r"], "i", {}),
            ("Shape", [p + "i"], "s", {}),
            ("Gather", [p + "s", "zero"], "g", {"axis": 0}),
            ("Unsqueeze", [p + "g", "axes"], "u", {}),
            ("Concat", [p + "u", "rest"], "t", {"axis": 0}),
            ("Reshape", [p + "i", p + "t"], "f", {}),
            ("Reshape", [p + "f", "whole"], "q", {}),
            ("Add", [p + "q", last], "a", {}),
            ("Transpose", [p + "a"], "t1", {"perm": [0, 2, 3, 1]}),
            ("Relu", [p + "t1"], "t2", {}),
            ("Transpose", [p + "t2"], "t3", {"perm": [0, 3, 1, 2]}),
        ]
        for op_type, inputs, output, attributes in steps:
            made.append(
                helper.make_node(op_type, inputs, [p + output], name=p + output, **attributes)
            )
        last = p + "t3"
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4, 3, 3]) for n in ("x", last)
    ]
    initializers = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(made, "scaling", infos[:1], infos[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scaling(counts: list[int], plot: Path | None) -> None:
    run = tool_secateur()
    points: list[tuple[int, float]] = []
    print(f"{'nodes':>8}{'left':>8}{'seconds':>10}{'us per node':>13}")
    for count in counts:
        proto = scaling_model(count)
        start = time.perf_counter()
        result = run(proto)
        seconds = time.perf_counter() - start
        points.append((count, seconds))
        left = len(result.graph.node)
        print(f"{count:8}{left:8}{seconds:10.2f}{1e6 * seconds / count:13.0f}", flush=True)
    if plot is not None:
        plot.write_text(svg(points))
        print(f"wrote {plot}")


def svg(points: list[tuple[int, float]]) -> str:
    """Nodes against seconds, with the straight line through the last point."""
    width, height, margin = 480, 320, 50
    right, top = max(n for n, _ in points), max(s for _, s in points)

    def place(nodes: float, seconds: float) -> tuple[float, float]:
        x = margin + (width - 2 * margin) * nodes / right
        return x, height - margin - (height - 2 * margin) * seconds / top

    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in (place(*p) for p in points)
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in sorted(points)))
    (x0, y0), (x1, y1) = place(0, 0), place(*points[-1])
    text = 'font-family="sans-serif" font-size="12"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="silver" stroke-dasharray="4"/>'
        f'<polyline points="{line}" fill="none" stroke="black"/>{dots}'
        f'<text x="{width / 2}" y="{height - 12}" {text} text-anchor="middle">'
        f"nodes (up to {right})</text>"
        f'<text x="8" y="{margin - 16}" {text}>seconds (up to {top:.1f})</text></svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has the peers")
    parser.add_argument("--models", default="", help="only models whose name contains this")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scaling", action="store_true", help="only: seconds against nodes")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 3000, 10000, 30000, 100000])
    parser.add_argument("--plot", type=Path, help="SVG file for --scaling")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    if arguments.scaling:
        scaling(arguments.counts, arguments.plot)
        return
    tools = {"secateur": sys.executable}
    if arguments.peers:
        tools |= dict.fromkeys(TOOLS[1:], arguments.peers)
    behind = compare(find_models(arguments.models), tools, arguments.repeats)
    print(f"\nbehind in {len(behind)}:" if behind else "\nbehind in none")
    print("\n".join(f"  {line}" for line in behind))


if __name__ == "__main__":
    main()
