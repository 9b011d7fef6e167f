"""Proofs that kernels stay within their buffers.

`prover.py` walks a kernel's TensorIR, `values.py` knows what each integer in it may be,
`inequalities.py` what holds where, `assignments.py` finds integers by which a form is false, and
`verdicts.py` keeps what was proven.
"""

from .prover import Verdict, prove
from .verdicts import Accesses, Verdicts, constant_arguments

__all__ = ["Accesses", "Verdict", "Verdicts", "constant_arguments", "prove"]
