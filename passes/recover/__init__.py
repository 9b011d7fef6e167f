"""Recovery: what is left of a pruned model makes up for what went, without training.

Least squares on unlabelled samples. `walk` runs the original and the pruned model side by
side, a part at a time; `layers` says which nodes are linear in their weights, and in what;
`moments` accumulates and solves; `recover` goes through the graph once.
"""
