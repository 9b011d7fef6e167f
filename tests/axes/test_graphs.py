"""Random networks, pruned at random, compute what their masked originals do."""
