"""Recordings (.wav) as waveforms."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import helper

from ..ir.files import open_regular
from ..ir.model import Model
from ..ir.tensor import Array
from .folders import FileError, SampleFolder
from .inputs import model_inputs
from .npz import DataError
from .preprocessing import Preprocessing
from .streams import StreamedArray

LONGEST = 1 << 28
"""Samples of an input."""

MOST_CHANNELS = 64


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Recordings of a folder as one input, whose last axis is time.

    Channels are averaged. Linear PCM of 8, 16, 24 and 32 bits is read.
    """

    folder: SampleFolder
    names: list[str]
    how: Preprocessing
    input_name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """Of one sample."""
    notes: tuple[str, ...] = ()
    """What of recordings doesn't reach the model."""

    @classmethod
    def of(
        cls, folder: SampleFolder, names: list[str], model: Model, how: Preprocessing | None
    ) -> Recordings:
        """Those of a folder, checked by their headers. Raises DataError."""
        how = how or Preprocessing()
        inputs = model_inputs(model)
        if len(inputs) != 1:
            raise DataError(
                f"recordings are for models with one input, and this one has {len(inputs)}; make "
                "constants of others with --input-value, or give .npy files or a function"
            )
        (value,) = inputs
        axes = value.shape
        if axes is None or not 1 <= len(axes) <= 3:
            raise DataError(f"input '{value.name}' takes no waveform: it has not 1 to 3 axes")
        declared = axes[-1]
        length = how.length or (declared if isinstance(declared, int) else None)
        if length is None:
            raise DataError(
                f"input '{value.name}' leaves its length open: --preprocess length=16000"
            )
        if isinstance(declared, int) and declared != length:
            raise DataError(f"preprocess: length {length} is not the input's, {declared}")
        if length > LONGEST:
            raise DataError(f"preprocess: length lies between 1 and {LONGEST:,}")
        middle = tuple(axes[1:-1])
        if any(size not in (1, None) and isinstance(size, int) for size in middle):
            raise DataError(f"input '{value.name}' of shape {list(axes)} takes no single waveform")
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.dtype))
        shape = (*(1 for _ in middle), length)
        found = cls(folder, names, how, value.name, dtype, shape)
        rates: dict[int, str] = {}
        cut = filled = 0
        for name in names:
            with found._opened(name) as file:
                found._check(name, file)
                rates.setdefault(file.getframerate(), name)
                cut += file.getnframes() > length
                filled += file.getnframes() < length
        if len(rates) > 1:
            (rate, first), (other, name) = list(rates.items())[:2]
            raise FileError(name, f"has {other:,} samples a second, '{first}' has {rate:,}")
        notes = [
            f"{folder.root}: {number:,} of {len(names):,} recordings are {what}"
            for number, what in (
                (cut, f"longer than {length:,} samples, and lose their end"),
                (filled, f"shorter than {length:,} samples, and end in zeros"),
            )
            if number
        ]
        return dataclasses.replace(found, notes=tuple(notes))

    @property
    def array(self) -> StreamedArray:
        return StreamedArray.of_files(
            self.names, self.shape, self.dtype, self.read, self.folder.root
        )

    def read(self, index: int) -> Array:
        """One sample, as the model gets it. Raises DataError."""
        name, length = self.names[index], self.shape[-1]
        with self._opened(name) as file:
            width, channels = file.getsampwidth(), file.getnchannels()
            content = file.readframes(min(length, file.getnframes()))
        samples = _pcm(content[: len(content) // (width * channels) * width * channels], width)
        mono = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
        filled = np.zeros(length, np.float32)
        filled[: len(mono)] = mono
        return self.how.normalized(filled[:, None], self.dtype)[:, 0].reshape(self.shape)

    def _check(self, name: str, file: wave.Wave_read) -> None:
        rate = file.getframerate()
        if self.how.rate is not None and rate != self.how.rate:
            raise FileError(name, f"has {rate:,} samples a second, not {self.how.rate:,}")
        if file.getnframes() == 0:
            raise FileError(name, "is empty")

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[wave.Wave_read]:
        try:
            with open_regular(self.folder.path(name)) as stream, wave.open(stream, "rb") as file:
                if not 0 < file.getnchannels() <= MOST_CHANNELS:
                    raise FileError(name, f"has {file.getnchannels():,} channels")
                yield file
        except (wave.Error, EOFError, struct.error) as error:
            text = str(error) or "it ends too early"
            raise FileError(name, f"is no .wav file of linear PCM: {text}") from None
        except OSError as error:
            raise FileError(name, error) from None


def _pcm(content: bytes, width: int) -> Array:
    """Linear PCM as float32 in -1..1, little-endian; 8 bits are unsigned."""
    if width == 1:
        return (np.frombuffer(content, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if width == 3:
        bytes_ = np.frombuffer(content, np.uint8).reshape(-1, 3).astype(np.int32)
        joined = (bytes_[:, 0] << 8) | (bytes_[:, 1] << 16) | (bytes_[:, 2] << 24)
        return joined.astype(np.float32) / np.float32(2.0**31)
    if width not in (2, 4):
        raise DataError(f"PCM of {8 * width} bits is not read")
    whole = np.frombuffer(content, np.dtype(f"<i{width}"))
    return whole.astype(np.float32) / np.float32(2.0 ** (8 * width - 1))
