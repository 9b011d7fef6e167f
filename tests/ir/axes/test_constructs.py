"""What real architectures are made of leaves exactly these groups free, and prunes exactly.

Each test builds one construct between a layer that reads the input and one that writes
the output, and states the sizes of all free groups.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper

from .network import BATCH
from .plain import Plain, check


class TestConvolutions:
    def test_chain(self):
        net = Plain()
        check(net, net.conv(net.conv(net.conv(net.image(), 8, 3), 6), 4), [8, 6])

    @pytest.mark.parametrize("multiplier", [1, 2])
    def test_depthwise(self, multiplier):
        net = Plain()
        x = net.conv(net.conv(net.image(), 6), 6 * multiplier, 3, group=6)
        check(net, net.conv(x, 4), [6] if multiplier == 1 else [6, 2])

    def test_grouped_keeps_the_same_count_in_each_group(self):
        net = Plain()
        x = net.conv(net.conv(net.image(), 8), 12, 3, group=4)
        check(net, net.conv(x, 4), [2, 3])

    def test_transposed(self):
        net = Plain()
        n, c, h, w = 2, 6, 4, 4
        x = net.conv(net.image(), c)
        x = net.node("ConvTranspose", [x, net.weights(c, 8, 1, 1), net.weights(8)], (n, 8, h, w))
        x = net.node(
            "ConvTranspose", [x, net.weights(8, 3, 1, 1), net.weights(6)], (n, 6, h, w), group=2
        )
        check(net, net.conv(x, 4), [6, 4, 3])

    def test_batch_normalization_is_tied(self):
        net = Plain()
        x = net.conv(net.image(), 8, bias=False)
        vectors = [net.between(0.5, 1.5, 8) for _ in range(4)]
        x = net.node("BatchNormalization", [x, *vectors], net.shapes[x])
        check(net, net.conv(net.relu(x), 4), [8])

    def test_flatten_into_gemm(self):
        net = Plain()
        x = net.node("Flatten", [net.conv(net.image(), 5)], (2, 80))
        check(net, net.gemm(net.relu(net.gemm(x, 7)), 3), [5, 7])

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_hard_coded_reshape_into_gemm(self, dynamic):
        net = Plain(dynamic=dynamic)
        x = net.reshape(net.conv(net.image(), 5), [[0], [1, 2, 3]])
        check(net, net.gemm(x, 3), [5])

    def test_pooled_and_squeezed(self):
        net = Plain()
        x = net.conv(net.image(), 5)
        x = net.squeeze(net.node("GlobalAveragePool", [x], (2, 5, 1, 1)), [2, 3])
        check(net, net.gemm(x, 3), [5])


class TestStreams:
    def test_residual(self):
        net = Plain()
        x = net.conv(net.image(), 8)
        y = net.conv(net.relu(net.conv(x, 6)), 8)
        check(net, net.conv(net.add(x, y), 4), [8, 6])

    def test_shortcut_padded_with_channels(self):
        net = Plain()
        x = net.conv(net.image(), 4)
        short = net.pad(x, [0, 2, 0, 0, 0, 3, 0, 0])
        check(net, net.conv(net.add(short, net.conv(x, 9)), 4), [4, 2, 3])

    def test_concat_of_concats(self):
        net = Plain()
        x = net.image()
        inner = net.cat(net.conv(x, 4), net.conv(x, 6))
        outer = net.cat(inner, net.conv(net.conv(inner, 5), 3))
        check(net, [net.conv(outer, 4), net.conv(inner, 2)], [4, 6, 5, 3])

    def test_dense_block(self):
        net = Plain()
        x = net.conv(net.image(), 6)
        for _ in range(3):
            x = net.cat(x, net.conv(net.relu(x), 3))
        check(net, net.conv(x, 4), [6, 3, 3, 3])

    def test_c2f(self):
        net = Plain()
        parts = net.split(net.conv(net.image(), 8), 1, [4, 4])
        for _ in range(2):
            y = net.conv(net.conv(parts[-1], 3, 3), 4)
            parts.append(net.add(parts[-1], y))
        check(net, net.conv(net.cat(*parts), 4), [4, 4, 3, 3])

    def test_gated_linear_unit(self):
        net = Plain()
        a, b = net.split(net.conv(net.image(), 12), 1, [6, 6])
        gate = net.node("Sigmoid", [b], net.shapes[b])
        check(net, net.conv(net.mul(a, gate), 4), [6])

    def test_squeeze_and_excitation(self):
        net = Plain()
        x = net.conv(net.image(), 8)
        y = net.node("GlobalAveragePool", [x], (2, 8, 1, 1))
        y = net.conv(net.relu(net.conv(y, 3)), 8)
        check(net, net.conv(net.mul(x, net.node("Sigmoid", [y], (2, 8, 1, 1))), 4), [8, 3])

    def test_squeeze_and_excitation_by_reshapes(self):
        net = Plain(dynamic=True)
        x = net.conv(net.image(), 8)
        y = net.reduce("ReduceMean", x, [2, 3], keep=False)
        y = net.linear(net.relu(net.linear(y, 3)), 8)
        y = net.reshape(net.node("Sigmoid", [y], net.shapes[y]), [[0], [1], 1, 1])
        check(net, net.conv(net.mul(x, y), 4), [8, 3])

    def test_parts_that_do_not_meet_blocks(self):
        """A concatenation cut elsewhere than where it was joined."""
        net = Plain()
        x = net.image()
        joined = net.cat(net.conv(x, 5), net.conv(x, 7))
        a, b = net.split(joined, 1, [8, 4])
        check(net, [net.conv(a, 2), net.conv(b, 2)], [5, 3, 4])


class TestShuffles:
    def test_between_grouped_convolutions(self):
        """ShuffleNet v1 with 3 groups: cuts at thirds of 8 ranks leave three pairs."""
        net = Plain()
        x = net.conv(net.conv(net.image(), 9), 24, group=3)
        x = net.conv(net.shuffle(x, 3), 24, 3, group=24)
        check(net, net.conv(net.conv(x, 9, group=3), 4), [3, 2, 3])

    @pytest.mark.parametrize("groups", [2, 3, 4])
    def test_before_a_dense_convolution(self, groups):
        net = Plain()
        x = net.shuffle(net.conv(net.image(), 12), groups)
        check(net, net.conv(x, 4), [groups, 12 // groups])

    def test_of_two_halves(self):
        """ShuffleNet v2: two branches joined, shuffled, halved again."""
        net = Plain()
        x = net.conv(net.image(), 12)
        for _ in range(2):
            left, right = net.split(x, 1, [6, 6])
            right = net.conv(net.conv(right, 5), 6)
            x = net.shuffle(net.cat(left, right), 2)
        check(net, net.conv(x, 4), [3, 3, 5, 5, 6])

    def test_depth_to_space(self):
        for mode in ("DCR", "CRD"):
            net = Plain()
            x = net.conv(net.image(), 24)
            x = net.node("DepthToSpace", [x], (2, 6, 8, 8), blocksize=2, mode=mode)
            check(net, net.conv(x, 4), [6])

    def test_pixel_shuffle_by_reshapes(self):
        net = Plain()
        x = net.reshape(net.conv(net.image(), 24), [[0], 6, 2, 2, [2], [3]])
        x = net.reshape(net.transpose(x, 0, 1, 4, 2, 5, 3), [[0], [1], [2, 3], [4, 5]])
        check(net, net.conv(x, 4), [6])

    def test_space_to_depth(self):
        net = Plain()
        x = net.node("SpaceToDepth", [net.conv(net.image(), 6)], (2, 24, 2, 2), blocksize=2)
        check(net, net.conv(x, 4), [6])


class TestAttention:
    def apart(self, net, x, heads, size, groups=None):
        groups = heads if groups is None else groups
        return [net.heads(net.linear(x, n * size), n) for n in (heads, groups, groups)]

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_heads_and_head_sizes(self, dynamic):
        net = Plain(dynamic=dynamic)
        y = net.attention(*self.apart(net, net.sequence(), 4, 3))
        check(net, net.linear(y, 6), [4, 3, 3])

    def test_residual_stream_around_attention_and_mlp(self):
        net = Plain()
        x = net.linear(net.sequence(), 8)
        x = net.add(x, net.linear(net.attention(*self.apart(net, x, 2, 3)), 8))
        x = net.add(x, net.linear(net.relu(net.linear(x, 10)), 8))
        check(net, net.linear(x, 6), [8, 2, 3, 3, 10])

    @pytest.mark.parametrize("written", ["ones", "sizes"])
    def test_grouped_queries(self, written):
        net = Plain()
        q, k, v = self.apart(net, net.sequence(), 6, 4, groups=2)
        repeated = []
        for x in (k, v):
            n, g, s, d = net.shapes[x]
            target = [1, 1, 3, 1, 1] if written == "ones" else [n, g, 3, s, d]
            y = net.node("Expand", [net.unsqueeze(x, [2]), net.ints(*target)], (n, g, 3, s, d))
            repeated.append(net.reshape(y, [[0], [1, 2], [3], [4]]))
        check(net, net.linear(net.attention(q, *repeated), 6), [2, 3, 4, 4])

    def test_fused_projection_by_reshape(self):
        net = Plain()
        x = net.reshape(net.linear(net.sequence(), 24), [[0], [1], 3, 2, 4])
        x = net.transpose(x, 2, 0, 3, 1, 4)
        parts = [net.node("Gather", [x, net.small(np.int64(i))], (2, 2, 4, 4)) for i in range(3)]
        check(net, net.linear(net.attention(*parts), 6), [2, 4])

    def test_fused_projection_by_split(self):
        net = Plain()
        parts = net.split(net.linear(net.sequence(), 24), 2, [8, 8, 8])
        check(net, net.linear(net.attention(*(net.heads(p, 2) for p in parts)), 6), [2, 4, 4])

    def test_heads_merged_with_a_dynamic_batch(self):
        """As torch.nn.MultiheadAttention: [S, N, E] -> [N * heads, S, D]."""
        net = Plain(dynamic=True)
        x = net.transpose(net.sequence(), 1, 0, 2)
        parts = []
        for _ in range(3):
            y = net.reshape(net.linear(x, 12), [[0], [1], 3, 4])
            parts.append(net.transpose(net.reshape(y, [[0], [1, 2], [3]]), 1, 0, 2))
        q, k, v = parts
        z = net.matmul(net.softmax(net.matmul(q, net.transpose(k, 0, 2, 1))), v)
        z = net.reshape(net.transpose(z, 1, 0, 2), [[0], [1], [2]])
        target = net.ints(4, -1, 12)
        z = net.node("Reshape", [z, target], (4, BATCH, 12))
        check(net, net.linear(z, 6), [3, 4, 4])

    def test_operator(self):
        net = Plain(opset=23)
        x = net.sequence()
        q, k, v = (net.linear(x, n * 4) for n in (6, 2, 2))
        y = net.node("Attention", [q, k, v], (2, 4, 24), q_num_heads=6, kv_num_heads=2)
        check(net, net.linear(y, 6), [2, 3, 4, 4])

    def test_tied_embedding(self):
        net = Plain()
        ids = net.input((2, 4), np.array([[1, 0, 2, 6], [3, 3, 5, 4]], np.int64))
        table = net.weights(7, 8)
        x = net.node("Gather", [table, ids], (2, 4, 8))
        x = net.add(x, net.linear(net.relu(net.linear(x, 5)), 8))
        net.shapes[table] = (7, 8)
        check(net, net.matmul(x, net.transpose(table, 1, 0)), [8, 5])


class TestRecurrent:
    @pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
    @pytest.mark.parametrize("directions", [1, 2])
    def test_hidden_units(self, op, directions):
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op] * 6
        net = Plain()
        x = net.linear(net.input((4, 2, 3)), 5)
        for _ in range(2):
            i = net.shapes[x][2]
            parameters = [
                net.weights(directions, gates, i),
                net.weights(directions, gates, 6),
                net.weights(directions, 2 * gates),
            ]
            state = net.weights(directions, 2, 6)
            states = ["", state, net.weights(directions, 2, 6)] if op == "LSTM" else ["", state]
            (y,) = net.node(
                op,
                [x, *parameters, *states],
                outputs=[(4, directions, 2, 6)],
                hidden_size=6,
                direction="bidirectional" if directions == 2 else "forward",
            )
            x = net.reshape(net.transpose(y, 0, 2, 1, 3), [[0], [1], [2, 3]])
        check(net, net.linear(x, 3), [5, 6, 6])


class TestNormalizations:
    def test_whole_groups_of_group_normalization(self):
        net = Plain()
        x = net.conv(net.image(), 12)
        x = net.node(
            "GroupNormalization", [x, net.weights(12), net.weights(12)], net.shapes[x], num_groups=4
        )
        check(net, net.conv(x, 4), [4])

    def test_instance_normalization(self):
        net = Plain()
        x = net.conv(net.image(), 6)
        x = net.node("InstanceNormalization", [x, net.weights(6), net.weights(6)], net.shapes[x])
        check(net, net.conv(x, 4), [6])

    def test_hidden_layer_behind_layer_normalization(self):
        net = Plain()
        x = net.linear(net.sequence(), 8)
        y = net.node("LayerNormalization", [x, net.weights(8), net.weights(8)], net.shapes[x])
        check(net, net.linear(net.relu(net.linear(y, 5)), 6), [5])


class TestIndexing:
    def test_rows_written_into_a_sequence(self):
        net = Plain()
        x = net.linear(net.sequence(), 8)
        rows = net.node("Gather", [net.linear(x, 8), net.small(np.int64(1))], (2, 8), axis=1)
        indices = net.initializer(np.array([[0, 2], [1, 0]], np.int64))
        y = net.node("ScatterND", [x, indices, rows], net.shapes[x])
        check(net, net.linear(y, 3), [8])

    def test_rows_read_from_a_sequence(self):
        net = Plain()
        x = net.linear(net.sequence(), 8)
        y = net.node("GatherND", [x, net.ints(0, 2)], (8,))
        y = net.node("Gather", [net.unsqueeze(y, [0]), net.ints(0, 0)], (2, 8), axis=0)
        check(net, net.linear(y, 3), [8])

    def test_elements_along_another_axis(self):
        net = Plain()
        x = net.linear(net.sequence(), 8)
        order = net.random.permuted(np.tile(np.arange(4)[:, None], (2, 1, 8)), axis=1)
        y = net.node("GatherElements", [x, net.initializer(order)], net.shapes[x], axis=1)
        check(net, net.linear(y, 3), [8])

    def test_channels_reordered_by_constant_indices(self):
        net = Plain()
        x = net.conv(net.image(), 8)
        y = net.node("Gather", [x, net.ints(4, 5, 6, 7, 0, 1, 2, 3)], net.shapes[x], axis=1)
        check(net, net.conv(y, 4), [4, 4])

    def test_deformable_convolution(self):
        net = Plain(opset=22)
        x = net.conv(net.image(), 6)
        offset = net.conv(net.image(), 18)
        inputs = [x, net.weights(8, 6, 3, 3), offset, net.weights(8)]
        y = net.node("DeformConv", inputs, (2, 8, 4, 4), pads=[1, 1, 1, 1])
        check(net, net.conv(y, 4), [6, 8])

    def test_folded_columns(self):
        net = Plain()
        x = net.reshape(net.conv(net.image(size=3), 24), [[0], [1], [2, 3]])
        y = net.node("Col2Im", [x, net.ints(4, 4), net.ints(2, 2)], (2, 6, 4, 4))
        check(net, net.conv(y, 4), [6])


class TestConstants:
    def test_a_bias_shared_by_unrelated_layers(self):
        net = Plain()
        bias = net.weights(6)
        x = net.image()
        for _ in range(2):
            x = net.node("Conv", [x, net.weights(6, net.shapes[x][1], 1, 1), bias], (2, 6, 4, 4))
        check(net, net.conv(x, 4), [6, 6])

    def test_weights_through_identity_transpose_and_constant_of_shape(self):
        net = Plain()
        x = net.sequence()
        w = net.hidden("Transpose", [net.weights(8, 6)], perm=[1, 0])
        x = net.node("MatMul", [x, w], (2, 4, 8))
        one = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5])
        x = net.add(x, net.node("ConstantOfShape", [net.ints(8)], (8,), value=one))
        w = net.node("Identity", [net.weights(8, 5)], (8, 5))
        check(net, net.linear(net.matmul(x, w), 6), [8, 5])

    @pytest.mark.parametrize("per_axis", [False, True])
    def test_quantized_weights_and_activations(self, per_axis):
        net = Plain()

        def conv(x, out, kernel=1):
            n, c, h, w = net.shapes[x]
            scale = net.initializer(
                np.full(out, 0.05, np.float32) if per_axis else np.float32(0.05)
            )
            zero = net.initializer(np.zeros(out if per_axis else (), np.int8))
            levels = net.random.integers(-90, 90, (out, c, 1, 1)).astype(np.int8)
            parameters = [net.initializer(levels), scale, zero]
            weight = net.hidden("DequantizeLinear", parameters, axis=0)
            point = [net.small(np.float32(0.02)), net.small(np.uint8(128))]
            x = net.node("QuantizeLinear", [x, *point], net.shapes[x])
            x = net.node("DequantizeLinear", [x, *point], net.shapes[x])
            return net.node("Conv", [x, weight, net.weights(out)], (n, out, h, w))

        x = conv(net.image(), 8)
        check(net, conv(net.relu(conv(x, 6)), 4), [8, 6])


class TestDynamic:
    def test_sizes_of_a_skip_connection(self):
        """As U-Nets resize: to the height and width of another value, by a shape chain."""
        net = Plain()
        x = net.input((2, 3, 4, 4))
        net.inputs[0] = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 3, "H", "W"])
        skip = net.conv(x, 5, 3)
        y = net.node(
            "MaxPool", [net.conv(skip, 6)], (2, 6, 2, 2), kernel_shape=[2, 2], strides=[2, 2]
        )
        head = net.hidden("Slice", [net.hidden("Shape", [y]), *map(net.ints, (0, 2, 0))])
        tail = net.hidden("Slice", [net.hidden("Shape", [skip]), *map(net.ints, (2, 4, 0))])
        target = net.hidden("Concat", [head, tail], axis=0)
        y = net.node("Resize", [y, "", "", target], (2, 6, 4, 4), mode="nearest")
        out = net.conv(net.cat(skip, y), 4)
        net.dynamic = True
        check(net, out, [5, 6])

    def test_patches_of_a_dynamic_batch(self):
        """Vision transformers: flatten the image, move channels last."""
        net = Plain(dynamic=True)
        x = net.reshape(net.conv(net.image(), 8), [[0], [1], [2, 3]])
        x = net.transpose(x, 0, 2, 1)
        check(net, net.linear(net.linear(x, 5), 3), [8, 5])

    def test_flattened_image_whose_size_only_the_next_layer_knows(self):
        net = Plain()
        x = net.input((2, 3, 4, 4))
        net.inputs[0] = helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 3, "H", "W"])
        x = net.node("Flatten", [net.conv(x, 5, 3)], (2, 80))
        out = net.gemm(net.relu(net.gemm(x, 7)), 3)
        net.dynamic = True
        check(net, out, [5, 7])
