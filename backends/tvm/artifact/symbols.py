"""Symbols that shared objects need of the process that loads them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ..targets import Target

_MATHEMATICS = (
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "copysign"),
    *("cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1", "fabs", "floor", "fma", "fmax"),
    *("fmin", "fmod", "hypot", "ldexp", "log", "log10", "log1p", "log2", "nearbyint", "pow"),
    *("rint", "round", "roundeven", "sin", "sincos", "sinh", "sqrt", "tan", "tanh", "trunc"),
)

LIBRARIES = {
    "libc.so.6": (
        *("abort", "calloc", "free", "getauxval", "getpid", "malloc", "memcmp", "memcpy"),
        *("memmove", "memset", "nanosleep", "posix_memalign", "sched_yield", "sigemptyset"),
        *("sigfillset", "__cxa_atexit", "__cxa_finalize", "__register_atfork", "__tls_get_addr"),
        *("__aeabi_memcpy", "__aeabi_memmove", "__aeabi_memset", "__aeabi_memclr"),
    ),
    "libm.so.6": tuple(name + suffix for name in _MATHEMATICS for suffix in ("", "f")),
    "libpthread.so.0": (
        *("pthread_atfork", "pthread_cond_broadcast", "pthread_cond_destroy", "pthread_cond_init"),
        *("pthread_cond_signal", "pthread_cond_wait", "pthread_create", "pthread_detach"),
        *("pthread_join", "pthread_mutex_destroy", "pthread_mutex_init", "pthread_mutex_lock"),
        *("pthread_mutex_trylock", "pthread_mutex_unlock", "pthread_once", "pthread_self"),
        "pthread_sigmask",
    ),
}
"""What a system's libraries define, among what kernels and the runtime may call.

The names are glibc's, that of threads as before 2.34, which later ones have, too; musl takes them
for its own.
"""

_BIONIC = {"libc.so.6": "libc.so", "libm.so.6": "libm.so", "libpthread.so.0": "libc.so"}
"""Android's names of the same libraries."""


def libraries(target: Target) -> dict[str, tuple[str, ...]]:
    """The libraries of a target's system, by the names that it knows them by."""
    if target.system != "android":
        return LIBRARIES
    found: dict[str, tuple[str, ...]] = {}
    for name, symbols in LIBRARIES.items():
        found[_BIONIC[name]] = found.get(_BIONIC[name], ()) + symbols
    return found


LIBC = frozenset(name for names in LIBRARIES.values() for name in names)

_SYMBOL_TABLE = 11
_UNDEFINED = 0


def undefined(path: Path) -> set[str]:
    """Names that a little-endian ELF shared object leaves to others to define."""
    content = path.read_bytes()
    return {
        name for name, section, _ in _dynamic_symbols(content) if name and section == _UNDEFINED
    }


def text_at(path: Path, symbol: str) -> bytes | None:
    """The bytes from a dynamic symbol on, up to a zero, of a little-endian ELF shared object.

    None where it has no such symbol. Raises ValueError for other files.
    """
    content = path.read_bytes()
    try:
        wide = content[4] == 2
        for name, section, value in _dynamic_symbols(content):
            if name == symbol and section != _UNDEFINED:
                sections_at = struct.unpack_from(
                    "<Q" if wide else "<I", content, 40 if wide else 32
                )[0]
                size = struct.unpack_from("<H", content, 58 if wide else 46)[0]
                form = "<IIQQQ" if wide else "<IIIII"
                header = struct.unpack_from(form, content, sections_at + section * size)
                start = value - header[3] + header[4]
                if start < 0:
                    raise ValueError("a symbol outside of its section")
                return content[start : content.index(b"\0", start)]
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    return None


def _dynamic_symbols(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Each dynamic symbol with the section that defines it, and its address."""
    wide = content[4] == 2
    sections_at = struct.unpack_from("<Q" if wide else "<I", content, 40 if wide else 32)[0]
    size, count = struct.unpack_from("<HH", content, 58 if wide else 46)
    form = "<IIQQQQII" if wide else "<IIIIIIII"
    headers = [struct.unpack_from(form, content, sections_at + i * size) for i in range(count)]
    for _, kind, _, _, start, length, strings, _ in headers:
        if kind != _SYMBOL_TABLE:
            continue
        names = headers[strings][4]
        step = 24 if wide else 16
        for at in range(start, start + length, step):
            name = struct.unpack_from("<I", content, at)[0]
            section = struct.unpack_from("<H", content, at + (6 if wide else 14))[0]
            value = struct.unpack_from("<Q" if wide else "<I", content, at + (8 if wide else 4))[0]
            end = content.index(b"\0", names + name)
            yield content[names + name : end].decode(), section, value
        return  # there is one such table
