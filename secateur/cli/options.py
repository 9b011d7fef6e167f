"""Options that several commands share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..pipeline.choices import PrecisionName

if TYPE_CHECKING:
    from ..data.datasets import DataSource
    from ..data.fixed_inputs import InputShape
    from ..data.preprocessing import Preprocessing

SHARE = click.FloatRange(0, 1, min_open=True)

model_argument = click.argument("model", type=click.Path(path_type=Path))

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON instead of text."
)

target_option = click.option(
    "--target", required=True, help="Machine to compile for; see 'secateur targets'."
)

threads_option = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads to run with."
)

dump_option = click.option(
    "--dump",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the model's text before the first pass and after each, and the compiler's plan, "
    "into an empty folder.",
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the random inputs used where no data is given.",
)


def _input_shapes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, InputShape], ...]:
    """Pairs of name and sizes of `name=1x3x224x224`; commas may separate the sizes too. A
    sequence has a list of shapes, `[2x3,scalar]`, an optional that is empty `none`."""
    shapes: list[tuple[str, InputShape]] = []
    for value in values:
        name, _, sizes = value.rpartition("=")
        if not name or not re.fullmatch(r"(\d+([x,]\d+)*)?|none|\[([\dx,]|scalar)*\]", sizes):
            raise click.BadParameter(
                f"{value!r} is not of the form name=1x3x224x224, for a sequence name=[2x3,4x3]",
                ctx,
                param,
            )
        if sizes == "none":
            shapes.append((name, None))
        elif sizes.startswith("["):
            texts = sizes[1:-1].split(",") if sizes != "[]" else []
            shapes.append((name, tuple(_sizes(text) for text in texts)))
        else:
            shapes.append((name, _sizes(sizes)))
    return tuple(shapes)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in re.split("[x,]", text) if size and size != "scalar")


def _input_values(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """Pairs of name and value of `name=16000`; the model knows the type."""
    pairs = []
    for value in values:
        name, equals, text = value.rpartition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not of the form name=16000", ctx, param)
        pairs.append((name, text))
    return tuple(pairs)


def fixed_inputs_options(function: Callable[..., None]) -> Callable[..., None]:
    """What is fixed of the model's inputs. The command gets a `FixedInputs`, `fixed`."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        from ..data.fixed_inputs import FixedInputs

        fixed = FixedInputs(
            dict(kwargs.pop("input_shapes")),
            kwargs.pop("freeze_defaults"),
            dict(kwargs.pop("input_values")),
            kwargs.pop("outputs"),
        )
        function(*args, fixed=fixed, **kwargs)

    command = click.option(
        "--input-value",
        "input_values",
        metavar="NAME=VALUE",
        callback=_input_values,
        multiple=True,
        help="Make a constant of an input, as in rate=16000 or scales=1,2; repeatable.",
    )(command)

    command = click.option(
        "--outputs",
        metavar="NAME",
        multiple=True,
        help="End the model at a value, or at a node's results; repeatable.",
    )(command)

    command = click.option(
        "--freeze-defaults",
        is_flag=True,
        help="Make constants of inputs that have a default value, as weights of some exporters do.",
    )(command)
    return click.option(
        "--input-shape",
        "input_shapes",
        metavar="NAME=SIZES",
        callback=_input_shapes,
        multiple=True,
        help="Fix the shape of an input, as in x=1x3x224x224, or those of the tensors of a "
        "sequence, s=[2x3,4x3]; repeatable.",
    )(command)


file_option = click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write.",
)

folder_option = click.option(
    "-o",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write.",
)


