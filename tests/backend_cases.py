"""The backend test cases of the onnx package, as models with inputs and expected outputs."""

from __future__ import annotations

import functools
import glob
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper


class Case(NamedTuple):
    """`data`: pairs of input and output lists, empty where the package ships none."""

    name: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]


@functools.cache
def generated_cases() -> list[Case]:
    """The node cases and the model cases that are made in memory."""
    from onnx.backend.test.case import model as model_cases
    from onnx.backend.test.case import node as node_cases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators overflow and divide by zero on purpose
        found = [*node_cases.collect_testcases(None), *model_cases.collect_testcases()]
    return [
        Case(t.name, t.model, [(_arrays(i), _arrays(o)) for i, o in t.data_sets or []])
        for t in found
        if t.model is not None
    ]


def _arrays(values: Iterable[Any]) -> list[Any]:
    """Values as ONNX Runtime takes them: some cases have tensors and scalars of NumPy's."""
    return [
        numpy_helper.to_array(value)
        if isinstance(value, onnx.TensorProto)
        else np.asarray(value)
        if isinstance(value, np.generic)
        else value
        for value in values
    ]


def stated_and_left_out(model: onnx.ModelProto) -> Iterator[tuple[str, list[onnx.ModelProto]]]:
    """Each attribute of a model's last node that has a default, with two models that mean the
    same: one states the default, the other leaves the attribute out.

    Not so decimal fractions, which a model states in single precision, and activations of
    recurrent layers, whose default depends on the direction.
    """
    node = model.graph.node[-1]
    opset = next(o.version for o in model.opset_import if o.domain in (node.domain, "ai.onnx"))
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if not default.name or name == "activations" or not (16 * default.f).is_integer():
            continue
        pair = []
        for given in ([default], []):
            changed = onnx.ModelProto()
            changed.CopyFrom(model)
            last = changed.graph.node[-1]
            kept = [a for a in last.attribute if a.name != name]
            del last.attribute[:]
            last.attribute.extend([*kept, *given])
            pair.append(changed)
        yield name, pair


def model_files() -> list[Path]:
    """Every model file in the package: simple, light, PyTorch-converted and -operator cases."""
    root = Path(onnx.backend.test.__file__).parent / "data"
    return [Path(p) for p in sorted(glob.glob(f"{root}/**/*.onnx", recursive=True))]


def light_models() -> list[Path]:
    """Whole networks without trained weights, shipped without inputs."""
    return [path for path in model_files() if path.parent.name == "light"]


def shipped_cases(folder: str) -> list[Case]:
    """The cases of one folder of the package, with the inputs and outputs beside each model."""
    files = [path for path in model_files() if path.parent.parent.name == folder]
    return [Case(path.parent.name, onnx.load(path), _data_sets(path.parent)) for path in files]


def _data_sets(folder: Path) -> list[tuple[list[Any], list[Any]]]:
    return [
        (_tensors(data, "input"), _tensors(data, "output"))
        for data in sorted(folder.glob("test_data_set_*"))
    ]


def _tensors(folder: Path, kind: str) -> list[Any]:
    count = len(list(folder.glob(f"{kind}_*.pb")))
    paths = [folder / f"{kind}_{i}.pb" for i in range(count)]
    return [numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]
