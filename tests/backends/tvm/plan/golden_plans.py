"""Plans of small models as text; `python -m tests.backends.tvm.plan.golden_plans` writes them.

A file in `tests/golden/plans` holds `// TARGET: name`, a model, `// PLAN:`, and its plan.
"""

from __future__ import annotations

from pathlib import Path

from secateur.backends.tvm.lowering.lower import lower
from secateur.backends.tvm.plan.text import print_plan
from secateur.backends.tvm.targets import parse_target
from secateur.ir.infer import infer_shapes
from secateur.ir.text import parse_model
from secateur.passes.simplify import simplify_pipeline

FOLDER = Path(__file__).parents[3] / "golden" / "plans"
TARGET, PLAN = "// TARGET: ", "// PLAN:\n"


def parts(path: Path) -> tuple[str, str, str]:
    """The target, the model and the plan that a file holds."""
    header, _, rest = path.read_text(encoding="utf-8").partition("\n")
    model, _, plan = rest.partition(PLAN)
    return header.removeprefix(TARGET), model, plan


def plan_of(target: str, text: str) -> str:
    """The text of a model's plan."""
    model = parse_model(text)
    for step in simplify_pipeline():
        step.run(model)
    infer_shapes(model)
    return print_plan(lower(model, parse_target(target)), target)


def main() -> None:
    for path in sorted(FOLDER.glob("*.txt")):
        target, model, _ = parts(path)
        text = f"{TARGET}{target}\n{model}{PLAN}{plan_of(target, model)}"
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
