"""One tiny model of each tool that people export, optimize, convert or quantize with.

    python -m venv exporters
    exporters/bin/pip install onnx onnxruntime onnxconverter-common torch scikit-learn skl2onnx \
        onnxmltools lightgbm xgboost
    exporters/bin/python tests/exported/make.py tests/exported/models

tf2onnx with tensorflow-cpu, and paddle2onnx with paddlepaddle, each in an environment of its own,
make theirs with the same command; what an environment lacks is said. keras2onnx runs beside no
TensorFlow that there still is.

The tools are no dependency: their files are kept, and this script says how they came about.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = Any
MOST_BYTES = 50_000


class Graph:
    """Builds a model; weights are drawn."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        scale = np.sqrt(np.prod(shape[1:])) if len(shape) > 2 else np.sqrt(shape[0])
        return self.constant((self.random.standard_normal(shape) / scale).astype(np.float32))

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], f"n{name}", **attributes))
        return name

    def model(self, shape: tuple[Any, ...], output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(made)


def network() -> onnx.ModelProto:
    """Convolutions: with ReLU, depthwise, joined, pooled, then a classifier."""
    g = Graph()
    a = g("Relu", g("Conv", "x", g.weight(8, 3, 3, 3), g.weight(8), pads=[1] * 4, strides=[2, 2]))
    b = g("Conv", a, g.weight(8, 1, 3, 3), g.weight(8), pads=[1] * 4, group=8)
    b = g("Conv", g("Clip", b, g.constant(np.float32(0)), g.constant(np.float32(6))),
          g.weight(8, 8, 1, 1), g.weight(8))  # fmt: skip
    c = g("Relu", g("Add", a, b))
    d = g("Concat", g("MaxPool", c, kernel_shape=[2, 2], strides=[2, 2]),
          g("AveragePool", c, kernel_shape=[2, 2], strides=[2, 2]), axis=1)  # fmt: skip
    e = g("Mul", d, g("Sigmoid", g("Conv", d, g.weight(16, 16, 1, 1), g.weight(16))))
    pooled = g("Flatten", g("GlobalAveragePool", g("LeakyRelu", e, alpha=0.1)))
    y = g("Gemm", pooled, g.weight(16, 10), g.weight(10))
    return g.model((1, 3, 16, 16), g("Softmax", y))


def transformer() -> onnx.ModelProto:
    """Two layers of attention, written as exporters of PyTorch write it."""
    g = Graph()
    steps, heads, size = 8, 2, 8
    width = heads * size
    x = "x"

    def normalized(value: str) -> str:
        mean = g("ReduceMean", value, axes=[-1])
        centered = g("Sub", value, mean)
        variance = g("ReduceMean", g("Pow", centered, g.constant(np.float32(2))), axes=[-1])
        deviation = g("Sqrt", g("Add", variance, g.constant(np.float32(1e-5))))
        scaled = g("Mul", g("Div", centered, deviation), g.constant(np.ones(width, np.float32)))
        return g("Add", scaled, g.weight(width))

    def dense(value: str, inner: int, outer: int) -> str:
        return g("Add", g("MatMul", value, g.weight(inner, outer)), g.weight(outer))

    def split(value: str, *order: int) -> str:
        parts = g("Reshape", value, g.constant(np.int64([0, 0, heads, size])))
        return g("Transpose", parts, perm=list(order))

    for _ in range(2):
        q, k, v = (dense(x, width, width) for _ in range(3))
        scores = g("MatMul", split(q, 0, 2, 1, 3), split(k, 0, 2, 3, 1))
        scores = g("Softmax", g("Div", scores, g.constant(np.float32(np.sqrt(size)))), axis=-1)
        mixed = g("Transpose", g("MatMul", scores, split(v, 0, 2, 1, 3)), perm=[0, 2, 1, 3])
        joined = g("Reshape", mixed, g.constant(np.int64([0, 0, width])))
        x = normalized(g("Add", x, dense(joined, width, width)))
        inner = dense(x, width, 2 * width)
        erf = g("Erf", g("Div", inner, g.constant(np.float32(np.sqrt(2)))))
        inner = g("Mul", inner, g("Add", erf, g.constant(np.float32(1))))
        inner = g("Mul", inner, g.constant(np.float32(0.5)))
        x = normalized(g("Add", x, dense(inner, 2 * width, width)))
    return g.model((1, steps, width), dense(x, width, 4))


def recurrent() -> onnx.ModelProto:
    g = Graph()
    hidden, features = 8, 6
    g.nodes.append(
        helper.make_node(
            "LSTM",
            ["x", g.weight(2, 4 * hidden, features), g.weight(2, 4 * hidden, hidden),
             g.constant(g.random.standard_normal((2, 8 * hidden)).astype(np.float32))],
            ["h"],
            "lstm",
            hidden_size=hidden,
            direction="bidirectional",
        )
    )  # fmt: skip
    flat = g("Reshape", "h", g.constant(np.int64([7, 2 * hidden])))
    return g.model((7, 1, features), g("MatMul", flat, g.weight(2 * hidden, 4)))


# --- tools ---------------------------------------------------------------------------------

Made = dict[str, onnx.ModelProto]


def _optimized(model: onnx.ModelProto, level: Any) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        return onnx.load(options.optimized_model_filepath)


def optimizer_levels() -> Made:
    """ONNX Runtime's own optimizer: what a session saves."""
    levels = onnxruntime.GraphOptimizationLevel
    names = {"basic": levels.ORT_ENABLE_BASIC, "extended": levels.ORT_ENABLE_EXTENDED,
             "layout": levels.ORT_ENABLE_ALL}  # fmt: skip
    nets = {"network": network(), "transformer": transformer()}
    nets["quantized"] = _static(network(), "QDQ")
    return {f"ort_{name}_{net}": _optimized(model, level)
            for name, level in names.items() for net, model in nets.items()
            if (name, net) != ("layout", "network")}  # fmt: skip


def transformer_optimizer() -> Made:
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(transformer(), f"{folder}/t.onnx")
        options = FusionOptions("bert")
        made = optimizer.optimize_model(
            f"{folder}/t.onnx", "bert", num_heads=2, hidden_size=16, optimization_options=options
        )
        return {"transformer_optimizer": made.model}


def _dynamic(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/f.onnx")
        quantize_dynamic(f"{folder}/f.onnx", f"{folder}/q.onnx", **options)
        return onnx.load(f"{folder}/q.onnx")


def dynamic_quantizer() -> Made:
    from onnxruntime.quantization import QuantType

    unsigned = {"weight_type": QuantType.QUInt8}
    return {
        "dynamic_network": _dynamic(network(), **unsigned),
        "dynamic_transformer": _dynamic(transformer()),
        "dynamic_transformer_unsigned": _dynamic(transformer(), **unsigned),
        "dynamic_transformer_channels": _dynamic(transformer(), per_channel=True),
        "dynamic_recurrent": _dynamic(recurrent()),
    }


def _static(model: onnx.ModelProto, form: str, **options: Any) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    random = np.random.default_rng(1)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = 4

        def get_next(self) -> Any:
            self.left -= 1
            x = random.standard_normal(shape).astype(np.float32)
            return {"x": x} if self.left >= 0 else None

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/f.onnx")
        quantize_static(f"{folder}/f.onnx", f"{folder}/q.onnx", Reader(),
                        quant_format=QuantFormat[form], **options)  # fmt: skip
        return onnx.load(f"{folder}/q.onnx")


def static_quantizer() -> Made:
    return {
        f"static_{form.lower()}_{name}{'_channels' if channels else ''}": _static(
            net(), form, per_channel=channels
        )
        for form in ("QDQ", "QOperator")
        for name, net in (("network", network), ("transformer", transformer))
        for channels in (False, True)
    }


def float16_converter() -> Made:
    from onnxconverter_common import float16

    return {
        f"float16_{name}{'_io' if io else ''}": float16.convert_float_to_float16(
            net(), keep_io_types=io
        )
        for name, net in (("network", network), ("transformer", transformer))
        for io in (False, True)
    }


def _data() -> tuple[Array, Array, Array]:
    random = np.random.default_rng(2)
    rows = random.standard_normal((80, 4)).astype(np.float32)
    target = (rows @ np.float32([1, -2, 0.5, 0]) + rows[:, 0] * rows[:, 1]).astype(np.float32)
    return rows, np.digitize(target, [-1, 1]), target


def sklearn_models() -> Made:
    from skl2onnx import to_onnx
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        GradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Binarizer, MinMaxScaler, Normalizer, StandardScaler
    from sklearn.svm import SVR
    from sklearn.tree import DecisionTreeClassifier

    rows, classes, target = _data()
    two = (classes > 0).astype(np.int64)
    small: dict[str, Any] = {"n_estimators": 5, "max_depth": 3, "random_state": 0}
    made = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, classes),
        "logistic_two": make_pipeline(MinMaxScaler(), LogisticRegression()).fit(rows, two),
        "linear": make_pipeline(Normalizer(), LinearRegression()).fit(rows, target),
        "forest": RandomForestClassifier(**small).fit(rows, classes),
        "forest_two": RandomForestClassifier(**small).fit(rows, two),
        "forest_regressor": RandomForestRegressor(**small).fit(rows, target),
        "boosting": GradientBoostingClassifier(**small).fit(rows, classes),
        "boosting_two": GradientBoostingClassifier(**small).fit(rows, two),
        "boosting_regressor": GradientBoostingRegressor(**small).fit(rows, target),
        "tree": DecisionTreeClassifier(max_depth=3).fit(rows, classes),
        "imputed": make_pipeline(SimpleImputer(), PCA(2), LinearRegression()).fit(rows, target),
        "binarized": make_pipeline(Binarizer(), LinearRegression()).fit(rows, target),
        "svr": SVR().fit(rows, target),
        "bayes": GaussianNB().fit(rows, classes),
        "clusters": KMeans(3, n_init=1, random_state=0).fit(rows),
        "perceptron": MLPClassifier((8,), max_iter=50, random_state=0).fit(rows, classes),
    }
    return {f"sklearn_{name}": to_onnx(fitted, rows[:1], target_opset=17)
            for name, fitted in made.items()}  # fmt: skip


