"""The tutorials, followed literally in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NEEDS = {"classifier": ("sklearn", "PIL", "jinja2"), "detector": ("torch", "onnxscript", "PIL")}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, tmp_path: Path) -> None:
    for module in NEEDS[page.stem]:
        pytest.importorskip(module)
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 5
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    printed = ""
    for language, block in blocks:
        code = re.sub(r"^secateur ", "python -m secateur ", block, flags=re.MULTILINE)
        code = re.sub(r"^python ", f"{sys.executable} ", code, flags=re.MULTILINE)
        command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", block]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{block}\n{run.stdout}\n{run.stderr}"
        printed += run.stdout
    assert (tmp_path / "out" / "report.html").exists()
    if page.stem == "classifier":
        assert "divided by 255" in printed
        (share,) = re.findall(r"^(\d+)% of 100 digits", printed, re.MULTILINE)
        assert int(share) >= 94
    else:
        stages = re.findall(r"^ ?(original|artifact) .*? ([\d.]+) % +([\d.]+) %", printed, re.M)
        found = {name: float(value) for name, value, _ in stages}
        assert found["original"] > 40
        assert found["artifact"] > found["original"] - 5
