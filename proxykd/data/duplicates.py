"""Exact duplicates, near duplicates and overlap over a whole corpus, with the sets kept on disk.

The sets are tables of integers in a temporary database; in memory are the latest rows, which are written together and
in the order of the tables, the page cache, and three filters of fixed size. Near duplicates are found by
locality-sensitive hashing: a prompt is compared by its MinHash signature with the earlier prompts that share a band
with it (``proxykd.data.quality`` has the equations). What is computed from one text alone comes from
``proxykd.data.measuring``, which may do so in other processes.
"""

import sqlite3
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from proxykd.artifacts import batched
from proxykd.data.filters import HashFilter
from proxykd.data.measuring import PromptHashes, Runs
from proxykd.data.quality import NUM_HASHES, similarity

_TABLES = """
    CREATE TABLE pairs (hash INTEGER PRIMARY KEY);
    CREATE TABLE evaluation_texts (text INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE evaluation_runs (hash INTEGER PRIMARY KEY, text INTEGER NOT NULL);
    CREATE TABLE signatures (prompt INTEGER PRIMARY KEY, signature BLOB NOT NULL);
    CREATE TABLE bands (hash INTEGER, prompt INTEGER, PRIMARY KEY (hash, prompt)) WITHOUT ROWID;
"""

_FILTER_BITS = 24
_SHIFT = 64 - _FILTER_BITS
_MAX_CANDIDATES = 32
_RUNS_PER_QUERY = 500
_ROWS_AT_ONCE = 8192


