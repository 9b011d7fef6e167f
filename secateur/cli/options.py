"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

SHARE = click.FloatRange(0, 1, min_open=True)

model_argument = click.argument("model", type=click.Path(path_type=Path))

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON instead of text."
)

target_option = click.option(
    "--target", required=True, help="Machine to compile for; see 'secateur targets'."
)

threads_option = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads to use."
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the random inputs used where no data is given.",
)

file_option = click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    required=True,
    help="ONNX file to write.",
)

folder_option = click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write.",
)

calibration_option = click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Samples to calibrate with: .npz with one array per model input, first axis samples.",
)

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Samples to run on: .npz with one array per model input. Default: random inputs.",
)


def pruning_options(function: click.decorators.FC) -> click.decorators.FC:
    """What to prune and how much; see `goal_count`."""
    for option in (
        click.option(
            "--align",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="Keep channel counts multiples of this.",
        ),
        click.option(
            "--ignore",
            multiple=True,
            metavar="PATTERN",
            help="Leave nodes and weights whose name matches alone; repeatable.",
        ),
        click.option("--params", type=SHARE, help="Share of the parameters to keep."),
        click.option("--ratio", type=SHARE, help="Share of the channels to remove."),
        click.option("--macs", type=SHARE, help="Share of the multiply-accumulates to keep."),
    ):
        function = option(function)
    return function


def check_goals(macs: float | None, ratio: float | None, params: float | None) -> bool:
    """Whether a pruning goal is given. Raises UsageError where there are several."""
    given = [goal for goal in (macs, ratio, params) if goal is not None]
    if len(given) > 1:
        raise click.UsageError("Give one of --macs, --ratio and --params, not several.")
    return bool(given)
