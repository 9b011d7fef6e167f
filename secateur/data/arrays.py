"""A folder of `.npy` files: one for each input, or a folder of them, one for each sample."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import numpy as np

from ..ir.files import open_regular
from ..ir.model import Model
from ..ir.tensor import Array
from ..passes.samples import SampleArray, check_names
from .folders import ARRAYS, FileError, SampleFolder
from .inputs import model_inputs
from .npz import DataError, Header, read_header
from .streams import StreamedArray


def read_arrays(
    folder: SampleFolder, model: Model, labels: str
) -> tuple[dict[str, SampleArray], Array | None]:
    """Arrays by input's name, and the labels. Raises DataError.

    `x.npy` has all samples of the input x, as an array of an `.npz` file has; `x/*.npy` have one
    each, in the order of their names, with the input's shape or without its first axis. Of a
    name's characters those that files can't have are written as _.
    """
    inputs = [value.name for value in model_inputs(model)]
    named = [*inputs, *([labels] if labels not in inputs else [])]
    written = {_written(name): name for name in named}
    if len(written) < len(named):
        raise DataError("inputs have names that differ in nothing a file's name can have")
    parts: dict[str, list[str]] = {}
    for name in folder.of(ARRAYS):
        key = _key(name)
        parts.setdefault(written.get(key, key), []).append(name)
    check_names(model, set(parts) - ({labels} - set(inputs)))
    found: dict[str, SampleArray] = {}
    for key, files in parts.items():
        whole = [name for name in files if "/" not in name]
        if whole and len(files) > 1:
            raise DataError(f"has both '{whole[0]}' and a folder of that name")
        found[key] = (
            _mapped(folder, whole[0]) if whole else ArrayFiles(folder, files, model, key).array
        )
    given = None if labels in inputs else found.pop(labels, None)
    return found, None if given is None else given[:]


def has_one_kind(folder: SampleFolder, model: Model) -> bool:
    """Whether all `.npy` files are samples of the one input that there is."""
    inputs = [_written(value.name) for value in model_inputs(model)]
    return len(inputs) == 1 and inputs[0] not in {_key(name) for name in folder.of(ARRAYS)}


class ArrayFiles:
    """`.npy` files with a sample of one input each, of one type and shape. Raises DataError."""

    def __init__(self, folder: SampleFolder, names: list[str], model: Model, key: str) -> None:
        self.folder, self.names, self.input_name = folder, names, key
        headers = [_header(folder, name) for name in names]
        first = headers[0]
        for name, header in zip(names, headers, strict=True):
            if (header.shape, header.dtype) != (first.shape, first.dtype):
                raise FileError(
                    name,
                    f"{header.dtype} of shape {list(header.shape)}, "
                    f"'{names[0]}' is {first.dtype} of shape {list(first.shape)}",
                )
        declared = next((v.shape for v in model_inputs(model) if v.name == key), None)
        self.dtype, self.shape = first.dtype, first.shape
        if declared and len(first.shape) == len(declared) and first.shape[0] == 1:
            size = declared[0]
            if size == 1 or not isinstance(size, int):
                self.shape = first.shape[1:]

    @property
    def array(self) -> StreamedArray:
        return StreamedArray.of_files(
            self.names, self.shape, self.dtype, self.read, self.folder.root
        )

    def read(self, index: int) -> Array:
        return np.array(_mapped(self.folder, self.names[index])[...]).reshape(self.shape)


def _key(name: str) -> str:
    """The input that a file belongs to by its name or that of the folder it lies in."""
    path = PurePosixPath(name)
    return path.stem if len(path.parts) == 1 else path.parts[0]


def _written(name: str) -> str:
    return re.sub(r"[/\\:*?\"<>|\x00-\x1f]", "_", name)


def _header(folder: SampleFolder, name: str) -> Header:
    try:
        with open_regular(folder.path(name)) as file:
            header = read_header(file, name)
            size = file.seek(0, 2)
    except OSError as error:
        raise FileError(name, error) from None
    if header.nbytes != size - header.offset:
        raise FileError(
            name, f"needs {header.nbytes} bytes of data, and has {size - header.offset}"
        )
    return header


def _mapped(folder: SampleFolder, name: str) -> Array:
    header = _header(folder, name)
    if header.nbytes == 0:
        return np.empty(header.shape, header.dtype)
    stored = header.dtype.newbyteorder() if header.swapped else header.dtype
    try:
        with open_regular(folder.path(name)) as file:
            array: Array = np.memmap(
                file, stored, "r", header.offset, header.shape, "F" if header.fortran else "C"
            )
    except (OSError, ValueError) as error:
        raise FileError(name, error) from None
    return array.astype(header.dtype) if header.swapped else array
