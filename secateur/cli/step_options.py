"""Options of the steps that change a model: what to prune and how to quantize."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from ..pipeline.choices import Accuracy, Activation, ProfileName, SchemeName
from .options import DROP, SHARE

if TYPE_CHECKING:
    from ..data.datasets import DataSource


SCHEMES: tuple[str, ...] = get_args(SchemeName)
PROFILES: tuple[str, ...] = get_args(ProfileName)
ACCURACIES: tuple[str, ...] = get_args(Accuracy)
WITHOUT_SAMPLES = ("dynamic", "dynamic-per-token", "float16")
"""Schemes that can do without calibration."""


def quantization_options(prefix: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """How to quantize. The command gets them as one dict, `quantization`; `prefix` is of the
    option that another step has, too. Without one the command has a --scheme."""
    options = {
        "profile": click.option(
            "--profile",
            type=click.Choice(PROFILES),
            help="Quantize by the scheme that suits what will run the model.",
        ),
        "accuracy": click.option(
            "--accuracy",
            type=click.Choice(ACCURACIES),
            default="good",
            show_default=True,
            help="What there is time for: fast chooses ranges, good also equalizes channels and "
            "corrects biases, best rounds weights by second moments.",
        ),
        f"{prefix or 'ignore'}": click.option(
            f"--{prefix or 'ignore'}".replace("_", "-"),
            multiple=True,
            metavar="PATTERN",
            help="Keep nodes float whose name, or that of their weights, matches; repeatable.",
        ),
        "only": click.option(
            "--only",
            multiple=True,
            metavar="PATTERN",
            help="Quantize nodes whose name, or that of their weights, matches, and no others; "
            "repeatable.",
        ),
        "nodes": click.option(
            "--node",
            "nodes",
            multiple=True,
            metavar="PATTERN=SETTINGS",
            help="What holds for nodes that match, as in 'stem*=calibrator:min-max,per-tensor' or "
            "'head*=float'; repeatable.",
        ),
        "max_drop": click.option(
            "--max-drop",
            type=DROP,
            help="How much may be lost, as 1% or 0.01, in the unit of 'secateur verify': as few "
            "operators as that takes stay float.",
        ),
        "activation": click.option(
            "--activation",
            type=click.Choice(get_args(Activation)),
            help="Type of activations, whatever the scheme; int8 is for ARM in ONNX Runtime, with "
            "16 bits products are computed in float32.",
        ),
        "reduce_range": click.option(
            "--reduce-range",
            is_flag=True,
            help="Weights within 7 bits, for x86 processors without VNNI in ONNX Runtime.",
        ),
        "per_tensor": click.option(
            "--per-tensor",
            is_flag=True,
            help="One scale for all channels of a weight, instead of one for each.",
        ),
        "calibrator": click.option(
            "--calibrator",
            metavar="NAME",
            help="How ranges come from samples: min-max, moving-average, percentile (or "
            "percentile:99.9), entropy, mse. [default: mse]",
        ),
        "symmetric": click.option(
            "--symmetric", is_flag=True, help="Ranges reach as far below zero as above."
        ),
        "equalize": click.option(
            "--equalize",
            is_flag=True,
            help="Scale channels of consecutive layers first, so that one step suits them all.",
        ),
        "requantize": click.option(
            "--requantize",
            is_flag=True,
            help="Quantize what is quantized already anew, from the floats that it stands for; "
            "by default it stays as it is.",
        ),
        "float32": click.option(
            "--float32",
            multiple=True,
            metavar="OPERATOR",
            help="Of scheme float16: keep an operator, as Softmax, in float32; repeatable.",
        ),
        "half_io": click.option(
            "--half-io",
            is_flag=True,
            help="Of scheme float16: inputs and outputs are float16, too.",
        ),
    }

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*args: Any, **kwargs: Any) -> None:
            given = {name: kwargs.pop(name) for name in options}
            quantization = {
                "ignore": given.pop(prefix or "ignore"),
                "per_channel": not given.pop("per_tensor"),
                **{name: value for name, value in given.items() if name != "profile"},
            }
            if given["profile"] is not None or not prefix:
                from ..pipeline.steps import scheme_of

                name = "quantize" if prefix else "scheme"
                kwargs[name] = scheme_of(kwargs[name], given["profile"])
            if not prefix:
                quantization["scheme"] = kwargs.pop("scheme")
            if "quantize" in kwargs and kwargs["quantize"] is None:
                _refuse_given(options)
            function(*args, quantization=quantization, **kwargs)

        for option in reversed(options.values()):
            command = option(command)
        if not prefix:
            command = click.option(
                "--scheme",
                type=click.Choice(SCHEMES),
                help="How numbers are stored. [default: int8]",
            )(command)
        return command

    return decorate


def _refuse_given(options: Iterable[str]) -> None:
    """Raises UsageError where options of a step are given that isn't asked for."""
    context = click.get_current_context()
    for name in options:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --quantize.")


