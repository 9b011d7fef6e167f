"""Compilation with Apache TVM: IR -> fused operations -> TensorIR kernels -> shared object.

`compile.compile_model` builds an artifact for a `targets.Target`; `artifact.runtime.Runtime`
loads and runs it. Nothing here is imported unless something compiles or runs.
"""
