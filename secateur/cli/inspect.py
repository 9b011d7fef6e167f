"""`secateur inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..reporting.report import (
    bytes_text,
    count_text,
    inspection_remarks,
    short,
)
from .console import print_json, print_table, say
from .options import fixed_inputs_options, json_option, model_argument

if TYPE_CHECKING:
    from ..data.fixed_inputs import FixedInputs


@click.command("inspect")
@model_argument
@click.option(
    "--details", is_flag=True, help="List each group's tied parameters and the nodes it passes."
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with a drawing of the network, its groups and locks.",
)
@fixed_inputs_options
@json_option
def command(
    model: Path, details: bool, html: Path | None, fixed: FixedInputs, as_json: bool
) -> None:
    """Show what MODEL is made of, what it costs, and which channels can go together.

    Of a compiled artifact, for whatever machine: its targets, inputs and outputs.
    """
    from ..checking.inspection import inspect_artifact

    artifact = inspect_artifact(model)
    if artifact is not None:
        if html is not None or details:
            raise click.UsageError("--details and --html are for models, not for what they become.")
        if as_json:
            print_json(artifact)
        else:
            _print_artifact(artifact)
        return
    if html is not None:
        from ..pipeline.reports import write_inspection

        write_inspection(model, html, fixed)
    from ..checking.inspection import inspect_file

    facts = inspect_file(model, fixed)
    if as_json:
        print_json(facts)
        return
    _print(facts)
    if details:
        for group in facts["groups"]:
            _print_details(group)


def _print(facts: dict[str, Any]) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in facts["opsets"].items())
    say(f"{facts['file']}: IR version {facts['ir_version']}, opset {opsets}")
    for kind in ("inputs", "outputs"):
        for value in facts[kind]:
            shape = "unknown shape" if value["shape"] is None else _shape_text(value["shape"])
            say(f"{kind[:-1]} {value['name']}: {value['type']} {shape}")
    if facts["batch"]["inputs"]:
        say(_batch_text(facts["batch"]))
    say(
        f"{count_text(facts['nodes'])} nodes, {count_text(facts['parameters'])} parameters "
        f"({bytes_text(facts['weight_bytes'])}), {count_text(facts['macs'])} MACs"
    )
    for remark in inspection_remarks(facts):
        say(remark)
    rows = [[o["type"], count_text(o["nodes"]), count_text(o["macs"])] for o in facts["operators"]]
    print_table(["operator", "nodes", "MACs"], rows)
    print_table(
        ["channel group", "locked by", "channels", "tied axes", "parameters each", "MACs each"],
        [
            [
                short(g["name"]),
                "" if g["lock"] is None else short(_lock_text(g["lock"])),
                f"{g['size']:,}",
                f"{len(g['parameters']):,}",
                count_text(g["parameters_per_step"]),
                count_text(g["macs_per_step"]),
            ]
            for g in facts["groups"]
        ],
        text_columns=2,
    )


def _print_artifact(facts: dict[str, Any]) -> None:
    short_code = ", short code" if facts["small"] else ""
    size = bytes_text(facts["file_bytes"])
    say(f"{facts['file']}: {size} for {facts['target']}{short_code}")
    for kind in ("inputs", "outputs"):
        for value in facts[kind]:
            shape = "unknown shape" if value["shape"] is None else _shape_text(value["shape"])
            batch = ", a batch" if value["batched"] else ""
            say(f"{kind[:-1]} {value['name']}: {value['type'] or 'no tensor'} {shape}{batch}")
    for part in facts["parts"]:
        say(f"part {part['file']}: {'compiled' if part['compiled'] else 'for ONNX Runtime'}")
    if facts["parts"]:
        return
    rows = [
        [
            level["target"],
            " ".join(level["instructions"]),
            str(level["calls"]),
            "open" if level["arena_bytes"] is None else bytes_text(level["arena_bytes"]),
        ]
        for level in facts["levels"]
    ]
    print_table(["target", "asks of a CPU", "kernel calls", "arena"], rows, text_columns=2)


def _batch_text(batch: dict[str, Any]) -> str:
    names = ", ".join(batch["inputs"])
    if batch["obstacle"] is None:
        return f"batch: independent samples along the first axis of {names}"
    return f"no batch along the first axis of {names}: {_lock_text(batch['obstacle'])}"


def _print_details(group: dict[str, Any]) -> None:
    locked = "" if group["lock"] is None else f", locked by {_lock_text(group['lock'])}"
    say("")
    say(f"{group['name']}: {group['size']:,} indices{locked}")
    for parameter in group["parameters"]:
        say(f"  ties {parameter['name']}, axis {parameter['axis']}")
    for operator in group["operators"]:
        say(f"  passes {operator}")


def _lock_text(lock: dict[str, Any]) -> str:
    where = f"{lock['node']} ({lock['op_type']}): " if lock["node"] else ""
    return f"{where}{lock['reason']}"


def _shape_text(shape: list[int | str | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
