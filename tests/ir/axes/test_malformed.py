"""Broken models: pruning locks what it can't follow or says one clear line.

Random networks lose or swap inputs and get nonsense for attributes, operators, domains
and constants. What ONNX Runtime still runs is held to the masked original; for the rest
it is enough that nothing but a SecateurError comes out of the verifier or the pass.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.ir.errors import SecateurError
from secateur.ir.onnx_io import from_proto
from secateur.passes.manager import PassManager
from secateur.passes.prune import PruneChannels

from .graphs import network
from .oracle import assert_equals_masked, prune_at_random, run_all

CHUNK = 100

NONSENSE = [
    0, 1, -1, 2, 3, 7, -100, 2**40, 1.5, float("nan"), "", "constant", "edge", [], [0], [1, 1],
    [-1, 5], [0, 1, 2, 3], [2**40] * 4, [1.0, 2.0], ["a"],
]  # fmt: skip


def attribute(proto, rng):
    """Another value, or none, for an attribute of some node."""
    nodes = [n for n in proto.graph.node if n.attribute]
    if not nodes:
        return
    node = nodes[rng.integers(len(nodes))]
    index = rng.integers(len(node.attribute))
    name = node.attribute[index].name
    del node.attribute[index]
    if rng.random() < 0.8:
        node.attribute.append(
            helper.make_attribute(
                name,
                NONSENSE[rng.integers(len(NONSENSE))],
                attr_type=onnx.AttributeProto.INTS if rng.random() < 0.1 else None,
            )
        )


def operator(proto, rng):
    node = proto.graph.node[rng.integers(len(proto.graph.node))]
    others = [n.op_type for n in proto.graph.node] + ["Unknown", "Identity", "Gather", "Einsum"]
    node.op_type = others[rng.integers(len(others))]


def domain(proto, rng):
    node = proto.graph.node[rng.integers(len(proto.graph.node))]
    node.domain = ["com.microsoft", "custom", "ai.onnx", "ai.onnx.ml"][rng.integers(4)]
    if rng.random() < 0.5:
        proto.opset_import.append(helper.make_opsetid(node.domain, 1))


def inputs(proto, rng):
    """An input less, one more, one missing or another one."""
    node = proto.graph.node[rng.integers(len(proto.graph.node))]
    names = list(node.input)
    known = [n for other in proto.graph.node for n in (*other.input, *other.output)]
    kind = rng.integers(4)
    if names and kind == 0:
        del names[rng.integers(len(names))]
    elif kind == 1:
        names.append(known[rng.integers(len(known))])
    elif names:
        names[rng.integers(len(names))] = "" if kind == 2 else known[rng.integers(len(known))]
    del node.input[:]
    node.input.extend(names)


def constants(proto, rng):
    """An initializer of another shape, type or content."""
    if not proto.graph.initializer:
        return
    tensor = proto.graph.initializer[rng.integers(len(proto.graph.initializer))]
    array = numpy_helper.to_array(tensor)
    kind = rng.integers(4)
    if kind == 0 and array.size:
        array = array.reshape(-1)[: rng.integers(array.size)]
    elif kind == 1:
        array = array[..., None]
    elif kind == 2:
        array = array.astype(rng.choice([np.int32, np.int64, np.float64, np.int8]))
    else:
        array = rng.integers(-9, 9, array.shape).astype(array.dtype)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def shapes(proto, rng):
    """Another declared shape of an input or output."""
    values = [*proto.graph.input, *proto.graph.output]
    value = values[rng.integers(len(values))]
    sizes = [["N", None, 0, 1, 2, 5, 2**16][i] for i in rng.integers(0, 7, rng.integers(0, 6))]
    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, sizes))


MUTATIONS = [attribute, attribute, operator, domain, inputs, constants, shapes]


def outcome(seed):
    """What became of one broken network."""
    rng = np.random.default_rng(seed)
    proto, feeds = network(seed, steps=6)
    for _ in range(rng.integers(1, 3)):
        try:
            MUTATIONS[rng.integers(len(MUTATIONS))](proto, rng)
        except (TypeError, ValueError):  # onnx itself can't write this
            continue
    try:
        run_all(from_proto(proto), feeds)
        runs = True
    except Exception:  # ONNX Runtime's own errors are many
        runs = False
    try:
        PassManager([PruneChannels(ratio=0.5)]).run(from_proto(proto))
        result = prune_at_random(from_proto(proto), rng)
    except SecateurError:
        return "refused"
    if runs:
        assert_equals_masked(result, feeds)
    return "exact" if runs else "pruned"


def check_chunk(chunk):
    outcomes, failures = [], []
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        try:
            outcomes.append(outcome(seed))
        except Exception as error:  # reported with the seed below
            failures.append(f"outcome({seed}): {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)
    assert {"refused", "exact", "pruned"} == set(outcomes)


@pytest.mark.parametrize("chunk", range(3))
def test_broken_networks_are_pruned_exactly_or_refused(chunk):
    check_chunk(chunk)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(3, 60))
def test_many_broken_networks_are_pruned_exactly_or_refused(chunk):
    check_chunk(chunk)
