"""The compiled loops of the coded format: rows -> symbols -> a range-coded byte string, and back.

A row is a set of m tokens with a level each (``quantising``). It is written as: k - m, the step, the tail's level, the
least level, then the tokens in the order of a list of candidates that both sides can build, as gaps in that list, each
followed by its level, and last which of them the text goes on with. The list begins with the tokens that the model
(``tables``) expects after the text's last token and those of the previous row, likeliest first, and goes on with the
whole vocabulary by frequency.

Every number v is a symbol and perhaps some plain bits: v < 16 is itself; beyond that the symbol holds the binary
exponent and two further bits. Symbols are coded with static tables, chosen by a context, in an asymmetric numeral
system with a 32-bit state and 16-bit words (rANS). Everything that steers the decoder is an integer, so that a store
reads the same on every machine.

numba compiles this module when it is first used; nothing else imports it at start-up.

References:
    Duda, Asymmetric numeral systems, arXiv:1311.2540.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

SCALE_BITS = 12
NUM_SYMBOLS = 96
END = 94
ESCAPE = 95
NOTHING = 0.09  # what level 0 stands for: between nothing and the 0.25 at which level 1 begins

# Contexts: fields of a row, then gaps (zone x how many are left), then levels (mean left x zone).
FIELD_MISSING, FIELD_STEP, FIELD_TAIL, FIELD_LEAST, FIELD_NEXT, FIELD_OTHER = 0, 1, 2, 10, 18, 19
NUM_FIELDS = 24
LIST_ZONES, RANK_ZONES, LEFT_BUCKETS = 24, 36, 8
LEVEL_BUCKETS, LEVEL_ZONES = 28, 8
GAPS = NUM_FIELDS
LEVELS = GAPS + (LIST_ZONES + RANK_ZONES) * LEFT_BUCKETS
NUM_CONTEXTS = LEVELS + LEVEL_BUCKETS * LEVEL_ZONES


def compiled(function: Function) -> Function:
    """``function`` compiled on first use; kept on disk where a folder for it can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@compiled
def bit_length(value):
    length = 0
    while value > 0:
        value >>= 1
        length += 1
    return length


@compiled
def symbol_of(value):
    """(symbol, number of plain bits, plain bits) of a number >= 0."""
    if value < 16:
        return value, 0, 0
    exponent = bit_length(value) - 1
    return 16 + (exponent - 4) * 4 + ((value >> (exponent - 2)) & 3), exponent - 2, value & ((1 << (exponent - 2)) - 1)


@compiled
def mass_of(level, power):
    """What a level counts for in the contexts: level ** power, an integer."""
    return level * level if power == 2 else level


@compiled
def weight_of(level, power):
    """What a level stands for: the row's probabilities are its weights divided by their sum."""
    return NOTHING if level == 0 else float(mass_of(level, power))


@compiled
def level_context(mass_left, num_left, least_mass, zone):
    mean = mass_left // num_left - least_mass
    bucket = bit_length(mean) if mean > 0 else 0
    if bucket >= LEVEL_BUCKETS:
        bucket = LEVEL_BUCKETS - 1
    if zone >= LIST_ZONES:
        coarse = 4 + min((zone - LIST_ZONES) // 8, 3)
    else:
        coarse = min(zone // 4, 3)
    return LEVELS + bucket * LEVEL_ZONES + coarse


@compiled
def gap_context(zone, num_left):
    bucket = bit_length(num_left) - 1
    if bucket >= LEFT_BUCKETS:
        bucket = LEFT_BUCKETS - 1
    return GAPS + zone * LEFT_BUCKETS + bucket


@compiled
def build_candidates(last, previous, num_previous, starts, list_ids, list_zones, rank_zone, rank_of, boost, scratch):
    """Candidates for a row, likeliest first, into ``scratch.ids`` and ``scratch.zones``; their number."""
    ids, zones, unsorted, unsorted_zone, slot = scratch
    n = 0
    for entry in range(starts[last], starts[last + 1]):
        token = list_ids[entry]
        unsorted[n], unsorted_zone[n] = token, list_zones[entry]
        slot[token] = n
        n += 1
    for place in range(num_previous):
        token = previous[place]
        at = slot[token]
        if at < n and unsorted[at] == token:
            zone = unsorted_zone[at] - 1
            unsorted_zone[at] = zone if zone > 0 else 0
        else:
            zone = boost[rank_zone[rank_of[token]]]
            unsorted[n], unsorted_zone[n] = token, zone
            slot[token] = n
            n += 1
    count = np.zeros(LIST_ZONES + 1, np.int64)
    for at in range(n):
        count[unsorted_zone[at] + 1] += 1
    for zone in range(LIST_ZONES):
        count[zone + 1] += count[zone]
    for at in range(n):
        zone = unsorted_zone[at]
        place = count[zone]
        count[zone] = place + 1
        ids[place], zones[place] = unsorted[at], zone
        slot[unsorted[at]] = place
    return n
