"""Instructions and memory accesses of compiled models on ARM, beside ONNX Runtime's.

    python benchmarks/arm.py [NAME]... --models DIR [--target aarch64-cortex-a72]
        [--onnxruntime LIBRARY] [--functions]

DIR holds models as `python -m secateur.models.zoo --scale full -o DIR` writes them. Each is
counted in float32 and, quantized with random data, in int8, as it runs under qemu's emulation
of the target's CPU: what executes between two markers in a program's second run. Counts aren't
times, but they repeat to the instruction. qemu counts an access of 16 bytes twice.

LIBRARY is libonnxruntime.so for AArch64, as the wheel has it that

    pip download onnxruntime --no-deps --platform manylinux_2_28_aarch64 --only-binary=:all:

fetches. Needs gcc, gcc-aarch64-linux-gnu and qemu-user (with plugins: not the static one).
`--functions` adds what each kernel counts. Where llvm-mca is installed its cycles stand in the
table, too (`arm_cycles.py`): of inner loops on the core's model, with all data in the first cache.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import arm_cycles
import click
import numpy as np
from latency import Feeds, prepare, quantize

from secateur.backends.tvm.artifact.options import LibraryOptions
from secateur.backends.tvm.compile import compile_library
from secateur.backends.tvm.targets import Target, parse_target
from secateur.ir.errors import SecateurError
from secateur.ir.model import Model
from secateur.ir.onnx_io import save
from secateur.ir.reference import Session
from secateur.models.zoo.inputs import random_inputs

MODELS = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet50",
    "squeezenet",
    "efficientnet_b0",
    "ds_cnn",
    "vit_tiny",
    "bert",
    "lstm",
    "resnet8",
)

SOURCES = Path(__file__).with_name("arm_counts")

EMULATORS = {
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "armv7l": ("arm-linux-gnueabihf-gcc", "qemu-arm"),
}
"""Compiler and emulator of each machine."""

PARTS = {"cortex-a53": "d03", "cortex-a72": "d08", "cortex-a76": "d0b", "neoverse-n1": "d0c"}
"""What /proc/cpuinfo calls each of qemu's CPUs."""

CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0x{part}
CPU revision\t: 3

