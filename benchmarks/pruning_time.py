"""What pruning with recovery costs in time and memory.

    python -m secateur.models.zoo resnet50 densenet121 --variant folded -o zoo
    python benchmarks/pruning_time.py zoo/resnet50.folded.onnx --samples 256

Samples are made up (`--calibration synthetic`) unless `--calibration` names some; what they
show doesn't change what is computed. Printed are the seconds of each part, what became of the
steps of all layers together, and the most memory that the process held.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import click

from secateur.data.datasets import load_dataset
from secateur.data.synthetic import PREFIX, Synthetic
from secateur.ir.onnx_io import load
from secateur.passes.base import Context, Pass
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels, Recover
from secateur.passes.simplify import simplify_pipeline


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--calibration", default="synthetic:0:255", show_default=True)
@click.option("--samples", type=int, default=256, show_default=True)
@click.option("--macs", type=float, default=0.7, show_default=True)
def main(model: Path, calibration: str, samples: int, macs: float) -> None:
    original = load(model)
    PassManager(simplify_pipeline()).run(original)
    made_up = calibration.startswith(PREFIX)
    source = Synthetic.parse(calibration) if made_up else Path(calibration)
    arrays = load_dataset(source, original).samples.arrays
    context = Context({name: array[:samples] for name, array in arrays.items()})
    before = held()
    total = 0.0
    steps: list[Pass] = [PruneChannels(macs=macs), Recover()]
    for step in steps:
        start = time.perf_counter()
        (record,) = PassManager([step]).run(original, context)
        context = context.after(record.result)
        seconds = time.perf_counter() - start
        total += seconds
        print(f"{step.name}: {seconds:.0f} s", flush=True)
    together = record.result.statistics["together"]
    solved = len(record.result.statistics["layers"])
    print(f"{solved} layers solved; all together: {together['steps']} steps {together['reason']}")
    print(f"{total:.0f} s, {held():.1f} GiB at most ({before:.1f} GiB before)")


def held() -> float:
    """GiB that the process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
