"""Bytes a position, loss and speed of the target store's formats beside the usual ones.

    python benchmarks/targets/compare.py                                  synthetic rows, no model needed
    python benchmarks/targets/compare.py smol.npz gemma.npz --repeats 5   files of ``distributions.py``

The first half of each file's texts is what the coded format is fitted on; the second half is what the rows of the table
are about. ``coded`` counts blocks with their heads and checksums; its tables, which a store holds once, stand in a
column of their own. KL is KL(given || read back) in nats. Speeds are of one core: for each text the best of the
repeats, then summed, with everything between a row of floats and its bytes. ``parquet`` is int32 ids and float16
log-probabilities as lists, zstd: what a script without a codec would write.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.targets.codec import Positions, check_positions, decode_plain, encode_plain
from proxykd.targets.coding import Coder, Quantiser
from proxykd.targets.fitting import fit_tables
from proxykd.targets.shards import block_bytes

MAX_KL = 1e-4
DRAWS = 50


class Text(NamedTuple):
    """A text's rows and its tokens."""

    positions: Positions
    text_ids: Any


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}"
    print(f"{versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'distributions':<14}{'V':>8}{'rows':>9}  {'format':<22}{'bytes':>8}{'tables':>9}{'KL mean':>10}"
          f"{'KL max':>10}{'encode/s':>11}{'decode/s':>11}{'load':>6}")  # fmt: skip
    for path in options.files or [None]:
        name, data = (path.stem, dict(np.load(path))) if path else ("synthetic", synthetic())
        for k in (20, 50, 128):
            report(name, f"k={k}", texts_of(data, k), data, options.repeats, None)
        report(name, f"rs-kd {DRAWS}", sampled_of(data), data, options.repeats, DRAWS)


def synthetic() -> dict[str, Any]:
    """Zipfian rows that lean on the text's last token: the shape of a model's, not its figures."""
    rng = np.random.default_rng(0)
    vocab_size, length, num = 32_000, 100, 100
    labels = (rng.zipf(1.3, num * length) % 2000).astype(np.int32)
    noise = rng.gumbel(size=(num * length, 4096))
    noise -= 1.1 * np.log1p(np.arange(4096))
    shift = (np.concatenate([[0], labels[:-1]])[:, None] * 7 + np.arange(4096)) % vocab_size
    scores = noise * 1.5
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    order = np.argsort(-scores, axis=1)[:, :128]
    sums = np.exp(scores).cumsum(1)
    draws = np.stack([np.searchsorted(row, rng.random(DRAWS) * row[-1]) for row in sums])
    return {
        "V": vocab_size,
        "lens": np.full(num, length),
        "labels": labels,
        "ids": np.take_along_axis(shift, order, 1).astype(np.int32),
        "lps": np.take_along_axis(scores, order, 1).astype(np.float32),
        "draws": np.take_along_axis(shift, draws, 1).astype(np.int32),
    }


def texts_of(data: dict[str, Any], k: int) -> list[Text]:
    """The k likeliest tokens and a tail."""
    ids, logprobs = np.ascontiguousarray(data["ids"][:, :k]), np.ascontiguousarray(data["lps"][:, :k])
    mass = np.exp(logprobs, dtype=np.float64).sum(1)
    tail = np.log(np.maximum(1.0 - mass, 1e-12)).astype(np.float32)
    return _cut(data, Positions(ids, logprobs, tail))


def sampled_of(data: dict[str, Any]) -> list[Text]:
    """Counts of draws, no tail."""
    draws = data["draws"]
    ids = np.full(draws.shape, -1, np.int32)
    logprobs = np.full(draws.shape, -np.inf, np.float32)
    for row, drawn in enumerate(draws):
        found, counts = np.unique(drawn, return_counts=True)
        ids[row, : len(found)], logprobs[row, : len(found)] = found, np.log(counts / DRAWS)
    return _cut(data, Positions(ids, logprobs, np.full(len(ids), -np.inf, np.float32)))


def _cut(data: dict[str, Any], positions: Positions) -> list[Text]:
    ends = np.cumsum(data["lens"])
    spans = [slice(end - length, end) for end, length in zip(ends, data["lens"], strict=True)]
    return [Text(Positions(*(part[span] for part in positions)), data["labels"][span]) for span in spans]


