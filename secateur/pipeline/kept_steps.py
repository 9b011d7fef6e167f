"""Finished steps of a run, kept in its output folder, so that an interrupted run goes on from them.

A step's result lies in a folder of its own, which appears whole. What a run goes on with is always
read from there, also where nothing interrupts it: it computes the same either way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..checking.measure import environment
from ..data.datasets import Dataset, DataSource, FileSource, source_files
from ..ir.errors import SecateurError
from ..ir.external import external_files
from ..ir.files import hash_file
from ..ir.model import Model
from ..ir.onnx_io import load, save, to_proto
from ..ir.tensor import Array
from ..passes.base import Context
from ..passes.prune.masking import Keep, PruningRecord
from ..passes.prune.plan import Pruned
from ..passes.sizes import infer_sizes
from ..reporting.report import PassRun
from .device_times import read_times, split_latency
from .settings import Settings
from .steps import Step, StepResult

FOLDER = ".resume"
"""In an output folder, until its run ends well."""
_GONE = FOLDER + ".gone"
"""What is removed, as long as it isn't yet."""

_KEY, _STATE, _ARRAYS = "run.json", "state.json", "arrays.npz"
_MODELS = ("model", "oracle", "original")

Facts = dict[str, Any]


# --- what tells runs apart -----------------------------------------------------------------


def run_facts(
    settings: Settings,
    original: Model,
    sources: Mapping[str, tuple[DataSource | None, Dataset | None]],
) -> Facts:
    """What a run's steps depend on: equal facts, equal results. `sources` are data by name."""
    facts: Facts = {
        "secateur's code": _digest_of_code(),
        "the environment": environment(),
        "the options": json.loads(json.dumps(dataclasses.asdict(settings), default=str)),
        "the model": _digest_of_model(original),
    }
    _, times = split_latency(settings.latency or "")
    if times is not None:
        facts["the devices' times"] = hashlib.sha256(read_times(times)).hexdigest()
    for name, (source, data) in sources.items():
        facts[f"the {name} data"] = _digest_of_data(source, data)
    return facts