"""
"""/proc/cpuinfo of an ARM machine: ONNX Runtime doesn't start with that of another."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one run executes; `functions` are those of the program itself."""

    instructions: int
    accesses: int
    functions: Mapping[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One model in one precision. `difference` is from ONNX Runtime on this machine."""

    model: str
    precision: str
    own: Counts
    peer: Counts | None
    file_bytes: int
    difference: float
    cycles: tuple[float, float] | None
    """By llvm-mca, and the share of instructions that these are of."""


class Counter:
    """Builds programs for a target in `folder` and counts what they execute."""

    def __init__(self, target: Target, cpu: str, library: Path | None, folder: Path) -> None:
        self.target, self.cpu, self.library, self.folder = target, cpu, library, folder
        self.compiler, self.emulator = EMULATORS[target.machine]
        for program in (self.compiler, self.emulator, "gcc"):
            if shutil.which(program) is None:
                raise click.ClickException(f"{program} is missing")
        self.plugin = folder / "count.so"
        call("gcc", "-shared", "-fPIC", "-O2", SOURCES / "count.c", "-o", self.plugin)
        if library is not None:
            self.root = _root(folder / "root", Path("/usr/aarch64-linux-gnu"))
            self.peer_program = folder / "peer"
            call(
                self.compiler, "-O2", "-std=gnu11", SOURCES / "peer.c", "-ldl",
                "-o", self.peer_program,
            )  # fmt: skip

    def own(
        self, model: Model, feeds: Feeds
    ) -> tuple[Counts, bytes, int, tuple[float, float] | None]:
        """Counts of a compiled model, its outputs, the size of the shared library, and cycles."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        compile_library(model, self.target, folder, LibraryOptions("model", threads="none"))
        program = folder / "own"
        call(
            self.compiler, "-O2", "-std=gnu11", '-DHEADER="model.h"', f"-I{folder}",
            f"-I{SOURCES}", SOURCES / "own.c", folder / "libmodel.a", "-lm", "-static",
            *(["-marm"] if self.target.machine == "armv7l" else []), "-o", program,
        )  # fmt: skip
        (folder / "inputs").write_bytes(_flat(feeds))
        counts = self.count([program, folder / "inputs", folder / "outputs"], ())
        size = (folder / "libmodel.so").stat().st_size
        cycles = None
        if shutil.which("llvm-mca") is not None and self.target.machine == "aarch64":
            objdump = self.compiler.replace("gcc", "objdump")
            cycles = arm_cycles.cycles(
                folder / "libmodel.a", self.target.cpu, counts.functions, objdump
            )
        return counts, (folder / "outputs").read_bytes(), size, cycles

    def peer(self, model: Model, feeds: Feeds) -> Counts:
        assert self.library is not None
        path = self.folder / "model.onnx"
        save(model, path)
        (self.folder / "inputs").write_bytes(_flat(feeds))
        inputs = [
            ",".join([v.name, str(v.dtype), *map(str, feeds[v.name].shape)])
            for v in model.graph.inputs
            if v.name in feeds
        ]
        names = [v.name for v in model.graph.outputs]
        command = [
            self.peer_program, self.library, path, self.folder / "inputs",
            self.folder / "outputs", *inputs, "-", *names,
        ]  # fmt: skip
        return self.count(command, ("-L", self.root))

    def count(self, command: Sequence[str | Path], options: Sequence[str | Path]) -> Counts:
        return count([self.emulator, "-cpu", self.cpu, *options, "-plugin", self.plugin, *command])


def count(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Counts:
    """Counts of a program that runs under an emulator with the plugin `count.c`."""
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | dict(environment or {}),
    )
    lines = [line.rsplit(" ", 2) for line in done.stderr.splitlines() if line.count(" ") >= 2]
    lines = [line for line in lines if line[1].isdigit() and line[2].isdigit()]
    total = [line for line in lines if line[0] == "total"]
    if done.returncode != 0 or not total:
        raise click.ClickException(f"{command[0]}: {done.returncode}: {done.stderr[-500:]}")
    functions = {name: (int(a), int(b)) for name, a, b in lines if name != "total"}
    return Counts(int(total[0][1]), int(total[0][2]), functions)


def call(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise click.ClickException(f"{command[0]}: {done.stderr[-500:]}")


def _root(folder: Path, libraries: Path) -> Path:
    """A root for emulated programs: libraries, and what they read of /proc and /sys."""
    add_system_files(folder)
    (folder / "lib").symlink_to(libraries / "lib")
    return folder


def add_system_files(root: Path, cpu: str = "cortex-a72") -> None:
    """What programs read of /proc and /sys of an ARM machine with one core of that kind."""
    cpus = root / "sys" / "devices" / "system" / "cpu"
    cpus.mkdir(parents=True, exist_ok=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0\n")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(CPUINFO.format(part=PARTS[cpu]))


def _flat(feeds: Feeds) -> bytes:
    return b"".join(np.ascontiguousarray(a).tobytes() for a in feeds.values())


def _difference(model: Model, feeds: Feeds, found: bytes) -> float:
    """Largest absolute difference over the largest absolute value."""
    worst, at = 0.0, 0
    for expected in Session(model, threads=1).run(feeds).values():
        own = np.frombuffer(found[at : at + expected.nbytes], expected.dtype)
        at += expected.nbytes
        scale = float(np.abs(expected).max()) or 1.0
        difference = np.abs(own.astype(np.float64) - expected.reshape(-1)).max()
        worst = max(worst, float(difference) / scale)
    return worst


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, with geometric means."""
    lines = [
        "| model | precision | instructions, M | accesses, M | file, KB | ONNX Runtime | ratio "
        "| accesses, M | ratio | difference | cycles, M | of |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        own, peer = row.own, row.peer
        others = " - | - | - | -"
        if peer is not None:
            others = (
                f" {peer.instructions / 1e6:.2f} | {own.instructions / peer.instructions:.2f} "
                f"| {peer.accesses / 1e6:.2f} | {own.accesses / peer.accesses:.2f}"
            )
        lines.append(
            f"| {row.model} | {row.precision} | {own.instructions / 1e6:.2f} "
            f"| {own.accesses / 1e6:.2f} | {row.file_bytes / 1e3:.0f} |{others} "
            f"| {row.difference:.1e} |{_cycles_text(row.cycles)}"
        )
    for precision in dict.fromkeys(row.precision for row in rows):
        pairs = [(r.own, r.peer) for r in rows if r.precision == precision and r.peer is not None]
        if pairs:
            _say_means(lines, f"{precision} over ONNX Runtime", pairs)
    by_name = {(row.model, row.precision): row.own for row in rows}
    ratios = [
        (own, by_name[model, "float32"])
        for (model, precision), own in by_name.items()
        if precision == "int8" and (model, "float32") in by_name
    ]
    if ratios:
        _say_means(lines, "int8 over float32", ratios)
    return "\n".join(lines)


def _cycles_text(cycles: tuple[float, float] | None) -> str:
    return " - | - |" if cycles is None else f" {cycles[0] / 1e6:.2f} | {cycles[1]:.0%} |"


def _say_means(lines: list[str], what: str, pairs: Sequence[tuple[Counts, Counts]]) -> None:
    ratios = [a.instructions / b.instructions for a, b in pairs]
    accesses = [a.accesses / b.accesses for a, b in pairs]
    lines.append(
        f"\n{what}: geometric mean {statistics.geometric_mean(ratios):.2f}, largest "
        f"{max(ratios):.2f}; accesses {statistics.geometric_mean(accesses):.2f}, "
        f"{max(accesses):.2f}"
    )


@click.command()
@click.argument("names", nargs=-1)
@click.option("--models", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--target", "target_name", default="aarch64-cortex-a72", show_default=True)
@click.option("--cpu", help="qemu's CPU, where it isn't called as LLVM's.")
@click.option("--onnxruntime", "library", type=click.Path(path_type=Path, exists=True))
@click.option("--precision", multiple=True, default=("float32", "int8"), show_default=True)
@click.option("--functions", is_flag=True, help="Add what each kernel counts.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(
    names: tuple[str, ...],
    models: Path,
    target_name: str,
    cpu: str | None,
    library: Path | None,
    precision: tuple[str, ...],
    functions: bool,
    json_path: Path | None,
) -> None:
    """Count and print a table; models that can't be compiled are named on stderr."""
    target = parse_target(target_name)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        counter = Counter(target, cpu or target.cpu, library, Path(temporary))
        for name in names or MODELS:
            path = models / f"{name}.folded.onnx"
            if not path.exists():
                click.echo(f"{name}: no {path}", err=True)
                continue
            original = prepare(path)
            for kind in precision:
                try:
                    model = quantize(original) if kind == "int8" else original
                    feeds = random_inputs(model, seed=0)
                    own, outputs, size, cycles = counter.own(model, feeds)
                    peer = counter.peer(model, feeds) if library is not None else None
                except SecateurError as error:
                    click.echo(f"{name} {kind}: {error}", err=True)
                    continue
                row = Row(name, kind, own, peer, size, _difference(model, feeds, outputs), cycles)
                rows.append(row)
                click.echo(table([row]).splitlines()[2], err=True)
                if functions:
                    whole = own.instructions
                    for function, (count, accesses) in sorted(
                        own.functions.items(), key=lambda item: -item[1][0]
                    ):
                        share = 100 * count / whole
                        if share >= 0.5:
                            click.echo(f"  {share:5.1f} % {count:>12} {accesses:>12} {function}")
    click.echo(table(rows))
    if json_path is not None:
        text = json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
        json_path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
