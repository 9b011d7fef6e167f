"""ONNX Runtime as the tests' reference: one thread, and exact integer products where it can."""

from __future__ import annotations

import onnx
import onnxruntime


def session_of(
    model: onnx.ModelProto | bytes, *, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """A session that runs the model.

    On x86 CPUs without VNNI its products of unsigned and signed bytes saturate at 16 bits. A
    setting makes them exact, but only where it optimizes, and then it has no kernel for some
    operators (QGemm, QLinearMatMul); models with these run without the setting. Another one
    keeps it from rounding floats that weights of 4 and 8 bits multiply. Without
    optimizations a test has to keep one operand within [-64, 64].
    """
    serialized = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # its warnings are about models that nobody wrote
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(serialized, options, providers=PROVIDERS)
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        return onnxruntime.InferenceSession(serialized, options, providers=PROVIDERS)
    except Exception as error:  # ONNX Runtime's errors have no common type
        if "NOT_IMPLEMENTED" not in str(error):
            raise
    options.add_session_config_entry("session.x64quantprecision", "0")
    return onnxruntime.InferenceSession(serialized, options, providers=PROVIDERS)


PROVIDERS = ["CPUExecutionProvider"]
