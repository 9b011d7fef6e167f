"""TensorIR kernels: functions that build a `PrimFunc` for given sizes and a target."""
