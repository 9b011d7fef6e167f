"""The page on operators, docs/operators.md: `python -m secateur.reporting.operators`.

Everything on it is read from the tables that the parts use themselves, so that it says what
they do. Operators that a part knows nothing of have a reason there; those that nobody has
considered yet are an error.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from onnx import defs

from ..ir.errors import SecateurError
from ..ir.graph import Node, normalize_domain
from ..ir.ops import Operator, Trait, operator, operators
from ..ir.ops.records import MICROSOFT
from ..ir.schemas import is_deterministic
from ..ir.stand_ins import TREE_SUMS, replaced
from ..ir.symbolic.registry import contents_rules, shape_rules
from ..passes.opset_rules import OWN_RULES
from ..passes.quantize.rules import REASONS, rule_of
from ..passes.simplify.kernels import KERNELS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"

_NO = "-"


@dataclasses.dataclass(frozen=True)
class Name:
    """An operator by domain and type, and the versions that have another schema."""

    domain: str
    op_type: str
    versions: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.domain or 'ai.onnx'}::{self.op_type}"


def known_operators() -> list[Name]:
    """Every operator that the installed onnx and ONNX Runtime have, and no longer have."""
    versions: dict[tuple[str, str], set[int]] = defaultdict(set)
    for schema in defs.get_all_schemas_with_history():
        key = normalize_domain(schema.domain), schema.name
        versions[key].add(schema.since_version)
    for name in contrib_operators():
        versions[MICROSOFT, name].add(1)
    return [Name(*key, tuple(sorted(versions[key]))) for key in sorted(versions)]


def contrib_operators() -> set[str]:
    """The operators of ONNX Runtime's own domain."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return {s.name for s in get_all_operator_schema() if s.domain == MICROSOFT}


def unconsidered(names: Iterable[Name]) -> list[str]:
    """What nobody has considered: operators without a record, or without a word on lowering."""
    missing = []
    for name in names:
        if operator(name.op_type, name.domain) is None:
            missing.append(f"{name}: no record in ir/ops")
        elif not name.domain and lowering(name) == _NO:
            missing.append(f"{name}: neither lowered nor in NOT_LOWERED of backends/tvm")
    return missing


# --- columns -----------------------------------------------------------------------------


def axes(record: Operator) -> str:
    return "rule" if not isinstance(record.axes, str) else f"not: {record.axes}"


def traits(record: Operator) -> str:
    names = [t.name or "" for t in Trait if t in record.traits and t.value]
    return ", ".join(n.lower().replace("_", " ") for n in names) or _NO


def sizes(name: Name) -> str:
    """How shapes of results are found."""
    found = []
    if name.domain == "":
        if name.op_type in shape_rules():
            found.append("symbolic")
        if name.op_type in contents_rules():
            found.append("elements")
    if defs.has(name.op_type, domain=name.domain):
        schema = defs.get_schema(name.op_type, domain=name.domain)
        if schema.has_type_and_shape_inference_function or _is_defined(schema):
            found.append("ONNX")
    if name.op_type in replaced() and not defs.has(name.op_type, domain=name.domain):
        found.append("stand-in")
    return ", ".join(found) or "not: nothing infers its types"


def folding(name: Name) -> str:
    if name.domain == "" and name.op_type in KERNELS:
        return "NumPy"
    if name.domain == "" and name.op_type in ("Constant", "DequantizeLinear", "Shape", "Size"):
        return {
            "Constant": "becomes an initializer",
            "DequantizeLinear": "not: that would undo a quantization",
        }.get(name.op_type, "from the shape")
    version = name.versions[-1] if name.versions else 1
    if is_deterministic(name.op_type, name.domain, version):
        return "ONNX Runtime"
    record = operator(name.op_type, name.domain)
    if record is not None and Trait.RANDOM in record.traits:
        return "not: random"
    standard = name.domain in ("", "ai.onnx.ml")
    return "not: it has subgraphs" if standard else "not: no standard operator"


def quantization(name: Name) -> str:
    if name.domain:
        return "not: no standard operator"
    if rule_of(Node(name.op_type, [], [])) is not None:
        return "integer"
    if name.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return "what it is written in"
    return f"not: {REASONS.get(name.op_type, 'no integer kernel')}"


