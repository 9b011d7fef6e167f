"""From plan to schedule: kernels chosen, built and called, one file for each kind."""
