"""Mutated model files through the command line, in worker processes under limits.

    python benchmarks/fuzz_files.py --count 5000 --seed 0

Small models of every kind are mutated: bytes of the file, and fields of the proto (values
cleared, copied, replaced by extremes, entries dropped, repeated and swapped). Each is
inspected, printed, simplified and pruned, every tenth is compiled, too. What must not happen
is a traceback, an internal error, the end of the process, more than `--seconds` of processor time
for a model (or ten times as much of waiting) or more than `--memory` bytes. Failing files are
kept in `--keep`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto

COMMANDS = (
    ("inspect", "{model}"),
    ("print", "{model}"),
    ("simplify", "{model}", "-o", "{folder}/s.onnx"),
    ("prune", "{model}", "-o", "{folder}/p.onnx", "--ratio", "0.3"),
)
COMPILE = ("compile", "{model}", "-o", "{folder}/c", "--target", "native", "--no-cache")

EXTREMES = (0, 1, -1, 2, 3, 7, 8, 16, 255, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63), 2**63 - 1)
TEXTS = ("", "x", "w", "y", "\n", "a/b", "\0", "\x1b[31m", "é" * 40, "n" * 10_000)


# --- mutation ----------------------------------------------------------------------


def mutated(proto: ModelProto, seed: int) -> bytes:
    """A file with one to four things wrong, the same for the same seed."""
    rng = random.Random(seed)
    copy = ModelProto()
    copy.CopyFrom(proto)
    if seed % 4 == 0:
        return _damaged(copy.SerializeToString(), rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        with contextlib.suppress(ValueError, TypeError, UnicodeError):  # no such number there
            _change(rng.choice(list(_messages(copy))), rng)
    return copy.SerializeToString()


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, dropped, repeated, or cut off."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        place = rng.randrange(len(damaged))
        end = min(len(damaged), place + rng.choice((1, 2, 4, 16)))
        match rng.randrange(4):
            case 0:
                damaged[place] ^= 1 << rng.randrange(8)
            case 1:
                damaged[place] = rng.randrange(256)
            case 2 if len(damaged) > 40:
                del damaged[place:end]
            case _:
                damaged[place:place] = damaged[place:end]
    return bytes(damaged[: rng.randrange(len(damaged))] if rng.random() < 0.1 else damaged)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in value if field.is_repeated else [value]:
                yield from _messages(item)


def _change(message: Message, rng: random.Random) -> None:
    """Change one field of a message, one that is set as a rule."""
    present = [field for field, _ in message.ListFields()]
    fields = present if present and rng.random() < 0.85 else list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if field.is_repeated:
        _change_list(getattr(message, field.name), field, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE or rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), rng))


def _change_list(items: Any, field: Any, rng: random.Random) -> None:
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    place = rng.randrange(len(items)) if items else 0
    match rng.randrange(4):
        case 0 if items:
            del items[place]
        case 1 if items:
            items.extend([items[place]])
        case 2 if len(items) > 1:
            entries = [
                type(i).FromString(i.SerializeToString()) if is_message else i for i in items
            ]
            rng.shuffle(entries)
            del items[:]
            items.extend(entries)
        case _ if is_message:
            items.add()
        case _ if items:
            items[place] = _value(field, items[place], rng)
        case _:
            items.append(_value(field, field.default_value or 0, rng))


def _value(field: Any, old: Any, rng: random.Random) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _damaged(bytes(old) or b"x", rng)
        return rng.choice(TEXTS)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, math.nan, math.inf, -math.inf))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    near = [old + 1, old - 1, -old, old * 2] if isinstance(old, int) else []
    return rng.choice((*EXTREMES, *near))


# --- running -----------------------------------------------------------------------


def problem_of(arguments: list[str]) -> str | None:
    """Run a command in this process; what is wrong with how it ended, if anything is."""
    from click.testing import CliRunner

    from secateur.cli import main

    result = CliRunner().invoke(main, arguments)
    text = f"{result.stdout}{result.stderr}"
    if "internal error" in text or "Traceback" in text:
        return result.stderr.strip()[-400:]
    if result.exit_code not in (0, 1):
        return f"exit code {result.exit_code}: {result.exception!r} {text.strip()[-300:]}"
    if result.exit_code == 1 and len(result.stderr.strip().splitlines()) != 1:
        return f"not one line: {result.stderr.strip()[-300:]!r}"
    return None


def commands(model: Path, folder: Path, compile: bool) -> Iterator[list[str]]:
    """The command lines that a model goes through."""
    for command in (*COMMANDS, *([COMPILE] if compile else [])):
        yield [word.format(model=model, folder=folder) for word in command]


def work() -> None:
    """Read requests of one line each from standard input and answer each with a line."""
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            found = None
            for arguments in commands(Path(request["model"]), Path(folder), request["compile"]):
                problem = problem_of(arguments)
                if problem is not None:
                    found = f"{arguments[0]}: {problem}"
                    break
        print(json.dumps({"problem": found}), flush=True)


class Worker:
    """A process that runs models, started anew where it ends or takes too long."""

    def __init__(self, seconds: float, memory: int) -> None:
        self.seconds, self.memory = seconds, memory
        self.process: subprocess.Popen[str] | None = None

    def run(self, model: Path, compile: bool) -> str | None:
        """What went wrong with a model, if anything did."""
        if self.process is None:
            self._start()
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"model": str(model), "compile": compile}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        limit = self.seconds * (3 if compile else 1)
        begun, ends = self._processor_seconds(), time.monotonic() + 10 * limit
        while not select.select([process.stdout], [], [], limit / 10)[0]:
            if self._processor_seconds() - begun > limit or time.monotonic() > ends:
                self.stop()
                return f"takes more than {limit:g} seconds"
        answer = process.stdout.readline()
        if not answer:
            code = process.wait()
            self.process = None
            return f"the process ended ({code})"
        problem: str | None = json.loads(answer)["problem"]
        peak = sum(map(_peak, _family(process.pid)))
        if peak > self.memory:
            self.stop()
            return f"took {peak / 1e9:.2f} GB" if problem is None else problem
        return problem

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _processor_seconds(self) -> float:
        assert self.process is not None
        return sum(map(_processor_seconds, _family(self.process.pid)))

    def _start(self) -> None:
        command = [sys.executable, __file__, "--work"]
        limit = 4 * self.memory + 2**33  # address space: also what is mapped and never touched

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=limited,
        )


def _family(pid: int) -> list[int]:
    """A process and those that it has started, which run trials."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text(encoding="utf-8").split())
    return found


