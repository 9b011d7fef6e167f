"""Measuring on devices: a program is copied there by ssh, runs, and prints JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..ir.display import printable
from ..ir.errors import SecateurError

SECONDS = 2.0
"""For which a program measures."""

TIMEOUT = 600.0
"""Seconds for copying and running one program."""

MOST_BYTES = 16 * 1024 * 1024
"""Of what a program prints."""

_SCRIPT = """\
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/program"
chmod +x "$folder/program"
"$folder/program" {seconds:g} {threads}
"""

_DESTINATION = re.compile(r"ssh://(?:[\w.][\w.-]*@)?(?:\w[\w.-]*|\[[0-9A-Fa-f:.%\w]+\])(?::\d+)?/?")


@dataclasses.dataclass(frozen=True)
class RemoteRun:
    """What a program said on a device: its JSON (docs/device.md), or why there is none."""

    device: str
    program: str
    result: dict[str, Any] | None
    error: str = ""

    def row(self) -> list[str]:
        """For a table: device, program, latencies, cycles, whether results are as expected."""
        if self.result is None:
            return [self.device, self.program, "-", "-", "-", "-", self.error]
        latency = self.result["latency_us"]
        cycles = self.result["cycles"]
        return [
            self.device,
            self.program,
            *(f"{latency[key]:.1f}" for key in ("p50", "p99", "min")),
            "-" if cycles is None else f"{cycles:,.0f}",
            "yes" if self.result["agrees"] else "NO",
        ]


def measure_remotely(
    programs: Sequence[Path],
    devices: Sequence[str],
    ssh: str = "ssh",
    threads: int = 1,
    seconds: float = SECONDS,
) -> list[RemoteRun]:
    """Run every program on every device; on each one after the other, on all devices at once.

    `ssh` is the command, with options. Devices and programs that fail say so in the result. Raises
    SecateurError for names that are no devices, and programs that can't be read.
    """
    for device in devices:
        if _DESTINATION.fullmatch(device) is None:
            raise SecateurError(f"'{printable(device)}' is no device, as ssh://user@host:22 is")
    for program in programs:
        try:
            with program.open("rb") as file:
                is_program = file.read(4) == b"\x7fELF"
        except OSError as error:
            raise SecateurError(f"{program}: {error.strerror or error}") from None
        if not is_program or program.suffix == ".so":
            raise SecateurError(f"{program}: no program that --bench made")
    words = shlex.split(ssh)
    if not words:
        raise SecateurError("--ssh: there is no command")

    def on(device: str) -> list[RemoteRun]:
        return [_run(words, device, program, threads, seconds) for program in programs]

    with ThreadPoolExecutor(max_workers=len(devices)) as pool:
        return [one for runs in pool.map(on, dict.fromkeys(devices)) for one in runs]


def demand_success(runs: Sequence[RemoteRun]) -> None:
    """Raise SecateurError where a program didn't run or computed something else."""
    failed = [f"{r.device}: {r.program}: {r.error}" for r in runs if r.result is None]
    failed += [
        f"{r.device}: {r.program}: the results are not those expected"
        for r in runs
        if r.result is not None and not r.result["agrees"]
    ]
    if failed:
        raise SecateurError("; ".join(failed))


def _run(ssh: Sequence[str], device: str, program: Path, threads: int, seconds: float) -> RemoteRun:
    script = _SCRIPT.format(seconds=seconds, threads=threads)
    command = [*ssh, "-o", "BatchMode=yes", "--", device, f"sh -c {shlex.quote(script)}"]
    try:
        with program.open("rb") as file:
            done = subprocess.run(
                command, stdin=file, capture_output=True, check=False, timeout=TIMEOUT
            )
    except subprocess.TimeoutExpired:
        return RemoteRun(device, program.name, None, f"no answer in {TIMEOUT:g} s")
    except OSError as error:
        raise SecateurError(f"{ssh[0]}: {error.strerror or error}") from None
    try:
        return RemoteRun(device, program.name, parse_result(done.stdout))
    except ValueError:
        text = done.stderr.decode(errors="replace").strip()[-300:]
        reason = printable(" ".join(text.split())) or "it printed no measurement"
        return RemoteRun(device, program.name, None, f"status {done.returncode}: {reason}")


def parse_result(output: bytes) -> dict[str, Any]:
    """What a program printed, checked. Raises ValueError."""
    if len(output) > MOST_BYTES:
        raise ValueError("too long")
    result = json.loads(output.decode("utf-8"))
    check_result(result)
    checked: dict[str, Any] = result
    return checked


def check_result(result: Any) -> None:
    """Raises ValueError where this isn't what a bench program prints."""
    if not isinstance(result, dict) or result.get("schema") != 1:
        raise ValueError("another schema")
    latency = result.get("latency_us")
    numbers = [latency.get(k) for k in ("min", "p50", "p99")] if isinstance(latency, dict) else []
    is_measured = numbers and all(isinstance(n, (int, float)) for n in numbers)
    has_cycles = isinstance(result.get("cycles"), (int, float, type(None)))
    if not is_measured or not has_cycles or not isinstance(result.get("agrees"), bool):
        raise ValueError("fields are missing")
