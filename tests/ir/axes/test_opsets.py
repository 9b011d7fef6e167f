"""One network in every opset: operators by attributes and by inputs prune alike."""

import onnx
import pytest
from onnx import helper

from .plain import Plain, check

OPSETS = range(7, onnx.defs.onnx_opset_version() + 1)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("opset", OPSETS)
def test_operators_that_changed_form(opset, dynamic):
    net = Plain(opset=opset, dynamic=dynamic)
    x = net.conv(net.image(), 8, bias=False)
    vectors = [net.between(0.5, 1.5, 8) for _ in range(4)]
    x = net.node("BatchNormalization", [x, *vectors], net.shapes[x])
    x = net.dropout(net.clip(x, -2.0, 2.0))
    a, b = net.split(x, 1, [4, 4])
    c, d, e = net.split(x, 1, [2, 3, 3])
    x = net.cat(net.add(a, b), net.pad(d, [0, 1, 0, 0, 0, 2, 0, 0], value=0.5), c, e)
    x = net.resize(net.conv(x, 6, 3), 2, "nearest")
    x = net.cat(x, net.slice(x, 1, 2, 2**31 - 1))
    x = net.reduce("ReduceMean", net.conv(x, 5), [2, 3], keep=True)
    y = net.squeeze(x, [2, 3])
    y = net.unsqueeze(net.gemm(y, 7), [2])
    y = net.reduce("ReduceSum", y, [2], keep=False)
    check(net, net.gemm(y, 3), [2, 2, 2, 4, 5, 7])


@pytest.mark.parametrize("opset", OPSETS)
def test_softmax_covers_the_axes_that_its_opset_says(opset):
    """Before opset 13 all axes from `axis` on are one."""
    net = Plain(opset=opset)
    x = net.linear(net.sequence(), 8)
    x = net.node("Softmax", [x], net.shapes[x], axis=1)
    check(net, net.linear(x, 6), [8] if opset >= 13 else [])


@pytest.mark.parametrize("opset", OPSETS)
def test_largest_elements(opset):
    net = Plain(opset=opset)
    x = net.conv(net.image(), 6)
    names = [net.name(), net.name()]
    inputs = [x] if opset < 10 else [x, net.ints(2)]
    net.nodes.append(
        helper.make_node("TopK", inputs, names, axis=3, **({"k": 2} if opset < 10 else {}))
    )
    net.shapes[names[0]] = (2, 6, 4, 2)
    check(net, net.conv(names[0], 4), [6])
