"""The readable text form of models: printer and parser. docs/ir.md has the grammar."""

from __future__ import annotations

from .parser import parse_model
from .printer import print_graph, print_model, print_neighbourhood, print_node

__all__ = ["parse_model", "print_graph", "print_model", "print_neighbourhood", "print_node"]
