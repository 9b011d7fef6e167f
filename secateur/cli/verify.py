"""`secateur verify`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import print_json, say
from .options import json_option, model_argument


@click.command("verify")
@model_argument
@json_option
def command(model: Path, as_json: bool) -> None:
    """Check that MODEL is well formed, passes onnx.checker and loads in ONNX Runtime.

    Where its inputs leave their first size open, also say whether that is a batch of
    independent samples, and compare batches with their samples.
    """
    from ..checking.checks import verify_file
    from ..checking.independence import verify_batch

    checks = [*verify_file(model), *verify_batch(model)]
    if as_json:
        print_json([{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks])
    else:
        for check in checks:
            say(f"{check.name}: {check.detail}")