class DropType(click.ParamType):  # type: ignore[type-arg]
    """A share, in percent or as a number."""

    name = "SHARE"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from ..checking.drop import parse_drop

        try:
            return parse_drop(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DROP = DropType()


class DataType(click.ParamType):  # type: ignore[type-arg]
    """A file, folder or function of samples; where `makes_up`, also `synthetic`, perhaps with a
    range, for samples that are made up."""

    def __init__(self, makes_up: bool = False) -> None:
        self.makes_up = makes_up
        self.name = "FILE|DIR|FUNCTION" + ("|synthetic[:LOW:HIGH]" if makes_up else "")

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> DataSource:
        from ..data.synthetic import PREFIX, Synthetic

        if not self.makes_up or not isinstance(value, str) or value.split(":")[0] != PREFIX:
            return str(value)
        try:
            return Synthetic.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_FORMS = (
    "an .npz file with one array per model input, first axis samples; a folder of pictures or "
    "recordings, or of .npy files named like inputs; or module:function, which yields dicts"
)

SAMPLES = {
    "calibration": click.option(
        "--calibration",
        type=DataType(makes_up=True),
        help=f"Samples to calibrate with: {_FORMS}. synthetic makes some up, images between LOW "
        "and HIGH.",
    ),
    "evaluation": click.option(
        "--evaluation",
        type=DataType(),
        help="Samples to measure with, in the same forms; with labels (an array of class indices, "
        "a folder for each class, or labels.csv or labels.json in it) accuracy is measured.",
    ),
    "data": click.option(
        "--data", type=DataType(), help=f"Samples to run on: {_FORMS}. Default: random inputs."
    ),
}


def samples_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Some of `SAMPLES`, and how pictures and recordings in them become inputs."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        command = preprocess_options(*names)(function)
        for name in reversed(names):
            command = SAMPLES[name](command)
        return command

    return decorate


def preprocess_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """How pictures and recordings become inputs, in the samples that a command gets by `names`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(*args: Any, **kwargs: Any) -> None:
            texts = kwargs.pop("preprocess")
            if "embed_preprocessing" in kwargs:
                embeds = kwargs.pop("embed_preprocessing")
                if embeds and not texts:
                    raise click.UsageError("--embed-preprocessing needs --preprocess.")
                kwargs["embed"] = parsed_preprocessing(texts) if embeds else None
            if texts:
                _with_preprocessing(texts, kwargs, names)
            function(*args, **kwargs)

        return click.option(
            "--preprocess",
            metavar="PRESET|KEY=VALUE",
            multiple=True,
            help="How pictures become inputs: imagenet, yolo, tf, caffe or raw, and single "
            "settings, as size=256x256, fit=letterbox, kernel=bicubic, channels=bgr, "
            "mean=0.5:0.5:0.5; repeatable (docs/data.md).",
        )(command)

    return decorate


embed_option = click.option(
    "--embed-preprocessing",
    is_flag=True,
    help="Compile what --preprocess does after placing into the result, which then takes pixels: "
    "uint8, height x width x channels.",
)


def parsed_preprocessing(texts: Sequence[str]) -> Preprocessing:
    """What --preprocess says. Raises UsageError."""
    from ..data.npz import DataError
    from ..data.preprocessing import Preprocessing

    try:
        return Preprocessing.parse(texts)
    except DataError as error:
        raise click.UsageError(f"--{error}.") from None


def _with_preprocessing(texts: Sequence[str], given: dict[str, Any], names: Sequence[str]) -> None:
    from ..data.datasets import FileSource

    how = parsed_preprocessing(texts)
    given_ones = {name: given[name] for name in names if isinstance(given.get(name), str)}
    files = [name for name, path in given_ones.items() if not path.endswith(".npz")]
    if not files and given.get("embed") is None:
        hint = " or --embed-preprocessing" if "embed" in given else ""
        raise click.UsageError(f"--preprocess is for folders of pictures and recordings{hint}.")
    for name in files:
        given[name] = FileSource(given[name], how)


metric_option = click.option(
    "--metric",
    "metrics",
    metavar="NAME",
    multiple=True,
    help="What to measure by labels: top1, top5, f1, auc, miou, map, map50, psnr, ssim, mae, rmse, "
    "r2, cer, wer or module:function, with options as in map{decoder=yolov8}; repeatable. "
    "[default: top1 for classes, map for boxes]",
)


def _use_recipe(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Take what a recipe says for what isn't given."""
    if value is None:
        return None
    from ..pipeline.recipe import find_recipe, parameters, read_recipe

    path = find_recipe(value)
    ctx.default_map = {**(ctx.default_map or {}), **parameters(read_recipe(path))}
    return path


recipe_option = click.option(
    "--recipe",
    metavar="FILE|NAME",
    is_eager=True,
    callback=_use_recipe,
    help="TOML file with options of this command, which those given here override; see "
    "'secateur recipe'.",
)

depfile_option = click.option(
    "--depfile",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a rule of Make that says which files the result depends on.",
)


def format_options(function: Callable[..., None]) -> Callable[..., None]:
    """What is made of a model. The command gets `LibraryOptions` for a C library, `library`."""
    from ..pipeline.compilation import LIBRARY_THREADS

    options = [
        click.option(
            "--format",
            "form",
            type=click.Choice(["artifact", "library"]),
            default="artifact",
            show_default=True,
            help="artifact: model.so, for secateur.Runtime; library: NAME.h, NAME.hpp, NAME.py, "
            "libNAME.a, libNAME.so, NAME.json and NAME.pc, for programs in C, C++ and Python.",
        ),
        click.option(
            "--name", help="Of the library, by which its functions begin. [default: MODEL's]"
        ),
        click.option(
            "--library-threads",
            type=click.Choice(LIBRARY_THREADS),
            help="Of the library: none; the caller's, by a pool that a call names; or own ones, "
            "too. [default: caller]",
        ),
        click.option(
            "--labels",
            type=click.Path(path_type=Path),
            help="Text file with the name of a class on each line, for the library's header.",
        ),
        click.option(
            "--weights-apart",
            is_flag=True,
            help="Write the library's weights to NAME.weights, which a program loads or maps.",
        ),
        click.option(
            "--weights-packed",
            is_flag=True,
            help="Write them to NAME.weights.packed, which a program decodes into its memory.",
        ),
        click.option(
            "--bench",
            is_flag=True,
            help="Make NAME_bench, too: a static program that measures the library on the device "
            "and prints JSON.",
        ),
    ]

    @functools.wraps(function)
    def command(*args: Any, model: Path, **kwargs: Any) -> None:
        from ..pipeline.compilation import library_options

        names = ("form", "name", "library_threads", "labels", "weights_apart")
        form, name, threads, labels, apart = (kwargs.pop(n) for n in names)
        packed, bench = kwargs.pop("weights_packed"), kwargs.pop("bench")
        library = None
        if form == "library":
            if apart and packed:
                raise click.UsageError("--weights-apart and --weights-packed: take one of them.")
            options = (name, threads or "caller", labels, apart, packed, bench)
            library = library_options(model, *options)
        elif (
            any(given is not None for given in (name, threads, labels)) or apart or packed or bench
        ):
            raise click.UsageError(
                "--name, --library-threads, --labels, --weights-apart, --weights-packed and "
                "--bench are for --format library."
            )
        function(*args, model=model, library=library, **kwargs)

    for option in reversed(options):
        command = option(command)
    return command


def compiler_options(function: Callable[..., None]) -> Callable[..., None]:
    """How to compile. The command gets the options as one dict, `compiler`."""
    options = [
        click.option(
            "--tune",
            type=click.FloatRange(0, min_open=True),
            metavar="MINUTES",
            help="Measure forms and tiles of kernels on this machine for so long, and use the "
            "fastest now and later.",
        ),
        click.option(
            "--fallback",
            is_flag=True,
            help="Leave nodes that can't be compiled to ONNX Runtime, which must then be there to "
            "run the artifact.",
        ),
        click.option(
            "--declared-sizes",
            is_flag=True,
            help="Where an input gives a result its size, compile for the size that is declared; "
            "the artifact fails where the input gives another.",
        ),
        click.option(
            "--copies",
            type=click.FloatRange(min=0),
            metavar="SHARE",
            help="How many times the weights' bytes copies of them for Winograd's convolutions may "
            "take, which else transform them in each run; inf for all that are worth it, 0 for "
            "none of these convolutions, which are faster and round more; default: 0.5.",
        ),
        click.option(
            "--small",
            is_flag=True,
            help="Prefer few bytes to speed: no copies of weights for Winograd, short code.",
        ),
        click.option(
            "--precision",
            type=click.Choice(get_args(PrecisionName)),
            help="Compute products and convolutions of float32 in 16 bits, sums in float32; those "
            "that lose too much on calibration samples, or else random inputs, stay as they are.",
        ),
        click.option(
            "--size",
            "sizes",
            metavar="NAME=LOW..HIGH[:STEP]",
            multiple=True,
            help="Sizes that are admitted of a symbol of the model, or of INPUT.AXIS, as in "
            "seq=1..512 or h=32..960:32; a batch that is named is computed as one. Also numbers by "
            "which data decide sizes, by the TENSOR that holds them or TENSOR.INDEX. Repeatable.",
        ),
        click.option(
            "--cache",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Keep compiled kernels and tuning results here; default: SECATEUR_CACHE, or "
            "~/.cache/secateur.",
        ),
        click.option("--no-cache", is_flag=True, help="Neither read nor write the cache."),
    ]

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        cache, no_cache = kwargs.pop("cache"), kwargs.pop("no_cache")
        if cache is not None and no_cache:
            raise click.UsageError("Give --cache or --no-cache, not both.")
        compiler = {
            "tune": kwargs.pop("tune") or 0.0,
            "fallback": kwargs.pop("fallback"),
            "declared_sizes": kwargs.pop("declared_sizes"),
            "copies": kwargs.pop("copies"),
            "small": kwargs.pop("small"),
            "precision": kwargs.pop("precision"),
            "sizes": kwargs.pop("sizes"),
            "cache": cache if cache is not None else not no_cache,
        }
        function(*args, compiler=compiler, **kwargs)

    for option in reversed(options):
        command = option(command)
    return command