class CorpusIndex:
    """What earlier rows and the evaluation texts said.

    Args:
        database: Empty and temporary; the index makes its tables there.
        near_duplicate_threshold: Similarity in [0, 1] from which on two prompts are near duplicates; 1 = only those
            whose sets of shingles are the same.

    Attributes:
        evaluation: The word runs of the evaluation texts; what it holds for absent needs no look into the database.
    """

    def __init__(self, database: sqlite3.Connection, *, near_duplicate_threshold: float) -> None:
        self._database, self._threshold = database, near_duplicate_threshold
        # Whether a hash may be in a table, by its first bits: most are not, and need no look into the database.
        self._bands, self._pairs = (np.zeros(2**_FILTER_BITS, np.bool_) for _ in range(2))
        self.evaluation = HashFilter()
        self._new_pairs, self._new_signatures = set[int](), dict[int, NDArray[np.uint32]]()
        self._new_bands: dict[int, list[int]] = {}  # band -> prompts, first to last
        self._num_prompts = 0
        for statement in filter(str.strip, _TABLES.split(";")):
            database.execute(statement)

    def has_pair(self, key: int) -> bool:
        """Whether the prompt and completion with this key (``measuring.pair_key``) were added before."""
        if key in self._new_pairs or not self._pairs[key >> _SHIFT]:
            return key in self._new_pairs
        return self._database.execute("SELECT 1 FROM pairs WHERE hash = ?", (key,)).fetchone() is not None

    def add_pair(self, key: int) -> None:
        """Remember a prompt and its completion."""
        self._pairs[key >> _SHIFT] = True
        self._new_pairs.add(key)
        if len(self._new_pairs) >= _ROWS_AT_ONCE:
            rows = zip(sorted(self._new_pairs), strict=True)
            self._database.executemany("INSERT OR IGNORE INTO pairs VALUES (?)", rows)
            self._new_pairs.clear()

    def has_near(self, prompt: PromptHashes) -> bool:
        """Whether a prompt nearly equals one that was added before.

        At most ``32`` earlier prompts a band are compared, so that time stays linear in a corpus made from one
        template.
        """
        if self._threshold >= 1.0:  # equal sets, not merely equal signatures
            return self.has_pair(prompt.shingles_key)
        suspects = prompt.bands[self._bands[_slots(prompt.bands)]]
        if not len(suspects) or not len(candidates := self._candidates(_signed(suspects))):
            return False
        return bool(np.any(similarity(prompt.signature, candidates) >= self._threshold))

    def add_prompt(self, prompt: PromptHashes) -> None:
        """Remember a prompt; of near duplicates only the first is worth remembering.

        A chain of ever smaller changes is thus cut where it leaves the neighbourhood of its first prompt.
        """
        if self._threshold >= 1.0:
            return self.add_pair(prompt.shingles_key)
        self._num_prompts += 1
        self._new_signatures[self._num_prompts] = prompt.signature
        self._bands[_slots(prompt.bands)] = True
        for band in _signed(prompt.bands):
            self._new_bands.setdefault(band, []).append(self._num_prompts)
        if len(self._new_signatures) >= _ROWS_AT_ONCE:
            self._write_prompts()

    def add_evaluation(self, runs: NDArray[np.uint64], name: str) -> None:
        """Remember the word runs of an evaluation text; one shorter than a run has none."""
        if not len(runs):
            return
        self.evaluation.add(runs)
        idx = self._database.execute("INSERT INTO evaluation_texts (name) VALUES (?)", (name,)).lastrowid
        rows = ((run, idx) for run in _signed(runs))
        self._database.executemany("INSERT OR IGNORE INTO evaluation_runs VALUES (?, ?)", rows)

    def find_overlap(self, runs: Runs) -> str:
        """How many of a text's word runs occur in evaluation texts, and in which of those most; "" = none does."""
        if not len(runs.suspects):
            return ""
        suspects = _signed(runs.suspects)
        texts: dict[int, int] = {}
        for some in batched(dict.fromkeys(suspects), _RUNS_PER_QUERY):
            lookup = f"SELECT hash, text FROM evaluation_runs WHERE hash IN ({','.join(map(str, some))})"
            texts.update(self._database.execute(lookup))
        if not (found := Counter(texts[run] for run in suspects if run in texts)):
            return ""
        idx = found.most_common(1)[0][0]
        (name,) = self._database.execute("SELECT name FROM evaluation_texts WHERE text = ?", (idx,)).fetchone()
        return f"{found.total()} of {runs.num_runs} word runs are in evaluation texts, first of all in {name}"

    def _candidates(self, bands: list[int]) -> NDArray[np.uint32]:
        prompts = {prompt for band in bands for prompt in self._latest(band)}
        new = [self._new_signatures[prompt] for prompt in prompts if prompt in self._new_signatures]
        old = ",".join(str(prompt) for prompt in prompts if prompt not in self._new_signatures)
        found = self._database.execute(f"SELECT signature FROM signatures WHERE prompt IN ({old})") if old else ()
        blobs = b"".join(row[0] for row in found)
        return np.concatenate([np.frombuffer(blobs, np.uint32), *new]).reshape(-1, NUM_HASHES)

    def _latest(self, band: int) -> list[int]:
        """The latest prompts in a band."""
        new = self._new_bands.get(band, [])[-_MAX_CANDIDATES:]
        if (room := _MAX_CANDIDATES - len(new)) == 0:
            return new
        lookup = f"SELECT prompt FROM bands WHERE hash = ? ORDER BY prompt DESC LIMIT {room}"
        return new + [row[0] for row in self._database.execute(lookup, (band,))]

    def _write_prompts(self) -> None:
        signatures = ((prompt, signature.tobytes()) for prompt, signature in self._new_signatures.items())
        self._database.executemany("INSERT INTO signatures VALUES (?, ?)", signatures)
        rows = ((band, prompt) for band in sorted(self._new_bands) for prompt in self._new_bands[band])
        self._database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", rows)
        self._new_signatures.clear()
        self._new_bands.clear()


def _signed(hashes: NDArray[np.uint64]) -> list[int]:
    # SQLite's integers are signed.
    signed: list[int] = hashes.view(np.int64).tolist()
    return signed


def _slots(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hashes >> np.uint64(_SHIFT)).astype(np.int64)
