"""What writer and reader of the coded format share: how numbers become symbols, and by which context.

A row is a set of m tokens with a level each (``quantising``). It is written as: k - m, the step, the tail's level, the
least level, then the tokens in the order of a list of candidates, as gaps in that list, each followed by its level, and
last which of them the text goes on with. The candidates are the tokens fitted to follow the text's last token,
likeliest first; after them, which the symbol END says, the whole vocabulary by frequency. Both lie in one array of
entries (``tables``), the vocabulary first, so that a gap is added to a place in that array whichever part it is in.

Every number v is a symbol and perhaps some plain bits: v < 16 is itself; beyond that the symbol holds the binary
exponent and two further bits. Symbols are coded with static tables in an asymmetric numeral system (rANS) with a 64-bit
state and 32-bit words: a number and its plain bits take 31 bits at most, so that one word a number is always enough.
Everything that steers the decoder is an integer, so that a store reads the same on every machine.

numba compiles this module when it is first used; nothing else imports it at start-up. What it keeps on disk it renews
when the file changes that a function stands in, and no other; what is older than this file is removed here, because
all compiled files of the package have its constants in them.

References:
    Duda, Asymmetric numeral systems, arXiv:1311.2540.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

SCALE_BITS = 10
LOWER = 1 << 31  # a state is in LOWER .. LOWER * 2**32 - 1
NUM_SYMBOLS = 96
END = 94
ESCAPE = 95
ESCAPE_BITS = 21
LARGEST = (1 << ESCAPE_BITS) - 2  # number that can be coded
ESCAPED = 1 << 30  # what ESCAPE adds to a number, so that one comparison finds all that is out of the ordinary
END_VALUE = ESCAPED + LARGEST + 1
NOTHING = 0.09  # what level 0 stands for: between nothing and the 0.25 at which level 1 begins

# Contexts: fields of a row, then levels (mean left a token), then gaps (how likely the candidates here are, how many
# are left in the list). Contexts of gaps that do alike share a table.
FIELD_MISSING, FIELD_STEP, FIELD_TAIL, FIELD_LEAST, FIELD_NEXT, FIELD_OTHER = 0, 1, 2, 10, 18, 19
LEVELS, LEVEL_BUCKETS = 20, 28
GAPS = LEVELS + LEVEL_BUCKETS
LIST_ZONES, RANK_ZONES, LEFT_BUCKETS = 24, 36, 8
NUM_CONTEXTS = GAPS + (LIST_ZONES + RANK_ZONES) * LEFT_BUCKETS
GAP_TABLES = 24
TABLE_SHIFT = 25  # an entry is a token and, above it, the table of a gap that begins there


def forget_older_code(source: Path) -> None:
    """Remove what numba compiled, beside ``source``, before that file was changed."""
    changed = source.stat().st_mtime_ns
    for file in (source.parent / "__pycache__").glob("*.nb[ic]"):
        with suppress(OSError):  # another process was first, or the folder cannot be written
            if file.stat().st_mtime_ns < changed:
                file.unlink()


forget_older_code(Path(__file__))


def compiled(function: Callable[..., Any]) -> Any:
    """``function`` compiled on first use; kept on disk where a folder for it can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """``compiled`` into its callers: a call with arrays costs more than these few lines do."""
    try:
        return numba.njit(cache=True, nogil=True, forceinline=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True, forceinline=True)(function)


@intrinsic  # type: ignore[untyped-decorator]
def _leading_zeros(typing_context: Any, value: Any) -> Any:
    """Zero bits before the highest one of an int64; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@inlined
def bit_length(value: Any) -> Any:
    """Bits that a number >= 0 takes: 0 for 0."""
    return 64 - _leading_zeros(np.int64(value))


@compiled
def symbol_of(value: Any) -> Any:
    """(symbol, number of plain bits, plain bits) of a number >= 0."""
    if value < 16:
        return value, 0, 0
    exponent = bit_length(value) - 1
    return 16 + (exponent - 4) * 4 + ((value >> (exponent - 2)) & 3), exponent - 2, value & ((1 << (exponent - 2)) - 1)


@inlined
def mass_of(level: Any, power: Any) -> Any:
    """What a level counts for in the contexts: level ** power, an integer."""
    return level * level if power == 2 else level


@inlined
def weight_of(level: Any, power: Any) -> Any:
    """What a level stands for: the row's probabilities are its weights divided by their sum."""
    return NOTHING if level == 0 else float(mass_of(level, power))


@inlined
def level_context(left: Any, reciprocal: Any) -> Any:
    """The context of a level: the mean of what is left a token, above the least."""
    mean = (left * reciprocal) >> 16
    return LEVELS + min(bit_length(mean & ~(mean >> 63)), LEVEL_BUCKETS - 1)