def pruning_options(
    ignore: str = "ignore",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What to prune and how much. The command gets them as one dict, `pruning`; `ignore` names the
    option and the entry for what isn't."""
    options = {
        "macs": click.option("--macs", type=SHARE, help="Share of the MACs to keep."),
        "params": click.option("--params", type=SHARE, help="Share of the parameters to keep."),
        "bytes": click.option(
            "--bytes",
            metavar="SIZE",
            help="Share of the bytes of weights to keep, or a file's size, as 200kB.",
        ),
        "latency": click.option(
            "--latency",
            metavar="TIME[@FILE]",
            help="Share of the latency on the target to keep, or a time, as 2ms; FILE has what "
            "devices took, as benchmark --remote --json writes it.",
        ),
        "ratio": click.option("--ratio", type=SHARE, help="Share of the channels to remove."),
        "scope": click.option(
            "--scope",
            type=click.Choice(["global", "uniform"]),
            default="global",
            show_default=True,
            help="Rank all channels against each other, or take the same share everywhere.",
        ),
        "importance": click.option(
            "--importance",
            metavar="NAME",
            help="What ranks channels: l1, l2, fpgm, lamp, bn-scale, random; with calibration "
            "also activation, nonzero, wanda, flap, reconstruction; or module:function. "
            "[default: reconstruction, without calibration l2]",
        ),
        "search": click.option(
            "--search",
            type=click.FloatRange(0),
            default=0.0,
            metavar="MINUTES",
            help="Look that long for better widths of layers; needs calibration samples.",
        ),
        "iterations": click.option(
            "--iterations",
            type=click.IntRange(1),
            metavar="COUNT",
            help="Estimate so many times what channels are worth, with a part of the cuts and "
            "recovery in between; needs calibration samples. [default: 3, once for models too "
            "large to try]",
        ),
        "depth": click.option(
            "--depth",
            type=click.IntRange(0),
            metavar="BRANCHES",
            help="Let up to that many residual branches go whole; needs calibration samples. "
            "[default: as many as help, unless the model is too large to try]",
        ),
        "align": click.option(
            "--align",
            type=click.IntRange(1),
            help="Keep channel counts multiples of this where the goal allows. "
            "[default: the target's vector width; without a target 1]",
        ),
        ignore: click.option(
            f"--{ignore}".replace("_", "-"),
            multiple=True,
            metavar="PATTERN",
            help="Don't prune nodes and weights whose name matches; repeatable.",
        ),
        "limits": click.option(
            "--limit",
            "limits",
            multiple=True,
            metavar="PATTERN=LOW..HIGH",
            help="Keep between two shares of the channels of groups whose nodes or weights match, "
            "as in 'stem*=0.5..'; repeatable.",
        ),
        "normalized": click.option(
            "--normalized",
            is_flag=True,
            help="Also prune axes that layer normalization runs over.",
        ),
        "recovery": click.option(
            "--recovery/--no-recovery",
            default=True,
            help="Whether layers make up for what went, where there are calibration samples.",
        ),
        "rotate": click.option(
            "--rotate",
            is_flag=True,
            help="Turn streams that only linear layers and root mean squares see into their "
            "principal axes first; needs calibration samples.",
        ),
        "rematch": click.option(
            "--rematch",
            is_flag=True,
            help="Only give layers' outputs their means and deviations back: takes less time, and "
            "recovers less.",
        ),
    }

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*args: Any, **kwargs: Any) -> None:
            pruning = {name: kwargs.pop(name) for name in options}
            _override_goals(pruning)
            check_goals(pruning)
            _check_recovery(pruning, kwargs.get("calibration"), bool(kwargs.get("sweep")))
            function(*args, pruning=pruning, **kwargs)

        for option in reversed(options.values()):
            command = option(command)
        return command

    return decorate


def _check_recovery(pruning: dict[str, Any], calibration: DataSource | None, sweeps: bool) -> None:
    """Raises UsageError where nothing could come of what is asked of recovery."""
    source = click.get_current_context().get_parameter_source("recovery")
    asked = {
        "--search": bool(pruning["search"]),
        "--iterations": (pruning["iterations"] or 1) > 1,
        "--depth": bool(pruning["depth"]),
        "--rematch": pruning["rematch"],
        "--rotate": pruning["rotate"],
        "--recovery": pruning["recovery"] and source is ParameterSource.COMMANDLINE,
    }
    for name in (name for name, given in asked.items() if given):
        if not (has_goal(pruning) or sweeps):
            raise click.UsageError(f"{name} needs a goal, one of {goal_names()}.")
        if calibration is None:
            raise click.UsageError(f"{name} needs samples: --calibration.")
    for name in ("search", "iterations", "depth", "rematch"):
        if asked[f"--{name}"] and not pruning["recovery"]:
            raise click.UsageError(f"Give --{name} or --no-recovery, not both.")


GOALS = ("macs", "params", "bytes", "latency", "ratio")


def has_goal(pruning: dict[str, Any]) -> bool:
    """Whether a pruning goal is given."""
    return any(pruning[name] is not None for name in GOALS)


def _override_goals(pruning: dict[str, Any]) -> None:
    """Drop a recipe's goal where another is given."""
    context = click.get_current_context()
    sources = {name: context.get_parameter_source(name) for name in GOALS}
    if ParameterSource.COMMANDLINE in sources.values():
        for name, source in sources.items():
            if source is ParameterSource.DEFAULT_MAP:
                pruning[name] = context.params[name] = None


def check_goals(pruning: dict[str, Any]) -> None:
    """Raises UsageError where there are several goals, or amounts that can't be read."""
    if len([name for name in GOALS if pruning[name] is not None]) > 1:
        raise click.UsageError(f"Give one of {goal_names()}, not several.")


def goal_names() -> str:
    """The options that give goals, as a list in words."""
    names = [f"--{name}" for name in GOALS]
    return f"{', '.join(names[:-1])} and {names[-1]}"
