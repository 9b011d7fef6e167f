"""How many threads kernels use: TVM's thread pool, configured for each run.

TVM keeps one pool per calling thread. The pool has as many workers as its first
configuration allows, and never more; with one thread kernels run without the pool. Left
alone, TVM counts half of an x86 machine's CPUs and binds the calling thread to one of
them; here all CPUs that the process may use count, and nothing is bound unless the
environment variable TVM_BIND_THREADS asks for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...ir.errors import SecateurError

_SHARE_CPUS = -3
"""TVM's affinity mode in which every worker may run on all CPUs given."""

_BIND = "TVM_BIND_THREADS"

_SPIN, _SPINS = "TVM_THREAD_POOL_SPIN_COUNT", "10000"
"""How often a worker looks for work before it sleeps: for some 5 ms, which bridges the gaps
between kernels; TVM's own number keeps a CPU busy for 160 ms after every run."""


class _Pool(threading.local):
    """The calling thread's pool: the process that made it and the threads in use."""

    process: int | None = None
    threads: int = 0


_pool = _Pool()


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


def use_threads(threads: int) -> None:
    """Let kernels called from this thread use `threads` threads."""
    process = os.getpid()
    if _pool.threads == threads and _pool.process == process:
        return
    if threads > 1 and _pool.process not in (None, process):
        # The workers did not survive the fork, and a launch would wait for them forever.
        threads = 1
    import tvm

    configure: Any = tvm.get_global_func("runtime.config_threadpool")
    cpus = available_cpus()
    os.environ.setdefault(_SPIN, _SPINS)  # for good: workers read it when they start
    with _unbound():
        if _pool.process is None:
            configure(_SHARE_CPUS, len(cpus), [str(c) for c in cpus])
        configure(_SHARE_CPUS, threads, [str(c) for c in cpus[:threads]])
    if _pool.process is None:
        _pool.process = process
    _pool.threads = threads


@contextmanager
def _unbound() -> Iterator[None]:
    given = os.environ.get(_BIND)
    os.environ[_BIND] = given if given is not None else "0"
    try:
        yield
    finally:
        if given is None:
            del os.environ[_BIND]
