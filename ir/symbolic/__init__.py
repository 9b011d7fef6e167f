"""What is known of sizes that only a run fixes: one engine for every part of the project.

`expressions` has sizes in a canonical form, with ranges; `facts` what a rule may ask of the
values that a node reads; `shapes`, `spatial`, `products` and `contents` one rule per operator for
the shapes of its results and for the elements of small integer tensors; `analysis` walks a model.
"""
