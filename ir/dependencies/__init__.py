"""What depends on what in a whole graph, found by running the operators' axes rules.

`analysis` infers the axes of all values, `batch` proves that samples don't mix, `zeros` tells
where a channel of zeros stays zero. `ir.axes` has the terms that rules are written in, `ir.ops`
the rules; neither knows of this folder.
"""
