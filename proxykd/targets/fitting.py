"""Rows -> the tables that code rows like them shortest.

    ranking   tokens by how often they stand in a row
    lists     after text token c: the tokens whose share of c's rows is worth noting, as a share shrunk to the overall
              one, (n_ci + kappa u_i) / (n_c + kappa)
    widths    how often each symbol came in each context, over samples that the lists were not fitted on

The lists are fitted twice: on three quarters, so that the symbols of the rest show how well lists do on rows that they
have not seen, and then on everything.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import ShapeError
from proxykd.targets.coding import Levels, Scratch, symbolise
from proxykd.targets.kernels import (
    ESCAPE,
    GAP_TABLES,
    GAPS,
    LARGEST,
    LEVELS,
    LIST_ZONES,
    NUM_CONTEXTS,
    NUM_SYMBOLS,
    SCALE_BITS,
)
from proxykd.targets.tables import Tables

_KAPPA = 2.0
_LISTS_FROM = 2048
_LIST_LENGTHS = 16
_BACKOFF = 4.0

# Shares below are of rows: how likely a token is to stand in one.


def fit_tables(samples: list[Levels], *, vocab_size: int, masses: NDArray[np.int64], power: int) -> Tables:
    """Fit on some samples.

    Args:
        samples: Levels of the first samples of the store.
        vocab_size: Upper bound on token ids.
        masses: As ``write_kernels.write_rows`` takes it.
        power: Likewise.

    Raises:
        ShapeError: if the vocabulary has more tokens than a symbol can tell apart.
    """
    if vocab_size > LARGEST:
        raise ShapeError(
            f"expected a vocabulary of at most {LARGEST} tokens, got {vocab_size}; store.kind: plain has no bound"
        )
    counts = np.zeros(vocab_size, np.int64)
    for sample in samples:
        counts += np.bincount(sample.ids[sample.ids >= 0], minlength=vocab_size)
    lengths = np.array([len(sample.ids) for sample in samples])
    held = np.cumsum(lengths) > 0.75 * lengths.sum()
    use_lists = lengths.sum() >= _LISTS_FROM
    seen = [sample for sample, is_held in zip(samples, held, strict=True) if not is_held]
    unseen = [sample for sample, is_held in zip(samples, held, strict=True) if is_held]
    trial = _with_lists(counts, seen if use_lists else [], vocab_size)
    symbols = _histogram(trial, unseen if use_lists else samples, masses, power)
    gaps, groups = _grouped(symbols[GAPS:])
    table_of = np.concatenate([np.arange(GAPS), GAPS + groups]).astype(np.uint8)
    widths = np.stack([_slots(row) for row in np.concatenate([_backed_off(symbols[:GAPS]), gaps])])
    final = _with_lists(counts, samples if use_lists else [], vocab_size)
    return replace(final, table_of=table_of, widths=widths)


def _with_lists(counts: NDArray[np.int64], samples: list[Levels], vocab_size: int) -> Tables:
    num_rows = max(1, sum(len(sample.ids) for sample in samples))
    share = np.minimum((counts + 0.3) / (num_rows + 1.0), 1.0)
    order = np.lexsort((np.arange(vocab_size), -counts))
    starts, ids, zones = _lists(samples, share, vocab_size)
    widths = np.zeros((GAPS + GAP_TABLES, NUM_SYMBOLS), np.int32)
    return Tables(order.astype(np.int32), starts, ids, zones, np.zeros(NUM_CONTEXTS, np.uint8), widths)


def _zone(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.round(-2.0 * np.log2(share)), 0, LIST_ZONES - 1).astype(np.uint8)


def _lists(
    samples: list[Levels], share: NDArray[np.float64], vocab_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint8]]:
    if not samples:
        return np.zeros(vocab_size + 2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8)
    last = np.concatenate([np.concatenate([[vocab_size], sample.next_tokens()[:-1]]) for sample in samples])
    last = np.where(last < 0, vocab_size, last)
    ids = np.concatenate([sample.ids for sample in samples]).astype(np.int64)
    pairs = (last[:, None].astype(np.int64) * vocab_size + ids)[ids >= 0]
    keys, n = np.unique(pairs, return_counts=True)
    context, token = keys // vocab_size, keys % vocab_size
    rows = np.bincount(last, minlength=vocab_size + 1)
    found = (n + _KAPPA * share[token]) / (rows[context] + _KAPPA)
    keep = (n >= 2) & (found > 2.0 ** (-LIST_ZONES / 2)) & (found > 1.4 * share[token])
    context, token, found = context[keep], token[keep], found[keep]
    order = np.lexsort((token, -found, context))
    context, token, found = context[order], token[order], found[order]
    starts = np.searchsorted(context, np.arange(vocab_size + 2))
    short = np.arange(len(context)) - starts[context] < _LIST_LENGTHS * ids.shape[1]
    context, token, found = context[short], token[short], found[short]
    starts = np.searchsorted(context, np.arange(vocab_size + 2)).astype(np.int64)
    return starts, token.astype(np.int32), _zone(found)


def _histogram(tables: Tables, samples: list[Levels], masses: NDArray[np.int64], power: int) -> NDArray[np.float64]:
    counts = np.zeros(NUM_CONTEXTS * NUM_SYMBOLS)
    scratch = Scratch(max((sample.ids.shape[1] for sample in samples), default=0), tables.vocab_size)
    for sample in samples:
        symbols = symbolise(sample, tables, masses, power, scratch)
        counts += np.bincount(symbols[:, 0] * NUM_SYMBOLS + symbols[:, 1], minlength=len(counts))
    return counts.reshape(NUM_CONTEXTS, NUM_SYMBOLS)


def _backed_off(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts [contexts, symbols], those of levels with a little of all levels' together."""
    smooth = counts.copy()
    levels = counts[LEVELS:].sum(0)
    smooth[LEVELS:] += _BACKOFF * levels / max(levels.sum(), 1.0)
    return smooth


