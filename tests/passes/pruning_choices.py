"""What pruning chooses and reaches, as text; `python -m tests.passes.pruning_choices` writes it.

A paragraph of `tests/golden/pruning/choices.txt` is a case: its name, then, for each pass, what it
kept of whom, the candidates that it tried, how near each layer came to its target, and its notes.
That goals are met and results are valid is proven elsewhere, of any model; this keeps which of the
many ways that meet a goal was taken, and how much was lost by it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.ir.model import Model
from secateur.ir.ops.recurrent import GATES
from secateur.models import zoo
from secateur.passes.base import Context, Pass, PassResult
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels, Recover, RotateStreams
from secateur.passes.prune.importance import CRITERIA
from secateur.passes.prune.masking import PruningRecord
from secateur.passes.sizes import infer_sizes
from tests.paragraphs import read_paragraphs
from tests.passes import test_recovery_bodies, test_rotation
from tests.passes.nets import Net, redundant
from tests.passes.test_budgets import mlp, stairs

PATH = Path(__file__).parents[1] / "golden" / "pruning" / "choices.txt"
NEAR, NOTHING = 0.15, 5e-5
"""How far numbers may be apart as a share, and in any case: other CPUs round products otherwise."""

Array = Any


@dataclasses.dataclass(frozen=True)
class Case:
    model: Callable[[], Model]
    passes: Sequence[Pass]
    samples: Callable[[Model], Mapping[str, Array]] | None = None
    kernels: Sequence[Any] = ()


def normal(*shape: int) -> Callable[[Model], dict[str, Array]]:
    """Samples of one input; the first axis counts them."""
    draw = np.random.default_rng(7).standard_normal
    return lambda model: {model.graph.inputs[0].name: draw(shape).astype(np.float32)}


def of_zoo(count: int) -> Callable[[Model], dict[str, Array]]:
    def samples(model: Model) -> dict[str, Array]:
        feeds = [zoo.random_inputs(model, seed=seed) for seed in range(count)]
        return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}

    return samples


def tiny(name: str, variant: str = "folded") -> Callable[[], Model]:
    return lambda: zoo.load_tiny(name, variant)


def images() -> Model:
    """Convolutions some of whose channels are combinations of others; clipped, pooled, added."""
    net = Net(2)
    random = net.random
    hidden = net.add(
        "Clip",
        net.add("Conv", "x", net.constant(redundant(random, 8, 4, 3, 3, 3)), pads=[1] * 4),
        net.constant(0.0),
        net.constant(6.0),
    )
    bias = net.constant(random.standard_normal(12))
    inner = net.add("Conv", hidden, net.constant(random.standard_normal((12, 12, 3, 3)) / 9), bias)
    inner = net.add("Relu", net.add("BatchNormalization", inner, *batch_norm(net, 12)))
    deep = net.constant(random.standard_normal((12, 1, 3, 3)))
    inner = net.add("Conv", inner, deep, group=12, pads=[1] * 4)
    wide = net.add("Conv", inner, net.constant(random.standard_normal((20, 12, 1, 1)) / 3))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.add("HardSwish", wide)))
    head = net.constant(random.standard_normal((20, 5)))
    return net.model(["n", 3, 8, 8], net.add("Gemm", pooled, head))


def batch_norm(net: Net, count: int) -> list[str]:
    random = net.random
    values = [random.uniform(0.2, 2, count), random.standard_normal(count)]
    values += [random.standard_normal(count) / 5, random.uniform(0.5, 2, count)]
    return [net.constant(value) for value in values]


def residual() -> Model:
    """A stream to which three blocks add, one of them little but a constant."""
    net = Net(4)

    def conv(x: str, gain: float = 1.0, shift: float = 0.0) -> str:
        weights = net.random.standard_normal((10, 10, 3, 3)) * gain / 9
        bias = net.random.standard_normal(10) * shift
        return net.add("Conv", x, net.constant(weights), net.constant(bias), pads=[1] * 4)

    stream = net.add("Relu", conv("x"))
    for gain, shift in ((0.01, 2.0), (0.7, 0.1), (0.03, 1.0)):
        inner = net.add("Relu", conv(stream))
        stream = net.add("Relu", net.add("Add", conv(inner, gain, shift), stream))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", stream))
    head = net.constant(net.random.standard_normal((10, 6)))
    return net.model(["n", 10, 5, 5], net.add("Softmax", net.add("Gemm", pooled, head)))


def shared() -> Model:
    """Two layers that share weights, and one whose vector others add, too."""
    net = Net(5)
    random = net.random
    weights = net.constant(random.standard_normal((16, 16)) / 4)
    vector = net.constant(random.standard_normal(16))
    first = net.add("Relu", net.add("MatMul", "x", net.constant(random.standard_normal((8, 16)))))
    second = net.add("Add", net.add("MatMul", first, weights), vector)
    third = net.add("MatMul", net.add("Tanh", second), weights)
    other = net.add("Relu", net.add("MatMul", "x", net.constant(random.standard_normal((8, 16)))))
    both = net.add("Concat", third, net.add("Mul", other, vector), axis=1)
    return net.model(["n", 8], net.add("MatMul", both, net.constant(np.ones((32, 3)))))


def recurrent(kind: str) -> Model:
    """A layer of 14 units in both directions, whose steps are read by another."""
    net = Net(6)
    rows = GATES[kind] * 14
    weights = [
        net.constant(net.random.standard_normal(shape) / 3)
        for shape in ((2, rows, 5), (2, rows, 14), (2, 2 * rows))
    ]
    turned = net.add("Transpose", "x", perm=[1, 0, 2])
    units = net.add(kind, turned, *weights, hidden_size=14, direction="bidirectional")
    summed = net.add("ReduceSum", units, net.axes([1]), keepdims=0)
    head = net.constant(net.random.standard_normal((14, 3)))
    result = net.add("Transpose", net.add("MatMul", summed, head), perm=[1, 0, 2])
    return net.model(["n", 6, 5], result)


def cases() -> dict[str, Case]:
    layers = functools.partial(mlp, 6, 40, 20, 3)
    found = {
        f"weights {name}": Case(layers, [PruneChannels(macs=0.6, importance=name)])
        for name, criterion in CRITERIA.items()
        if not criterion.needs_samples
    }
    options: list[dict[str, Any]] = [
        {"scope": scope, **goal, **more}
        for scope in ("global", "uniform")
        for goal in ({"macs": 0.45}, {"params": 0.7}, {"bytes": 0.5}, {"ratio": 0.35})
        for more in ({}, {"align": 8}, {"limits": ("w0=0.5..0.7",)}, {"ignore": ("w2",)})
        if not ("ignore" in more and goal != {"params": 0.7})
    ]
    found |= {said(o): Case(layers, [PruneChannels(**o)]) for o in options}
    prices = stairs(100, 300, 0)
    for scope in ("global", "uniform"):
        for goal in ({"latency": 0.8, "align": 4}, {"latency": 0.5}):
            pass_ = PruneChannels(scope=scope, **goal)  # type: ignore[arg-type]
            found[f"stairs {said({'scope': scope, **goal})}"] = Case(
                layers, [pass_], kernels=prices
            )
    for name, goal in (
        ("resnet8", {"macs": 0.5}),
        ("shufflenet_v1", {"params": 0.6}),
        ("mobilenet_v3_small", {"macs": 0.7, "align": 4}),
        ("gqa_decoder", {"params": 0.6, "normalized": True}),
        ("bert", {"macs": 0.6}),
    ):
        found[f"{name} {said(goal)}"] = Case(tiny(name), [PruneChannels(**goal)])  # type: ignore[arg-type]
    found["tied vectors"] = Case(shared, [PruneChannels(macs=0.5)])
    # With samples: what layers read orders channels, and the best of several ways is taken.
    for name, criterion in CRITERIA.items():
        if criterion.needs_samples:
            passes = [PruneChannels(macs=0.6, importance=name), Recover(refine=False)]
            found[f"images {name}"] = Case(images, passes, normal(64, 3, 8, 8))
    found["images refined"] = Case(
        images, [PruneChannels(macs=0.5), Recover()], normal(96, 3, 8, 8)
    )
    found["images rematched"] = Case(
        images, [PruneChannels(params=0.5, rematch=True), Recover()], normal(64, 3, 8, 8)
    )
    found["residual"] = Case(residual, [PruneChannels(macs=0.6), Recover()], normal(64, 10, 5, 5))
    found["residual of one block"] = Case(
        residual, [PruneChannels(macs=0.7, depth=1), Recover(refine=False)], normal(40, 10, 5, 5)
    )
    found["shared weights"] = Case(
        shared, [PruneChannels(macs=0.6), Recover(refine=False)], normal(64, 8)
    )
    wide = functools.partial(mlp, 16, 48, 32, 16)
    found["stairs by trial"] = Case(
        wide,
        [PruneChannels(latency=0.7, align=8), Recover(refine=False)],
        normal(64, 16),
        stairs(200, 100, 0),
    )
    found["searched"] = Case(
        functools.partial(mlp, 3, 8, 6, 2), [PruneChannels(macs=0.6, search=9)], normal(16, 3)
    )
    found["one run"] = Case(wide, [PruneChannels(macs=0.6), Recover()], normal(1, 16))
    found["rotated"] = Case(
        lambda: test_rotation.decoder("Pow", np.random.default_rng(0)),
        [RotateStreams(), PruneChannels(macs=0.7), Recover(refine=False)],
        normal(32, 6, 5),
    )
    for kind in GATES:
        found[kind] = Case(
            functools.partial(recurrent, kind),
            [PruneChannels(macs=0.6), Recover(refine=False)],
            normal(48, 6, 5),
        )
    found["nothing asked for"] = Case(
        images, [PruneChannels(macs=1.0), Recover()], normal(64, 3, 8, 8)
    )
    for kind in test_recovery_bodies.CASES:
        found[f"body of {kind}"] = Case(
            functools.partial(test_recovery_bodies.built, kind, biased=True),
            [PruneChannels(macs=0.7), Recover(refine=False)],
            normal(48, 6),
        )
    for name in ("bert", "gqa_decoder", "mobilenet_v2"):
        found[f"{name} by samples"] = Case(
            tiny(name), [PruneChannels(macs=0.6), Recover(refine=False)], of_zoo(8)
        )
    return found


def said(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items()).replace("'", "")


def lines_of(case: Case) -> list[str]:
    """What the passes of a case chose and reached."""
    model = case.model()
    infer_sizes(model)
    samples = None if case.samples is None else case.samples(model)
    context = Context(samples, kernels=case.kernels)
    found = []
    for pass_ in case.passes:
        (record,) = PassManager([pass_]).run(model, context)
        found += lines_of_result(record.result)
        context = context.after(record.result)
    return found


def lines_of_result(result: PassResult) -> Iterator[str]:
    statistics = result.statistics
    for group in statistics.get("groups", ()):
        numbers = (group["score_lost"], group["score_removed"], group["score_kept"])
        text = " ".join("-" if n is None else f"{n:.3g}" for n in numbers)
        readers = ",".join(group["readers"])
        yield f"group {group['name']} {group['kept']} of {group['size']}, scores {text}, {readers}"
    record = result.artifacts.get("selection")
    if isinstance(record, PruningRecord):
        yield from kept_lines(record)
    yield f"changed {result.changed}"
    for name in ("align", "macs_after", "parameters_after", "latency", "tied", "streams"):
        if statistics.get(name):
            yield f"{name} {statistics[name]}"
    tried = statistics.get("candidates", ())
    if len(tried) > 1 and tried[1]["divergence"] < NOTHING:  # the best ones are equally good
        tried = sorted(tried, key=lambda trial: str(trial["name"]))
    for trial in tried:
        text = f"{trial['divergence']:.3g} {trial['divergence_unrecovered']:.3g}"
        yield f"candidate {trial['name']}: {text}"
    for branch in statistics.get("branches", ()):
        yield f"branch {branch['value']} {branch['macs']}"
    pruned = result.artifacts.get("pruned")
    if pruned is not None:
        yield f"helps {pruned.helps}"
    for layer in statistics.get("layers", ()):
        shares = f"{shown(layer['before'])} to {shown(layer['after'])}"
        text = f"{shares}, {layer['rows']} rows {layer['unknowns']} unknowns {layer['remark']}"
        yield f"layer {layer['node']} {text}".rstrip()
    if statistics.get("together"):
        together = {
            k: v if isinstance(v, str | int) else shown(v)
            for k, v in statistics["together"].items()
        }
        yield f"together {said(together)}".rstrip()
    yield from sorted({f"note {note}" for note in result.notes})


def shown(share: float) -> str:
    """Shares that are nothing but rounding are as good as 0."""
    return f"{share:.3g}" if share > 1e-6 else "0"


def kept_lines(record: PruningRecord) -> Iterator[str]:
    """Kept indices of constants, those that are alike in one line."""
    users: dict[str, list[str]] = {}
    for (node, position), (blocks, _) in record.constants.items():
        for block in blocks:
            for axis, indices in enumerate(block):
                if indices is not None:
                    users.setdefault(ranges(indices.tolist()), []).append(
                        f"{node}.{position}.{axis}"
                    )
    for text, names in users.items():
        yield f"kept {text} of {' '.join(names)}"


def ranges(indices: Sequence[int]) -> str:
    """`0-3,5` of 0, 1, 2, 3, 5."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in parts)


NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?|inf|nan")


def agree(found: str, wanted: str) -> bool:
    """Whether lines say the same, but for numbers with a fraction, which may be near."""
    if NUMBER.sub("#", found) != NUMBER.sub("#", wanted):
        return False
    pairs = zip(NUMBER.findall(found), NUMBER.findall(wanted), strict=True)
    return all(
        a == b
        or (
            ("." in a + b or "e" in a + b)
            and abs(float(a) - float(b)) <= NEAR * abs(float(b)) + NOTHING
        )
        for a, b in pairs
    )


def golden() -> dict[str, list[str]]:
    """What stands in the file, by case."""
    return read_paragraphs(PATH)


def main() -> None:
    PATH.parent.mkdir(exist_ok=True)
    paragraphs = ["\n".join([name, *lines_of(case)]) for name, case in cases().items()]
    PATH.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
