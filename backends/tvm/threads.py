"""How many threads kernels may use."""

from __future__ import annotations

import os

from ...ir.errors import SecateurError


def available_cpus() -> list[int]:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def check_threads(threads: int) -> int:
    """`threads`, or as many as there are CPUs. Raises SecateurError below 1."""
    if threads < 1:
        raise SecateurError(f"threads: {threads} is not a positive number")
    return min(threads, len(available_cpus()))