def boosting_libraries() -> Made:
    import lightgbm
    import onnxmltools
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    rows, classes, target = _data()
    two = (classes > 0).astype(np.int64)
    kinds = [("FloatTensorType", FloatTensorType([None, 4]))]
    small: dict[str, Any] = {"n_estimators": 5, "max_depth": 3}
    made: Made = {}
    for name, labels in (("three", classes), ("two", two)):
        fitted = lightgbm.LGBMClassifier(**small, verbose=-1).fit(rows, labels)
        made[f"lightgbm_{name}"] = onnxmltools.convert_lightgbm(fitted, initial_types=kinds)
        fitted = xgboost.XGBClassifier(**small).fit(rows, labels)
        made[f"xgboost_{name}"] = onnxmltools.convert_xgboost(fitted, initial_types=kinds)
    fitted = lightgbm.LGBMRegressor(**small, verbose=-1).fit(rows, target)
    made["lightgbm_regressor"] = onnxmltools.convert_lightgbm(fitted, initial_types=kinds)
    fitted = xgboost.XGBRegressor(**small).fit(rows, target)
    made["xgboost_regressor"] = onnxmltools.convert_xgboost(fitted, initial_types=kinds)
    return made


def tensorflow_converter() -> Made:
    """Keras models by tf2onnx: images with channels last, and a recurrent one."""
    import tensorflow
    import tf2onnx

    tensorflow.keras.utils.set_random_seed(0)
    layers, stacked = tensorflow.keras.layers, tensorflow.keras.Sequential
    images = stacked(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.Activation("swish"),
            layers.UpSampling2D(2, interpolation="bilinear"),
            layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu"),
            layers.MaxPooling2D(3, 2, padding="same"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    sequence = stacked(
        [
            layers.Input((7, 6)),
            layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
            layers.GRU(8),
            layers.LayerNormalization(),
            layers.Dense(3),
        ]
    )
    made: Made = {}
    for name, model in (("images", images), ("sequence", sequence)):
        kind = tensorflow.TensorSpec(model.inputs[0].shape, tensorflow.float32, name="x")
        called = tensorflow.function(model.call, input_signature=[kind])
        made[f"tf2onnx_{name}"] = tf2onnx.convert.from_function(called, [kind], opset=17)[0]
    return made


def paddle_converter() -> Made:
    """Paddle models by paddle2onnx."""
    import paddle
    from paddle import nn

    paddle.seed(0)
    images = nn.Sequential(
        nn.Conv2D(3, 8, 3, 2, 1, bias_attr=False),
        nn.BatchNorm2D(8),
        nn.Hardswish(),
        nn.Conv2D(8, 8, 3, 1, 1, groups=8),
        nn.Hardsigmoid(),
        nn.Conv2DTranspose(8, 6, 2, 2),
        nn.ReLU(),
        nn.Upsample(size=[32, 32], mode="bilinear"),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.Softmax(),
    )
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    recurrent = nn.LSTM(8, 8, direction="bidirect")
    kinds = (("images", images, [1, 3, 16, 16]), ("encoder", encoder, [1, 7, 8]))
    made: Made = {}
    for name, model, shape in (*kinds, ("recurrent", recurrent, [1, 7, 8])):
        model.eval()
        with tempfile.TemporaryDirectory() as folder:
            kind = paddle.static.InputSpec(shape, "float32", "x")
            paddle.onnx.export(model, f"{folder}/m", [kind], opset_version=17)
            made[f"paddle_{name}"] = onnx.load(f"{folder}/m.onnx")
    return made


TOOLS: tuple[Callable[[], Made], ...] = (
    optimizer_levels,
    transformer_optimizer,
    dynamic_quantizer,
    static_quantizer,
    float16_converter,
    sklearn_models,
    boosting_libraries,
    tensorflow_converter,
    paddle_converter,
)


def main(folder: Path) -> None:
    """Write every tool's models; what a tool can't make is said."""
    folder.mkdir(parents=True, exist_ok=True)
    for tool in TOOLS:
        try:
            made = tool()
        except Exception as error:  # whatever a tool raises
            print(f"{tool.__name__}: {type(error).__name__}: {error}"[:300])
            continue
        for name, model in made.items():
            data = model.SerializeToString()
            if len(data) > MOST_BYTES:
                print(f"{name}: {len(data)} bytes are too many")
                continue
            (folder / f"{name}.onnx").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
