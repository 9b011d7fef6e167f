"""How a C library is made, and by what name. Imports no TVM."""

from __future__ import annotations

import dataclasses
import keyword
import re
import sys
from pathlib import Path

from ....ir.display import printable
from ....ir.errors import SecateurError
from ..targets import Target

THREADS = ("none", "caller", "own")
"""Who shares parallel loops: nobody, the caller's pool, or also threads of the library."""

_SYSTEM = frozenset(
    [
        *("c", "dl", "gcc", "m", "pthread", "rt", "util", "assert", "complex", "ctype", "errno"),
        *("fenv", "fcntl", "inttypes", "iso646", "limits", "locale", "math", "poll", "sched"),
        *("setjmp", "stdalign", "stdarg", "stdatomic", "stdbool", "stddef", "stdint", "stdio"),
        *("stdlib", "stdnoreturn", "string", "strings", "tgmath", "threads", "time", "uchar"),
        *("unistd", "wchar", "wctype", "dlfcn", "memory", "version", "new", "random", "vector"),
    ]
)
"""Libraries and headers that a program looks for in the folder of a library, too."""

_WORDS = """
auto break case char const continue default do double else enum extern float for goto if inline
int long register restrict return short signed sizeof static struct switch typedef union
unsigned void volatile while
alignas alignof and and_eq asm bitand bitor bool catch char16_t char32_t char8_t class co_await
co_return co_yield compl concept const_cast consteval constexpr constinit decltype delete
dynamic_cast explicit export false friend mutable namespace new noexcept not not_eq nullptr
operator or or_eq private protected public reinterpret_cast requires static_assert static_cast
template this thread_local throw true try typeid typename using virtual wchar_t xor xor_eq
linux unix i386 EOF NULL std numpy main secateur
"""

_RESERVED = frozenset(_WORDS.split())
"""Words of C, C++ and names that programs have already."""


@dataclasses.dataclass(frozen=True)
class LibraryOptions:
    """How a C library is made: its functions begin with `name`; `threads` is one of `THREADS`;
    `labels` are the names of classes; weights may lie in a file of their own."""

    name: str
    threads: str = "caller"
    labels: tuple[str, ...] = ()
    weights_apart: bool = False
    weights_packed: bool = False
    """Whether these are compressed, for memory that the caller gives."""
    labels_file: Path | None = None
    """Where the labels were read from."""
    bench: bool = False
    """Whether there is a program that measures the library, too."""
    shared: bool = True
    """Whether there is a shared library, and the module for Python that loads it."""

    def for_target(self, target: Target) -> LibraryOptions:
        """The same without a shared library where none can be linked."""
        return dataclasses.replace(self, shared=target.links)

    @property
    def has_weights_apart(self) -> bool:
        """Whether a call is given the weights."""
        return self.weights_apart or self.weights_packed

    @property
    def archive(self) -> str:
        """The static library's file."""
        return f"lib{self.name}.a"

    @property
    def replaced(self) -> tuple[str, ...]:
        """The files that an earlier library of this name may have left."""
        every = dataclasses.replace(self, weights_apart=True, bench=True, shared=True)
        packed = dataclasses.replace(every, weights_packed=True)
        return tuple(dict.fromkeys([*every.files, *packed.files]))

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it consists of."""
        name = self.name
        ending = "weights.packed" if self.weights_packed else "weights"
        weights = (f"{name}.{ending}",) if self.has_weights_apart else ()
        bench = (f"{name}_bench",) if self.bench else ()
        shared = (f"{name}.py", f"lib{name}.so") if self.shared else ()
        return (
            f"{name}.h",
            f"{name}.hpp",
            self.archive,
            f"{name}.json",
            f"{name}.pc",
            *shared,
            *weights,
            *bench,
        )


def check_name(name: str) -> str:
    """`name`, by which a library's functions begin. Raises SecateurError where C can't have it."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
        problem = "letters of ASCII, digits and _, beginning with a letter, 64 at most"
        raise SecateurError(f"name '{printable(name)}': a library's name consists of {problem}")
    if name in _SYSTEM:
        raise SecateurError(f"name '{name}': a library or header of the system has it")
    if name in sys.stdlib_module_names:
        raise SecateurError(f"name '{name}': a module of Python has it")
    if name in _RESERVED or name.startswith("secateur_") or keyword.iskeyword(name):
        raise SecateurError(f"name '{name}': it means something in C, C++ or Python already")
    return name


def name_of_file(stem: str) -> str:
    """A library's name for a model file called `stem`."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_")[:57] or "model"
    if not name[0].isalpha():
        name = f"model_{name}"
    try:
        return check_name(name)
    except SecateurError:
        return f"model_{name}"[:64]
