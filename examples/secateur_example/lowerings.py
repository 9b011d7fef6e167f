"""Plain loops of `org.example::Softcap`."""

from secateur.backends.tvm.lowering.loops import mathematics as m
from secateur.backends.tvm.lowering.loops.base import rule
from secateur.backends.tvm.lowering.loops.elementwise import elementwise


@rule("Softcap", domain="org.example")
def softcap(call):
    cap = float(call.node.get("cap", 30.0))
    elementwise(call, lambda x: m.lit(cap, x) * m.tanh(x / m.lit(cap, x)), [0])
