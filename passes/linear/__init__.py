"""Layers that are linear in their weights, and models run over samples from layer to layer.

What statistics, order and recovery of pruning have in common: `walk` runs a model a part at a
time, `opening` lets it take many samples at once, `find` tells which nodes are layers, `layers`
what multiplies their weights, `moments` accumulates second moments and solves for weights.
"""