def _digest_of_code() -> str:
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for folder in sorted(path for path in (root, *root.iterdir()) if path.is_dir()):
        for path in sorted(folder.glob("*.py") if folder == root else folder.rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def _digest_of_model(model: Model) -> str:
    found = hashlib.sha256()
    if model.path is None:
        found.update(to_proto(model).SerializeToString(deterministic=True))
    else:
        for path in (model.path, *external_files(model)):
            _hash_file(found, path)
    return found.hexdigest()


def _digest_of_data(source: DataSource | None, data: Dataset | None) -> str:
    """Of files by their content; of what a function or program gave by its arrays."""
    if source is None or data is None:
        return "none"
    found = hashlib.sha256()
    files = source_files(source)
    if files:
        how = source.preprocessing if isinstance(source, FileSource) else None
        found.update(repr(how).encode())
        for path in files:
            found.update(os.path.relpath(path, files[0]).encode(errors="surrogateescape"))
            if path.is_file():
                _hash_file(found, path)
        return found.hexdigest()
    for label in data.labels if data.labels is not None else ():
        plain = label.__dict__ if dataclasses.is_dataclass(label) else label
        found.update(json.dumps(plain, default=lambda a: np.asarray(a).tolist()).encode())
    for name, array in data.samples.arrays.items():
        found.update(f"{name} {array.dtype} {array.shape}".encode(errors="surrogateescape"))
        for index in range(len(array)):
            found.update(np.ascontiguousarray(array[index]).tobytes())
    return found.hexdigest()


def _hash_file(found: Any, path: Path) -> None:
    try:
        hash_file(found, path)
    except OSError as error:
        raise SecateurError(f"{path}: {error.strerror or error}") from None


# --- the steps -----------------------------------------------------------------------------


class KeptSteps:
    """The steps of one run that are finished, in order, in a folder that is its alone."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder = folder
        self.count = 0
        self._prepare(facts)

    def _prepare(self, facts: Facts) -> None:
        """Note what the run depends on. Raises SecateurError where another run's steps are kept."""
        path = self.folder / _KEY
        if not path.exists():
            with _written(self.folder):
                for leftover in self.folder.iterdir():
                    shutil.rmtree(leftover)
                _write_text(path, json.dumps(facts))
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        if not isinstance(known, dict):
            raise SecateurError(f"{path}: damaged; remove {self.folder} to start anew")
        other = [name for name in facts if known.get(name) != facts[name]]
        if other:
            details = _differences(known.get("the options"), facts["the options"])
            options = f" ({details})" if details else ""
            raise SecateurError(
                f"{self.folder}: keeps steps of another run: {_listed(other)} differ{options}; "
                "without --resume, or without that folder, a run starts anew"
            )

    def run(
        self, name: str, context: Context, make: Callable[[], tuple[Model, StepResult]]
    ) -> tuple[Model, StepResult, bool]:
        """A step's result as it was kept, else made and kept now, and whether it was kept before.

        `context` is that of the step. Raises SecateurError where what is kept is damaged.
        """
        self.count += 1
        place = self.folder / f"{self.count:02}-{name}"
        known = place.exists()
        if not known:
            model, result = make()
            self._write(place, model, result, context)
        model, result = self._read(place, context)
        return model, result, known

    def _write(self, place: Path, model: Model, result: StepResult, before: Context) -> None:
        pruned = result.context.pruned
        pruned = None if pruned is before.pruned else pruned
        arrays = _Arrays()
        content = {
            "step": {n: getattr(result.step, n) for n in ("name", "result", "oracle")},
            "seconds": result.seconds,
            "runs": [dataclasses.asdict(run) for run in result.runs],
            "pruned": None if pruned is None else _pruned_to_json(pruned, arrays),
        }
        original = None if pruned is None else pruned.original
        scratch = place.with_name(place.name + ".part")
        with _written(place):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            for name, kept in zip(_MODELS, (model, result.oracle, original), strict=True):
                if kept is not None:
                    save(kept, scratch / f"{name}.onnx")
            np.savez(scratch / _ARRAYS, **cast(Any, arrays.stored))
            digests = {path.name: _digest(path) for path in sorted(scratch.iterdir())}
            text = json.dumps({**content, "files": digests}, default=_plain)
            sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text}
            _write_text(scratch / _STATE, json.dumps(sealed))
            os.replace(scratch, place)

    def _read(self, place: Path, context: Context) -> tuple[Model, StepResult]:
        try:
            sealed = json.loads((place / _STATE).read_text(encoding="utf-8"))
            text = sealed["content"]
            if hashlib.sha256(text.encode()).hexdigest() != sealed["sha256"]:
                raise ValueError(_STATE)
            content = json.loads(text)
            for name, digest in content["files"].items():
                if Path(name).name != name or _digest(place / name) != digest:
                    raise ValueError(name)
            with np.load(place / _ARRAYS, allow_pickle=False) as stored:
                arrays = _Arrays(dict(stored))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise SecateurError(
                f"{place}: what was kept is damaged; remove {self.folder} to start anew"
            ) from None
        model, oracle, original = (
            _loaded(place / f"{name}.onnx") if f"{name}.onnx" in content["files"] else None
            for name in _MODELS
        )
        assert model is not None
        if original is not None:
            pruned = _pruned_of_json(content["pruned"], original, arrays)
            context = dataclasses.replace(context, pruned=pruned)
        step = content["step"]
        return model, StepResult(
            step=Step(step["name"], step["result"], (), step["oracle"]),
            runs=[PassRun(**run) for run in content["runs"]],
            seconds=content["seconds"],
            oracle=oracle,
            context=context,
        )


