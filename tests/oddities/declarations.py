"""Sizes and operator sets as exporters declare them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import ModelProto, helper

from .registry import (
    ODDITIES,
    Oddity,
    floats,
    oddity,
)


def tensor_dims(proto: ModelProto, *lists: str) -> Iterator[onnx.TensorShapeProto.Dimension]:
    for name in lists:
        for info in getattr(proto.graph, name):
            yield from info.type.tensor_type.shape.dim


def set_sizes(*lists: str, first: bool, value: int | str | None) -> Oddity:
    def change(proto: ModelProto) -> None:
        for name in lists:
            for info in getattr(proto.graph, name):
                dims = info.type.tensor_type.shape.dim
                for dim in dims[:1] if first else dims:
                    dim.Clear()
                    if isinstance(value, str):
                        dim.dim_param = value
                    elif value is not None:
                        dim.dim_value = value

    return change


for _value in (
    -1,
    0,
    -(2**62),
    None,
    "batch",
    "-1 ",
    "?",
    "0 ",
    "x y",
    "a+b*c",
    "None",
    "π",
    "n" * 500,
):
    for _lists in (("input",), ("output",), ("value_info",), ("input", "output", "value_info")):
        for _first in (True, False):
            _name = f"sizes_{str(_value)[:8]}_{'_'.join(_lists)}_{'first' if _first else 'all'}"
            ODDITIES[_name] = set_sizes(*_lists, first=_first, value=_value)


@oddity
def no_shapes(proto: ModelProto) -> None:
    for info in (*proto.graph.output, *proto.graph.value_info):
        info.type.tensor_type.ClearField("shape")


@oddity
def no_input_shapes(proto: ModelProto) -> None:
    for info in proto.graph.input:
        info.type.tensor_type.ClearField("shape")


@oddity
def untyped_outputs(proto: ModelProto) -> None:
    for info in proto.graph.output:
        info.ClearField("type")


@oddity
def no_value_info(proto: ModelProto) -> None:
    del proto.graph.value_info[:]


@oddity
def wrong_value_info(proto: ModelProto) -> None:
    for info in proto.graph.value_info:
        info.type.tensor_type.shape.dim[0].dim_value = 77


@oddity
def wrong_rank(proto: ModelProto) -> None:
    proto.graph.value_info[0].type.tensor_type.shape.dim.add(dim_value=3)


@oddity
def wrong_output_shape(proto: ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = 77


@oddity
def value_info_of_nothing(proto: ModelProto) -> None:
    proto.graph.value_info.append(floats("nobody", 1, 2))


@oddity
def value_info_twice(proto: ModelProto) -> None:
    proto.graph.value_info.append(proto.graph.value_info[0])


@oddity
def huge_input(proto: ModelProto) -> None:
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_value = 2**40


def imports(*entries: tuple[str, int]) -> Oddity:
    def change(proto: ModelProto) -> None:
        del proto.opset_import[:]
        proto.opset_import.extend(helper.make_opsetid(*entry) for entry in entries)

    return change


ODDITIES["opset_twice"] = imports(("", 17), ("", 17))
ODDITIES["opset_twice_alias"] = imports(("", 17), ("ai.onnx", 17))
ODDITIES["opset_alias"] = imports(("ai.onnx", 17))
ODDITIES["opset_two_versions"] = imports(("", 13), ("", 17))
ODDITIES["opset_two_versions_down"] = imports(("", 17), ("", 13))
ODDITIES["opset_alias_versions"] = imports(("", 13), ("ai.onnx", 17))
ODDITIES["opset_unknown_domains"] = imports(("", 17), ("no.such", 3), ("", 17), ("no.such", 4))
ODDITIES["opset_ml"] = imports(("", 17), ("ai.onnx.ml", 3), ("ai.onnx.training", 1))
for _version in (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23, 24, 25, 26):
    ODDITIES[f"opset_{_version}"] = imports(("", _version))


def ir_version(version: int) -> Oddity:
    def change(proto: ModelProto) -> None:
        proto.ir_version = version
        if version < 4:  # initializers are inputs there
            given = {value.name for value in proto.graph.input}
            for tensor in proto.graph.initializer:
                if tensor.name not in given:
                    info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                    proto.graph.input.append(info)

    return change


for _version in range(3, 14):
    ODDITIES[f"ir_version_{_version}"] = ir_version(_version)


@oddity
def initializers_as_inputs(proto: ModelProto) -> None:
    for tensor in proto.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(info)


@oddity
def initializers_as_outputs(proto: ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    proto.graph.output.append(info)