def report(name: str, rows: str, texts: list[Text], data: dict[str, Any], repeats: int, draws: int | None) -> None:
    """Print a line a format."""
    vocab_size, k = int(data["V"]), texts[0].positions.token_ids.shape[1]
    half = len(texts) // 2
    fit, test = texts[:half], texts[half:]
    num = sum(len(text.text_ids) for text in test)
    quantiser = Quantiser(k, max_kl=MAX_KL, num_draws=draws)

    def levels_of(text: Text, known: bool) -> Any:
        checked = check_positions(text.positions, top_k=k, vocab_size=vocab_size)
        return quantiser.quantise(checked, text.text_ids if known else None)

    def line(what: str, num_bytes: float, tables: int, kls: Any, encode: float, decode: float) -> None:
        load = os.getloadavg()[0]
        print(f"{name:<14}{vocab_size:>8}{rows:>9}  {what:<22}{num_bytes / num:>8.2f}{tables:>9}{np.mean(kls):>10.1e}"
              f"{np.max(kls):>10.1e}{num / encode:>11,.0f}{num / decode:>11,.0f}{load:>6.1f}", flush=True)  # fmt: skip

    for known in (True, False):
        fitted = [levels_of(text, known) for text in fit]
        tables = fit_tables(fitted, vocab_size=vocab_size, masses=quantiser.masses, power=quantiser.power)
        coder = Coder(tables, k, quantiser)
        coded = [coder.encode(levels_of(text, known)) for text in test]
        num_bytes = sum(len(block_bytes("0" * 16, 0, 0.0, 1, data)) for data in coded)
        encode = best(lambda text, known=known, coder=coder: coder.encode(levels_of(text, known)), test, repeats)
        pairs = [(data, len(text.text_ids)) for data, text in zip(coded, test, strict=True)]
        decode = best(lambda pair, coder=coder: coder.decode(*pair), pairs, repeats)
        kls = np.concatenate([levels_of(text, known).kls for text in test])
        what = "coded, text kept" if known else "coded, no text"
        line(what, num_bytes, len(tables.to_bytes()), kls, encode, decode)
    plain = [encode_plain(text.positions, vocab_size=vocab_size) for text in test]
    encode = best(lambda text: encode_plain(text.positions, vocab_size=vocab_size), test, repeats)
    pairs = [(data, len(text.text_ids)) for data, text in zip(plain, test, strict=True)]
    decode = best(lambda pair: decode_plain(*pair, top_k=k, vocab_size=vocab_size), pairs, repeats)
    line("plain", sum(map(len, plain)), 0, [0.0], encode, decode)
    line("parquet int32 float16", *parquet(test))


def parquet(test: list[Text]) -> tuple[float, int, Any, float, float]:
    """Bytes, 0, KLs, seconds to write, seconds to read."""
    ids = np.concatenate([text.positions.token_ids for text in test])
    given = np.concatenate([text.positions.logprobs for text in test])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "targets.parquet"
        start = time.perf_counter()
        lists = [
            pa.FixedSizeListArray.from_arrays(pa.array(a.ravel()), ids.shape[1]) for a in (ids, given.astype("f2"))
        ]
        pq.write_table(pa.table(lists, ["ids", "logprobs"]), path, compression="zstd")
        written = time.perf_counter()
        table = pq.read_table(path)
        found = table["logprobs"].combine_chunks().flatten().to_numpy().reshape(ids.shape).astype(np.float64)
        read, size = time.perf_counter(), path.stat().st_size
    with np.errstate(invalid="ignore"):
        probs = np.exp(given.astype(np.float64))
        kept = np.exp(found)
        kept_tail = np.maximum(1.0 - kept.sum(1), 1e-12)
        tail = np.maximum(1.0 - probs.sum(1), 0.0)
        kls = np.where(probs > 0, probs * (given - found), 0.0).sum(1)
        kls += np.where(tail > 1e-9, tail * (np.log(np.maximum(tail, 1e-12)) - np.log(kept_tail)), 0.0)
    return size, 0, np.abs(kls), written - start, read - written


def best(function: Callable[[Any], Any], arguments: list[Any], repeats: int) -> float:
    """Seconds for all arguments once: the best of the repeats for each."""
    seconds = [float("inf")] * len(arguments)
    for _ in range(repeats):
        for index, argument in enumerate(arguments):
            start = time.perf_counter()
            function(argument)
            seconds[index] = min(seconds[index], time.perf_counter() - start)
    return sum(seconds)


if __name__ == "__main__":
    main()
