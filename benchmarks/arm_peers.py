"""What ncnn, MNN and LiteRT execute on AArch64, by the counter of `arm.py`.

    python benchmarks/arm_peers.py [NAME]... --models DIR --root ROOT --converters VENV
        [--peer ncnn] [--cpu cortex-a76] [--work DIR]

Their AArch64 wheels run in an AArch64 Python under qemu, on one thread. ROOT is the root folder
that it sees, with its packages unpacked in ROOT/packages:

    dpkg --add-architecture arm64 && apt-get update
    apt-get download {python3.11{,-minimal},libpython3.11-{minimal,stdlib},libc6,libgcc-s1}:arm64
    apt-get download {libstdc++6,zlib1g,libexpat1,libffi8,libssl3,libgomp1}:arm64
    for file in *.deb; do dpkg -x $file ROOT; done
    pip download --no-deps --only-binary=:all: --python-version 3.11 \\
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \\
        --platform manylinux_2_17_aarch64 numpy ncnn MNN ai-edge-litert
    for file in *.whl; do unzip -d ROOT/packages $file; done

VENV has what converts models: pnnx and MNN, and for LiteRT litert-torch, onnx, onnxruntime and
onnx-graphsurgeon. (MNN's tools install packages with the first pip in PATH: VENV's, here.)
LiteRT converts the zoo's networks from torch, so NAME is one of these for it; it alone has an
int8 row, of static quantization with random data: wheels of ncnn have no quantizer, and that of
MNN 3.6 ends with an error. What a peer can't convert or run is named on stderr.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import arm
import click

from secateur.ir.onnx_io import load
from secateur.models.zoo.inputs import random_inputs

PEERS = ("ncnn", "mnn", "litert")
COMPILER, EMULATOR = arm.EMULATORS["aarch64"]


class Emulated:
    """Converts models, and counts what peers execute for them."""

    def __init__(self, root: Path, converters: Path, cpu: str, folder: Path) -> None:
        self.root, self.converters, self.cpu, self.folder = root, converters, cpu, folder
        self.plugin, self.mark = folder / "count.so", folder / "mark.so"
        arm.call("gcc", "-shared", "-fPIC", "-O2", arm.SOURCES / "count.c", "-o", self.plugin)
        source = folder / "mark.c"
        source.write_text('#include "mark.h"\nvoid mark(void) { MARK(); }\n')
        arm.call(COMPILER, "-shared", "-fPIC", f"-I{arm.SOURCES}", source, "-o", self.mark)
        arm.add_system_files(root, cpu)

    def convert(self, peer: str, path: Path, name: str) -> dict[str, Path]:
        """Files for the peer, by precision."""
        programs, made = self.converters / "bin", self.folder / name
        if peer == "ncnn":
            parts = {"pnnxparam": "pnnx.param", "pnnxbin": "pnnx.bin", "pnnxpy": "pnnx.py"}
            parts |= {"ncnnparam": "param", "ncnnbin": "bin", "ncnnpy": "py", "pnnxonnx": "onnx"}
            words = [f"{key}={made}.{end}" for key, end in parts.items()]
            self.call(programs / "pnnx", path, *words, "fp16=0")
            return {"float32": made}
        if peer == "mnn":
            file = made.with_suffix(".mnn")
            options = ["-f", "ONNX", "--modelFile", path, "--MNNModel", file, "--bizCode", "x"]
            self.call(programs / "mnnconvert", *options)
            return {"float32": file}
        self.call(programs / "python", arm.SOURCES / "to_litert.py", name, self.folder)
        return {
            "float32": made.with_suffix(".tflite"),
            "int8": made.with_suffix(".int8.tflite"),
        }

    def call(self, *command: str | Path) -> None:
        """Run a converter, its own programs first in PATH."""
        path = f"{self.converters / 'bin'}:{os.environ['PATH']}"
        checkout = str(Path(__file__).resolve().parents[1])
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=os.environ | {"PATH": path, "PYTHONPATH": checkout},
        )
        if done.returncode != 0:
            raise click.ClickException(f"{Path(command[0]).name}: {done.stderr[-300:]}")

    def count(self, peer: str, file: Path, inputs: list[str]) -> arm.Counts:
        packages = self.root / "packages"
        environment = {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
        return arm.count(
            [
                EMULATOR, "-cpu", self.cpu, "-L", self.root, "-plugin", self.plugin,
                self.root / "usr" / "bin" / "python3.11", arm.SOURCES / "emulated.py",
                self.mark, peer, file, *inputs,
            ],
            environment,
        )  # fmt: skip


@click.command()
@click.argument("names", nargs=-1)
@click.option("--models", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--root", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--converters", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--peer", "peers", type=click.Choice(PEERS), multiple=True, default=PEERS)
@click.option("--cpu", type=click.Choice([*arm.PARTS]), default="cortex-a76", show_default=True)
def main(
    names: tuple[str, ...],
    models: Path,
    root: Path,
    converters: Path,
    peers: tuple[str, ...],
    cpu: str,
) -> None:
    """Count and print a table."""
    print("| model | peer | precision | instructions, M | accesses, M |\n|---|---|---|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        emulated = Emulated(root.absolute(), converters.absolute(), cpu, Path(temporary))
        for name in names or arm.MODELS:
            path = (models / f"{name}.folded.onnx").absolute()
            feeds = random_inputs(load(path), seed=0)
            inputs = [",".join([n, a.dtype.name, *map(str, a.shape)]) for n, a in feeds.items()]
            for peer in peers:
                try:
                    for precision, file in emulated.convert(peer, path, name).items():
                        counts = emulated.count(peer, file, inputs)
                        numbers = f"{counts.instructions / 1e6:.2f} | {counts.accesses / 1e6:.2f}"
                        print(f"| {name} | {peer} | {precision} | {numbers} |", flush=True)
                except click.ClickException as error:
                    click.echo(f"{name} {peer}: {error.message}", err=True)


if __name__ == "__main__":
    main()