def lowering(name: Name) -> str:
    """How the compiler computes it: by fast rules, plain loops, or as other operators."""
    from ..backends.tvm.graph import definitions, sequences, unroll
    from ..backends.tvm.graph.expand import EXPANDED
    from ..backends.tvm.graph.loops import LOOPED
    from ..backends.tvm.lowering import loops, lower

    found = []
    key = loops.key(name.op_type, name.domain)
    if key in lower.RULES:
        found.append("fast")
    if key in loops.RULES:
        found.append("plain")
    if name.domain == "":
        if name.op_type in EXPANDED:
            found.append("as its definition")
        if name.op_type in sequences.RULES:
            found.append("sequences")
        if name.op_type in unroll.UNROLLED:
            found.append("unrolled")
        if name.op_type in LOOPED:
            found.append("as a loop")
        if not found and name.op_type in lower.NOT_LOWERED:
            return f"not: {lower.NOT_LOWERED[name.op_type]}"
    if (name.domain, name.op_type) in definitions.DEFINITIONS:
        found.append("as its definition")
    if name.domain and not found:
        return f"not: domain {name.domain} is not compiled"
    return ", ".join(found) or _NO


def conversion(name: Name) -> str:
    """How other operator sets are reached."""
    if name.domain:
        return "left alone"
    ways = ["one version"] if len(name.versions) == 1 else []
    if name.op_type in OWN_RULES:
        ways.append("own rules")
    elif not ways:
        ways.append("onnx's converter")
    if defs.has(name.op_type) and _is_defined(defs.get_schema(name.op_type)):
        ways.append("its definition")
    return ", ".join(ways)


def _is_defined(schema: defs.OpSchema) -> bool:
    """Whether ONNX defines the operator as a function of others."""
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


# --- the page ----------------------------------------------------------------------------

_HEADER = """# Operators: what is known of each

Written by `python -m secateur.reporting.operators`; a test fails where it is stale, or where
the installed onnx or ONNX Runtime has an operator that nobody has considered. How to add one:
[adding-an-operator.md](adding-an-operator.md). {versions}.

- **versions**: operator sets that changed it
- **axes**: whether pruning follows it ([axes.md](axes.md))
- **traits**: what passes read of it (`Trait` in `ir/ops/records.py` defines each)
- **MACs**: whether its multiply-accumulates are counted
- **sizes**: how shapes of results are found: by symbolic rules, also for the elements of small
  integer tensors, by ONNX's inference, by a stand-in of operators that have it
- **folding**: what computes it where all operands are constants
- **quantization**: whether it works on integers after `secateur quantize`
- **lowering**: whether `secateur compile` has a fast rule, plain loops, or takes it apart
- **conversion**: how `--opset` reaches other versions
"""

_COLUMNS = (
    "operator", "versions", "axes", "traits", "MACs", "sizes", "folding", "quantization",
    "lowering", "conversion",
)  # fmt: skip


def page() -> str:
    """The whole page. Raises SecateurError where an operator has not been considered."""
    names = known_operators()
    names += [
        Name(d, o)
        for d, o in operators()
        if (d, o) not in {(n.domain, n.op_type) for n in names} and d != TREE_SUMS[0]
    ]
    missing = unconsidered(names)
    if missing:
        raise SecateurError("; ".join(missing))
    parts = [_HEADER.format(versions=versions())]
    for domain in sorted({n.domain for n in names}):
        parts.append(f"## {domain or 'ai.onnx'}\n")
        parts.append(_table([_row(n) for n in sorted(names, key=str) if n.domain == domain]))
    return "\n".join(parts)


def versions() -> str:
    """The packages whose operators are listed."""
    import onnx
    import onnxruntime

    return f"With onnx {onnx.__version__} and ONNX Runtime {onnxruntime.__version__}"


def _row(name: Name) -> list[str]:
    record = operator(name.op_type, name.domain)
    assert record is not None
    return [
        name.op_type,
        " ".join(map(str, name.versions)) or _NO,
        axes(record),
        traits(record),
        "counted" if record.macs is not None else _NO,
        sizes(name),
        folding(name),
        quantization(name),
        lowering(name),
        conversion(name),
    ]


def _table(rows: list[list[str]]) -> str:
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write the page on operators.")
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    output: Path = parser.parse_args().output
    output.write_text(page(), encoding="utf-8")
    print(f"Wrote {output}.")


if __name__ == "__main__":
    main()