@contextlib.contextmanager
def kept_folder(out: Path) -> Iterator[Path]:
    """The folder for finished steps in an output folder, for this process alone.

    It is removed where the block fails before a step was kept. Raises SecateurError where another
    process is using it.
    """
    made = not out.exists()
    folder = out / FOLDER
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(descriptor, folder)
        try:
            yield folder
        except BaseException:
            if not any(path.is_dir() for path in folder.iterdir()):
                forget(out)
                if made:
                    out.rmdir()
            raise
    finally:
        os.close(descriptor)


def forget(out: Path) -> None:
    """Remove what an earlier run kept in an output folder, at once even where this is killed."""
    gone = out / _GONE
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(out / FOLDER, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SecateurError(f"{folder}: another run keeps its steps there") from None


# --- what steps leave, as text and arrays ----------------------------------------------------


class _Arrays:
    """Arrays in a file, which text refers to by number, type and shape."""

    def __init__(self, stored: dict[str, Array] | None = None) -> None:
        self.stored = {} if stored is None else stored

    def add(self, array: Array | None) -> list[Any] | None:
        if array is None:
            return None
        array = np.asarray(array)
        name = f"a{len(self.stored)}"
        self.stored[name] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        return [name, array.dtype.name, list(array.shape)]

    def get(self, reference: Sequence[Any] | None) -> Array | None:
        if reference is None:
            return None
        name, dtype, shape = reference
        return np.frombuffer(self.stored[name].tobytes(), np.dtype(dtype)).reshape(shape).copy()

    def found(self, reference: Sequence[Any]) -> Array:
        array = self.get(reference)
        assert array is not None
        return array


def _pruned_to_json(pruned: Pruned, arrays: _Arrays) -> dict[str, Any]:
    record = pruned.record
    return {
        "helps": pruned.helps,
        "rematch": pruned.rematch,
        "values": [
            [name, [None if k is None else [arrays.add(f) for f in k.factors] for k in keeps]]
            for name, keeps in record.values.items()
        ],
        "constants": [
            [*key, [[arrays.add(axis) for axis in block] for block in blocks], arrays.add(zero)]
            for key, (blocks, zero) in record.constants.items()
        ],
        "statistics": [
            [name, [[axis, arrays.add(mask)] for axis, mask in over.items()]]
            for name, over in record.statistics.items()
        ],
        "fixed": sorted(record.fixed),
        "dropped": [[name, arrays.add(array)] for name, array in record.dropped.items()],
    }


def _pruned_of_json(content: Mapping[str, Any], original: Model, arrays: _Arrays) -> Pruned:
    values = {
        name: tuple(None if k is None else Keep(tuple(map(arrays.get, k))) for k in keeps)
        for name, keeps in content["values"]
    }
    constants = {
        (name, position): (
            [tuple(map(arrays.get, block)) for block in blocks],
            arrays.found(zero),
        )
        for name, position, blocks, zero in content["constants"]
    }
    statistics = {
        name: {axis: arrays.found(mask) for axis, mask in over}
        for name, over in content["statistics"]
    }
    dropped = {name: arrays.found(array) for name, array in content["dropped"]}
    fixed = frozenset(content["fixed"])
    record = PruningRecord(values, constants, statistics, fixed, dropped)
    return Pruned(original, record, content["helps"], content["rematch"])


def _loaded(path: Path) -> Model:
    model = load(path)
    model.path = None
    infer_sizes(model)
    return model


def _plain(value: Any) -> Any:
    """NumPy's scalars, for JSON."""
    return value.item() if hasattr(value, "item") else str(value)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    _hash_file(found, path)
    return found.hexdigest()


def _write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@contextlib.contextmanager
def _written(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SecateurError(f"{place}: can't write here ({error.strerror or error})") from None


def _differences(known: Any, now: Mapping[str, Any]) -> str:
    if not isinstance(known, dict):
        return ""
    return _listed([name for name in now if known.get(name) != now[name]])


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
