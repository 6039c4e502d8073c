"""Seconds and memory of counting n-grams, and positions a second of looking the prior up.

    python benchmarks/estimation/ngrams.py [--tokens 20000000] [--order 4] [--max-tokens 32]
    python benchmarks/estimation/ngrams.py --jsonl texts.jsonl --field response --tokenizer folder

Without ``--jsonl`` the text is synthetic: after each pair of tokens a few continuations are likely (how many varies,
their ranks fall off geometrically), and all tokens together follow Zipf's law, so that contexts of two and three
tokens recur and most longer ones do not. A lookup is what the student would be given: the longest context seen
elsewhere, the whole sequence left out, its most probable tokens, the written token's share, and the tail.

Counting and lookups run once before the clock starts, on a small corpus, so that compiling is not measured; its seconds
are printed too. Examples are read from a mapped file. The peak of resident memory counts mapped pages.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from proxykd.config.prior import PriorSpec
from proxykd.data.tokenizing import Example
from proxykd.estimation.ngrams import NgramCounts
from proxykd.estimation.prior import prior_rows

LENGTH, PROMPT = 500, 20


class Mapped(Sequence[Example]):
    """Examples of ``lengths`` tokens one after another in a mapped file, the first ``PROMPT`` of each its prompt."""

    def __init__(self, path: Path, lengths: NDArray[np.int64]) -> None:
        self._tokens, self._ends = np.asarray(np.memmap(path, np.int32, "r")), np.cumsum(lengths)
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, idx: int) -> Example:  # type: ignore[override]
        if not 0 <= idx < len(self):
            raise IndexError(idx)
        text = self._tokens[self._ends[idx] - self._lengths[idx] : self._ends[idx]]
        return Example(f"{idx:016x}", 0, text[:PROMPT], text[PROMPT:])


def synthetic(path: Path, num_tokens: int, vocab_size: int, seed: int = 0) -> Mapped:
    """Text that is written to ``path``; ``num_tokens`` are completions."""
    rng, num_examples = np.random.default_rng(seed), max(1, num_tokens // LENGTH)
    by_rank = np.cumsum(1.0 / np.arange(1, vocab_size + 1))
    by_rank /= by_rank[-1]
    with path.open("wb") as file:
        for start in range(0, num_examples, 4000):
            rows = min(4000, num_examples - start)
            text = np.empty((rows, PROMPT + LENGTH), np.int32)
            text[:, :2] = np.searchsorted(by_rank, rng.random((rows, 2)))
            for at in range(2, PROMPT + LENGTH):
                text[:, at] = _next(text[:, at - 2].astype(np.uint64), text[:, at - 1].astype(np.uint64), by_rank, rng)
            file.write(text.tobytes())
    return Mapped(path, np.full(num_examples, PROMPT + LENGTH))


def _next(
    before: NDArray[np.uint64], last: NDArray[np.uint64], by_rank: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    state = _mix(before * np.uint64(1_000_003) + last)
    spread = 0.2 + 0.7 * (state >> np.uint64(40)).astype(np.float64) / 2**24
    choice = np.floor(np.log(rng.random(len(last))) / np.log(spread)).astype(np.uint64)
    # One in five continuations follows the last token alone, one in ten nothing at all.
    free = rng.random(len(last))
    state = np.where(free < 0.2, _mix(last), state)
    state = np.where(free < 0.1, rng.integers(0, 2**63, len(last), np.uint64), state)
    draws = (_mix(state + choice * np.uint64(0x9E3779B9)) >> np.uint64(11)).astype(np.float64) / 2**53
    return np.searchsorted(by_rank, draws)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def real(path: Path, source: Path, field: str, tokenizer_folder: str) -> Mapped:
    """The texts of a JSON Lines file, written to ``path`` as token ids."""
    from transformers import AutoTokenizer

    tokenizer, lengths = AutoTokenizer.from_pretrained(tokenizer_folder), []
    with path.open("wb") as file, source.open(encoding="utf-8") as lines:
        for line in lines:
            ids = np.array(tokenizer(json.loads(line)[field], add_special_tokens=False).input_ids, np.int32)
            if len(ids) > PROMPT:
                file.write(ids.tobytes())
                lengths.append(len(ids))
    return Mapped(path, np.array(lengths, np.int64))


def look_up(examples: Mapped, folder: Path, spec: PriorSpec, seconds: float, first: int) -> tuple[float, float]:
    """Positions looked up in a second of the clock, and of the processor, starting at example ``first``."""
    counts, num_positions, idx = NgramCounts.open(folder), 0, first
    prior_rows(counts, examples[0], spec)
    start, cpu = time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - start) < seconds:
        num_positions += len(prior_rows(counts, examples[idx % len(examples)], spec).tail)
        idx += 7  # neighbours in the file are not neighbours here
    return num_positions / spent, num_positions / (time.process_time() - cpu)


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processors."""
    start, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - cpu


def peak_mib() -> float:
    """Peak of resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rates(examples: Mapped, folder: Path, order: int, max_tokens: int, seconds: float) -> Iterator[str]:
    """A line for each way to look up."""
    for back_off in ("longest", "interpolated"):
        for counts in ("leave_out", "keep"):
            spec = PriorSpec(order=order, back_off=back_off, counts=counts, max_tokens=max_tokens)
            one = look_up(examples, folder, spec, seconds, 0)
            with ProcessPoolExecutor(2, get_context("spawn")) as pool:
                args = [(examples, folder, spec, seconds, first) for first in (1, 2)]
                two = list(pool.map(look_up, *zip(*args, strict=True)))
            yield (
                f"{back_off:12} {counts:9} {one[0]:11,.0f} /s on one core, {one[1]:11,.0f} /s of the processor; "
                f"on two {sum(rate for rate, _ in two):11,.0f} and {sum(rate for _, rate in two):11,.0f}"
            )


def main() -> None:
    """Count, look up, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each lookup measurement")
    parser.add_argument("--jsonl", type=Path)
    parser.add_argument("--field", default="text")
    parser.add_argument("--tokenizer", help="folder of a tokenizer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = synthetic(folder / "small", 5_000, args.vocab)
        compiling, _ = timed(lambda: NgramCounts.build(small, 2, folder / "compiled"))
        if args.jsonl:
            examples = real(folder / "text", args.jsonl, args.field, args.tokenizer)
        else:
            examples = synthetic(folder / "text", args.tokens, args.vocab)
        before = peak_mib()
        clock, cpu = timed(lambda: NgramCounts.build(examples, args.order, folder / "counts"))
        num_bytes = sum(file.stat().st_size for file in (folder / "counts").iterdir())
        counts = NgramCounts.open(folder / "counts")
        print(f"{counts.num_tokens:,} tokens of {len(examples):,} texts, contexts of up to {args.order} tokens")
        print(
            f"python {platform.python_version()}, numpy {np.__version__}, numba {metadata.version('numba')}; "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        print(
            f"counting     {clock:6.1f} s by the clock, {cpu:6.1f} s of the processors (first use: {compiling:.1f} s)"
        )
        print(
            f"memory       {peak_mib():6.0f} MiB at the peak, {before:.0f} MiB before; "
            f"{num_bytes / 2**20:.0f} MiB on disk"
        )
        print(f"contexts     {len(counts.trie.contexts):,}, list entries {len(counts.trie.entries):,}")
        for line in rates(examples, folder / "counts", args.order, args.max_tokens, args.seconds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