def _processor_seconds(pid: int) -> float:
    """Processor time of a process and of those that it has waited for; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _peak(pid: int) -> int:
    """Bytes of resident memory that a process took at most."""
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def seeds() -> list[ModelProto]:
    """Models to start from: the bases of the tests, each with each oddity, and the cases of
    the onnx package."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from onnx.backend.test.case.node import collect_testcases

    from tests import oddities

    found = [make() for make in oddities.BASES.values()]
    made = (oddities.make(*pair) for pair in oddities.all_oddities())
    found += [proto for proto in made if proto is not None and proto.ByteSize() < 20_000]
    cases = (case.model for case in collect_testcases(None))
    return found + [proto for proto in cases if proto is not None and proto.ByteSize() < 20_000]


def fuzz(
    start: int, count: int, *, seconds: float, memory: int, keep: Path | None = None
) -> Iterator[tuple[int, str]]:
    """Seeds that fail, each with what went wrong."""
    models = seeds()
    worker = Worker(seconds, memory)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        for seed in range(start, start + count):
            path.write_bytes(mutated(models[random.Random(seed).randrange(len(models))], seed))
            problem = worker.run(path, compile=seed % 10 == 0)
            if problem is not None:
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}.onnx").write_bytes(path.read_bytes())
                yield seed, problem
        worker.stop()


@click.command()
@click.option("--count", default=5000, show_default=True)
@click.option("--seed", default=0, show_default=True, help="The first one.")
@click.option("--seconds", default=30.0, show_default=True, help="Longest time for a model.")
@click.option("--memory", default=2 * 10**9, show_default=True, help="Most bytes resident.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for files that fail.")
@click.option("--work", "is_worker", is_flag=True, hidden=True)
def main(
    count: int, seed: int, seconds: float, memory: int, keep: Path | None, is_worker: bool
) -> None:
    """Run mutated models through the command line."""
    if is_worker:
        os.environ.pop("SECATEUR_TRACEBACK", None)
        work()
        return
    kinds: Counter[str] = Counter()
    for failed, problem in fuzz(seed, count, seconds=seconds, memory=memory, keep=keep):
        kinds[problem[:100]] += 1
        click.echo(f"{failed}: {problem}")
    click.echo(f"{count} models, {kinds.total()} failures of {len(kinds)} kinds")
    sys.exit(bool(kinds))


if __name__ == "__main__":
    main()
