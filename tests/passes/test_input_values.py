"""Texts as the values of inputs: of which type and shape they are, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.ir.errors import SecateurError
from secateur.ir.text import parse_model
from secateur.passes.simplify.input_values import find_input, input_value


def read(declared: str, text: str):
    head = 'model <ir_version = 8, opset = ["" = 17]>\n'
    model = parse_model(f"{head}graph g (%x: {declared}) -> (%x: {declared}) {{\n}}")
    return input_value(find_input(model, "x"), text)


@pytest.mark.parametrize(
    ("declared", "text", "want"),
    [
        ("float[]", "2.5", np.float32(2.5)),
        ("float[*]", "2.5", np.float32(2.5)),
        ("float[*]", "1,2", np.float32([1, 2])),
        ("float[3]", "1,-2,inf", np.float32([1, -2, np.inf])),
        ("float[1]", "7", np.float32([7])),
        ("float[2, 3]", "1,2,3,4,5,6", np.float32([[1, 2, 3], [4, 5, 6]])),
        ("int64[N]", "3,4", np.int64([3, 4])),
        ("int64[N, 2]", "1,2,3,4,5,6", np.int64([[1, 2], [3, 4], [5, 6]])),
        ("int64[2, N]", "1,2,3,4,5,6", np.int64([[1, 2, 3], [4, 5, 6]])),
        ("int64[N]", "", np.zeros(0, np.int64)),
        ("int64[0]", "", np.zeros(0, np.int64)),
        ("uint8[2]", "0,255", np.uint8([0, 255])),
        ("bool[4]", "true, FALSE,1,0", np.array([True, False, True, False])),
        ("string[2]", "a,b", np.array(["a", "b"], object)),
        ("float16[1]", "0.5", np.float16([0.5])),
    ],
)
def test_values_of_texts(declared: str, text: str, want) -> None:
    found = read(declared, text)
    assert (found.dtype, found.shape) == (want.dtype, want.shape)
    assert np.array_equal(found, want)


@pytest.mark.parametrize(
    ("declared", "text", "message"),
    [
        ("float[3]", "1,2", r"has the shape \[3\], 2 values are given"),
        ("float[]", "1,2", r"has the shape \[\], 2 values are given"),
        ("int64[?, 2]", "1,2,3", r"has the shape \[\?, 2\], 3 values are given"),
        ("int64[N, 2]", "1,2,3", r"has the shape \[N, 2\], 3 values are given"),
        ("int64[N, 0]", "", r"has the shape \[N, 0\], 0 values are given"),
        ("int64[N, M]", "1,2,3,4", r"has the shape \[N, M\], 4 values are given"),
        ("int64[1]", "1.5", "is of type int64, which has no value '1.5'"),
        ("uint8[1]", "-1", "is of type uint8, which has no value '-1'"),
        ("uint8[1]", "256", "is of type uint8, which has no value '256'"),
        ("float[1]", "one", "is of type float, which has no value 'one'"),
        ("bool[1]", "2", "is of type bool, which has no value '2'"),
        ("seq(float[1])", "1", "is no tensor, and can't be fixed"),
        ("undefined[1]", "1", "is no tensor, and can't be fixed"),
    ],
)
def test_texts_that_are_no_values(declared: str, text: str, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        read(declared, text)


@pytest.mark.parametrize(
    ("inputs", "known"), [("%b: float[1], %a: float[1]", "a, b"), ("", "none")]
)
def test_inputs_that_are_not_there(inputs: str, known: str) -> None:
    head = 'model <ir_version = 8, opset = ["" = 17]>\n'
    model = parse_model(f"{head}graph g ({inputs}) -> () {{\n}}")
    with pytest.raises(SecateurError, match=f"no input 'x'; its inputs are {known}$"):
        find_input(model, "x")
