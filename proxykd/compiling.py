"""Compiling the loops that numpy has no words for.

numba compiles a function when it is first called and keeps the machine code: beside the source, in the user's cache
folder, or where ``NUMBA_CACHE_DIR`` says. Where none of them can be written, each process compiles for itself.
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


def compiled(function: FunctionT) -> FunctionT:
    """``function`` as machine code that runs beside other threads."""
    try:
        return cast(FunctionT, njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder for the cache
        return cast(FunctionT, njit(nogil=True)(function))
