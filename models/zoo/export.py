"""ONNX files of the zoo, in the ways in which exporters write a model. Needs torch."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from ...ir.errors import SecateurError
from ...ir.onnx_io import atomic_files
from .inputs import RANGE_KEY, SHAPE_KEY
from .registry import ZOO, Input, Scale, ZooModel

if TYPE_CHECKING:
    import torch

Variant = Literal["folded", "kept", "dynamo"]
VARIANTS: tuple[Variant, ...] = ("folded", "kept", "dynamo")
"""How a file is written.

- folded: TorchScript exporter, opset 17, fixed shapes; BatchNormalization folded into
  convolutions, shape computations folded to constants.
- kept: TorchScript exporter, opset 13, dynamic batch (and sequence); BatchNormalization
  kept, nothing folded, so shapes are computed by Shape-Gather-Concat chains.
- dynamo: torch.export-based exporter, opset 18, dynamic batch (and sequence).
"""

SEED = 20240229
INITIAL_BATCH = {"full": 4, "tiny": 64}
"""Samples from which scales and statistics are taken; tiny feature maps need more."""


def export(name: str, path: str | Path, variant: Variant, scale: Scale = "full") -> None:
    """Build model `name` with its deterministic weights and write it to `path`, atomically.

    Raises SecateurError for unknown names, and where ONNX Runtime computes something
    else from the file than torch does from the module.
    """
    if name not in ZOO:
        raise SecateurError(f"no model '{name}' in the zoo; there are {', '.join(ZOO)}")
    if variant not in VARIANTS:
        raise SecateurError(f"no variant '{variant}'; there are {', '.join(VARIANTS)}")
    proto = to_onnx(build(ZOO[name], scale), ZOO[name], variant, scale)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files(path) as (temporary,):
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def to_onnx(
    module: torch.nn.Module, entry: ZooModel, variant: Variant, scale: Scale
) -> onnx.ModelProto:
    """`module`, which takes the inputs of `entry`, as a checked and described model."""
    inputs = entry.inputs(scale)
    proto = (
        _export_dynamo(module, inputs)
        if variant == "dynamo"
        else _export_torchscript(module, inputs, keep=variant == "kept")
    )
    _describe(proto, entry, inputs, variant, scale)
    onnx.checker.check_model(proto, full_check=True)
    _check_values(proto, module, inputs)
    return proto


def build(entry: ZooModel, scale: Scale) -> torch.nn.Module:
    """The initialised module, in evaluation mode."""
    from .initialize import initialize

    module = entry.build(scale)
    batch = example(entry.inputs(scale), batch=INITIAL_BATCH[scale])
    initialize(module, batch, SEED)
    return module


def example(inputs: tuple[Input, ...], batch: int = 1) -> tuple[torch.Tensor, ...]:
    """Random inputs with their first axis `batch` times as long."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    tensors = []
    for i in inputs:
        shape = (i.shape[0] * batch, *i.shape[1:])
        if i.upper is None:
            tensors.append(torch.randn(shape, generator=generator))
        else:
            tensors.append(torch.randint(0, i.upper, shape, generator=generator))
    return tuple(tensors)


def _export_torchscript(
    module: torch.nn.Module, inputs: tuple[Input, ...], *, keep: bool
) -> onnx.ModelProto:
    import torch

    options: dict[str, Any] = {"opset_version": 17}
    if keep:
        options = {
            "opset_version": 13,
            "training": torch.onnx.TrainingMode.PRESERVE,
            "do_constant_folding": False,
            "dynamic_axes": {i.name: dict(i.dynamic) for i in inputs} | {"output": {0: "batch"}},
        }
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example(inputs),
            file,
            dynamo=False,
            input_names=[i.name for i in inputs],
            output_names=["output"],
            **options,
        )
    return onnx.load_from_string(file.getvalue())


def _export_dynamo(module: torch.nn.Module, inputs: tuple[Input, ...]) -> onnx.ModelProto:
    import torch

    symbols: dict[str, Any] = {}
    shapes = tuple(
        {axis: symbols.setdefault(s, torch.export.Dim(s)) for axis, s in i.dynamic.items()}
        for i in inputs
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            copy.deepcopy(module),
            example(inputs, batch=2),
            dynamo=True,
            verbose=False,
            opset_version=18,
            input_names=[i.name for i in inputs],
            output_names=["output"],
            dynamic_shapes=shapes,
        )
    if program is None:
        raise SecateurError("torch's exporter returned nothing")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _describe(
    proto: onnx.ModelProto,
    entry: ZooModel,
    inputs: tuple[Input, ...],
    variant: Variant,
    scale: Scale,
) -> None:
    """Name the graph and say in the metadata which inputs fit."""
    proto.graph.name = f"{entry.name}-{scale}-{variant}"
    for node in proto.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for value in proto.graph.value_info:
        del value.metadata_props[:]
    for i in inputs:
        proto.metadata_props.add(key=SHAPE_KEY + i.name, value=" ".join(map(str, i.shape)))
        if i.upper is not None:
            proto.metadata_props.add(key=RANGE_KEY + i.name, value=f"0 {i.upper}")


def _check_values(
    proto: onnx.ModelProto, module: torch.nn.Module, inputs: tuple[Input, ...]
) -> None:
    import onnxruntime
    import torch

    tensors = example(inputs)
    with torch.no_grad():
        expected = module(*tensors).numpy()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {i.name: t.numpy() for i, t in zip(inputs, tensors, strict=True)}
    (found,) = session.run(None, feeds)
    error = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-6))
    if not error < 1e-3:
        raise SecateurError(f"{proto.graph.name}: ONNX Runtime and torch differ by {error:.2g}")