def _grouped(counts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Counts [GAP_TABLES, symbols] of groups of contexts that do alike, and the group of each context.

    Two groups at a time become one, those whose joint code is the least longer than their own. A context that never
    came goes to the group of the nearest one before it that did.
    """
    came = np.flatnonzero(counts.sum(1))
    if not len(came):  # rows that list no token have no gaps
        came = np.zeros(1, np.int64)
    groups, sums = [[index] for index in came.tolist()], counts[came]
    own = _code_lengths(sums)
    extra = np.stack([_code_lengths(sums + row) - own - length for row, length in zip(sums, own, strict=True)])
    np.fill_diagonal(extra, np.inf)
    while len(groups) > GAP_TABLES:
        kept, joined = sorted(divmod(int(extra.argmin()), len(groups)))
        sums[kept] += sums[joined]
        groups[kept] += groups.pop(joined)
        sums = np.delete(sums, joined, 0)
        extra = np.delete(np.delete(extra, joined, 0), joined, 1)
        own = np.delete(own, joined)
        own[kept] = _code_lengths(sums[kept])
        extra[kept] = extra[:, kept] = _code_lengths(sums + sums[kept]) - own - own[kept]
        extra[kept, kept] = np.inf
    group_of = np.zeros(len(counts), np.int64)
    for group, members in enumerate(groups):
        group_of[members] = group
    nearest = np.maximum.accumulate(np.where(counts.sum(1) > 0, np.arange(len(counts)), -1))
    group_of = np.where(nearest >= 0, group_of[np.maximum(nearest, 0)], 0)
    padded = np.zeros((GAP_TABLES, NUM_SYMBOLS))
    padded[: len(sums)] = sums
    return padded, group_of


def _code_lengths(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats that counts [..., symbols] take, coded by themselves."""
    totals = counts.sum(-1)
    nats: NDArray[np.float64] = totals * np.log(np.maximum(totals, 1.0))
    nats -= (counts * np.log(np.maximum(counts, 1.0))).sum(-1)
    return nats


def _slots(counts: NDArray[np.float64]) -> NDArray[np.int32]:
    """2**SCALE_BITS slots shared out by counts; every symbol that came has one, ESCAPE always."""
    total = 1 << SCALE_BITS
    share = counts / max(counts.sum(), 1e-9) * total
    slots = np.where(share >= 0.25, np.maximum(np.round(share), 1), 0).astype(np.int32)
    slots[ESCAPE] = max(slots[ESCAPE], 1)
    for _ in range(int(max(slots.sum() - total, 0))):
        slots[np.argmax(slots)] -= 1
    slots[np.argmax(slots)] += total - slots.sum()
    return slots
