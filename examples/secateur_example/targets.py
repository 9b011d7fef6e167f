"""A board with a known processor, under a name of its own."""

import dataclasses

from secateur.backends.tvm.targets import parse_target

BOARD = dataclasses.replace(
    parse_target("aarch64-cortex-a72"), name="example-board", description="the board on our desk"
)
