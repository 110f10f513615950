"""Compiled: numba kernels whose cache is optional, as caches are.

From: functions of `loading`, `pooling` and `dropout`.
To:   the same, compiled without the GIL; machine code is kept beside the source, in the user's
      cache or in NUMBA_CACHE_DIR; where none can be written each process compiles again.

numba itself refuses to compile what it cannot cache, and hands on whatever reading or writing a
cache file meets: a full disk, a file that a crash cut short.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numba
from numba.core.caching import FunctionCache

logger = logging.getLogger("tinyvgg")


class _OptionalCache(FunctionCache):  # type: ignore[misc]
    """numba's cache, whose faults are misses."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the machine code for a signature, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # unpickling raises anything
            with suppress(OSError):
                self.flush()  # a new one takes its place
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code for later processes, if that can be."""
        with suppress(OSError):
            super().save_overload(sig, data)


def compile_kernel(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call, without the GIL; cached where it can be."""
    kernel = numba.njit(nogil=True)(function)
    try:
        kernel._cache = _OptionalCache(function)  # what `cache=True` does
    except RuntimeError:  # no folder to keep it in
        _tell_that_nothing_is_kept()
    return kernel


@cache
def _tell_that_nothing_is_kept() -> None:
    logger.warning(
        "no folder for numba's cache can be written: each process compiles its kernels again, some "
        "10 seconds; set NUMBA_CACHE_DIR to a folder that can"
    )
