"""The process in which ONNX Runtime tries what may end it: imports nothing but what that needs.

Reads requests from standard input, and answers each on what was standard output; both are
pickles. See `ir/trials.py`, which starts it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from typing import Any

import onnxruntime

Interface = tuple[dict[str, str], list[str]]
"""Types of the inputs by name, and the outputs' names."""


class LocalSession:
    """A serialized model, or the file of that name, in ONNX Runtime in this process.

    Where its optimizer ends in an error, as where it folds integers that several nodes read or
    that are outputs, an `exact` session runs the model as it is written, which computes the same.
    """

    def __init__(
        self, source: bytes | str, *, optimize: bool, threads: int, exact: bool = True
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Its threads look for work for some 50 ms after a run, and keep others off the CPUs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if exact:
            # On CPUs without VNNI its products of unsigned and signed bytes saturate, but for this.
            options.add_session_config_entry("session.x64quantprecision", "1")
            # Beside weights of 4 and 8 bits it rounds float activations to 8 bits, but for this.
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if not optimize:
            options.graph_optimization_level = _AS_WRITTEN
        try:
            session = _loaded(source, options)
        except Exception as error:  # ONNX Runtime raises a family of unrelated types
            if not (exact and optimize):
                raise
            options.graph_optimization_level = _AS_WRITTEN
            try:
                session = _loaded(source, options)
            except Exception:
                raise error from None
        self.run = session.run
        self.interface: Interface = (
            {value.name: value.type for value in session.get_inputs()},
            [value.name for value in session.get_outputs()],
        )


_AS_WRITTEN = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def _loaded(source: bytes | str, options: Any) -> Any:
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks is interrupted, and closes the pipe
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):  # native code says there how it ends
        os.dup2(nothing, stream)
    sessions: dict[int, LocalSession] = {}
    while True:
        try:
            number, request, gone = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        for old in gone:
            sessions.pop(old, None)
        try:
            found = _answer(sessions, number, request)
            answer = pickle.dumps((None, found, time.process_time()), protocol=5)
        except Exception as error:  # ONNX Runtime raises a family of unrelated types
            answer = pickle.dumps((str(error), None, time.process_time()))
        answers.write(answer)
        answers.flush()


def _answer(sessions: dict[int, LocalSession], number: int, request: Any) -> Any:
    if isinstance(request, dict):
        sessions[number] = LocalSession(**request)
        return sessions[number].interface
    return sessions[number].run(*request)
