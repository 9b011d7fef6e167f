"""Cycles of inner loops by llvm-mca, which knows cores' pipelines but no caches.

Of each function the innermost loop with the most arithmetic on vectors stands for all that it
executes: its cycles per instruction times the instructions that were counted.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

_ITERATIONS = 100
_BRANCH = re.compile(r"(?:b|cbn?z|tbn?z|b\.?[a-z]{2})\s+(?:\w+, )?(?:#\d+, )?([0-9a-f]+) <")
_VECTOR = re.compile(r"f?ml[as]|fmul|[su]mull?|[su]mlal|[su]dot|[su]mmla|sadalp|fadd|fmla")
_FUNCTION = re.compile(r"^[0-9a-f]+ <(\w+)>:$", re.MULTILINE)


def loops_of(archive: Path, objdump: str) -> dict[str, list[str]]:
    """The loop of each function of a static library, as instructions in the assembler's words."""
    command = [objdump, "-d", "--no-show-raw-insn", str(archive)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = _FUNCTION.split(text)
    found = {}
    for name, code in zip(parts[1::2], parts[2::2], strict=True):
        inner = _innermost(code.split("\n\n")[0])
        if inner:
            found[name] = max(inner, key=lambda body: sum(bool(_VECTOR.match(t)) for t in body))
    return found


def _innermost(code: str) -> list[list[str]]:
    lines = [m.groups() for m in re.finditer(r"^\s*([0-9a-f]+):\s+(.*)$", code, re.MULTILINE)]
    place = {int(at, 16): index for index, (at, _) in enumerate(lines)}
    found = []
    for index, (_, text) in enumerate(lines):
        branch = _BRANCH.match(text)
        if branch and place.get(int(branch[1], 16), index + 1) <= index:
            found.append((place[int(branch[1], 16)], index))
    inner = [a for a in found if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in found)]
    return [[_assembled(text) for _, text in lines[first : last + 1]] for first, last in inner]


def _assembled(text: str) -> str:
    """An instruction without comments, and with no place to go to."""
    return re.sub(r"[0-9a-f]+ <[^>]*>", "#0", text.split("//")[0]).strip()


def cycles_per_instruction(body: list[str], cpu: str) -> float:
    """Of a loop that runs for long on a core."""
    command = [
        "llvm-mca", "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", f"-iterations={_ITERATIONS}"
    ]  # fmt: skip
    done = subprocess.run(
        command, input="\n".join(body), capture_output=True, text=True, check=False
    )
    total = re.search(r"^Total Cycles:\s+(\d+)", done.stdout, re.MULTILINE)
    count = re.search(r"^Instructions:\s+(\d+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or total is None or count is None:
        raise ValueError(f"llvm-mca: {done.stderr.strip()[:300]}")
    return int(total[1]) / int(count[1])


def cycles(
    archive: Path, cpu: str, functions: Mapping[str, tuple[int, int]], objdump: str
) -> tuple[float, float]:
    """Cycles of all functions that have such a loop, and the share of instructions that is in
    these."""
    found, covered = 0.0, 0
    loops = loops_of(archive, objdump)
    for name, (instructions, _) in functions.items():
        if name in loops:
            found += instructions * cycles_per_instruction(loops[name], cpu)
            covered += instructions
    return found, covered / max(1, sum(count for count, _ in functions.values()))
