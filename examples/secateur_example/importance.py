"""A criterion that orders channels by their largest weight."""

import numpy as np

from secateur.passes.prune.importance import Criterion

LARGEST = Criterion("an example", of_weights=lambda weights: np.abs(weights).max(axis=1))
