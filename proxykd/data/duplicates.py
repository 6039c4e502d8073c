"""Exact duplicates, near duplicates and overlap over a whole corpus, with the sets kept on disk.

The sets are tables of integers in a temporary database; in memory are one row, the page cache and one filter of
fixed size. Near duplicates are found by locality-sensitive hashing: a prompt is compared by its MinHash signature
with the earlier prompts that share a band with it (``proxykd.data.quality`` has the equations).
"""

import sqlite3

import numpy as np
from numpy.typing import NDArray

from proxykd.data.quality import (
    NUM_HASHES,
    choose_rows_per_band,
    hash_bands,
    hash_word_runs,
    minhash,
    shingles_of,
    similarity,
)
from proxykd.records import hash_json

_TABLES = """
    CREATE TABLE pairs (hash INTEGER PRIMARY KEY);
    CREATE TABLE evaluation_runs (hash INTEGER PRIMARY KEY);
    CREATE TABLE signatures (prompt INTEGER PRIMARY KEY, signature BLOB NOT NULL);
    CREATE TABLE bands (hash INTEGER, prompt INTEGER, PRIMARY KEY (hash, prompt)) WITHOUT ROWID;
"""

_FILTER_BITS = 22
_MAX_CANDIDATES = 32


class CorpusIndex:
    """What earlier rows and the evaluation prompts said.

    Args:
        database: Empty and temporary; the index makes its tables there.
        near_duplicate_threshold: Similarity in [0, 1] from which on two prompts are near duplicates; 1 = only those
            whose sets of shingles are the same.
        overlap_ngram: Words in a run that two texts must share to overlap.
    """

    def __init__(self, database: sqlite3.Connection, *, near_duplicate_threshold: float, overlap_ngram: int) -> None:
        self._database = database
        self._threshold, self._overlap_ngram = near_duplicate_threshold, overlap_ngram
        self._rows_per_band = choose_rows_per_band(near_duplicate_threshold)
        self._filter = np.zeros(2**_FILTER_BITS, np.bool_)
        for statement in filter(str.strip, _TABLES.split(";")):
            database.execute(statement)

    def add_pair(self, question: str, text: str) -> bool:
        """Remember a prompt and its completion; whether both occurred before, but for their white space."""
        key = int(hash_json([question.split(), text.split()], length=16), 16) - 2**63
        return not self._database.execute("INSERT OR IGNORE INTO pairs VALUES (?)", (key,)).rowcount

    def add_question(self, question: str) -> bool:
        """Whether a prompt nearly equals an earlier one; remembered if it does not.

        A chain of ever smaller changes is thus cut where it leaves the neighbourhood of its first prompt. At most
        ``32`` earlier prompts a band are compared, so that time stays linear in a corpus made from one template.
        """
        shingles = shingles_of(question)
        if self._threshold >= 1.0:  # equal sets, not merely equal signatures
            return self.add_pair("", " ".join(map(str, shingles.tolist())))
        signature = minhash(shingles)
        bands = _signed(hash_bands(signature, self._rows_per_band))
        if np.any(similarity(signature, self._candidates(bands)) >= self._threshold):
            return True
        prompt = self._database.execute(
            "INSERT INTO signatures (signature) VALUES (?)", (signature.tobytes(),)
        ).lastrowid
        self._database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", ((band, prompt) for band in bands))
        return False

    def add_evaluation(self, question: str) -> None:
        """Remember the word runs of an evaluation prompt; one shorter than a run has none."""
        runs = hash_word_runs(question, self._overlap_ngram)
        self._filter[_slots(runs)] = True
        rows = ((run,) for run in _signed(runs))
        self._database.executemany("INSERT OR IGNORE INTO evaluation_runs VALUES (?)", rows)

    def overlaps(self, text: str) -> bool:
        """Whether ``text`` shares a run of words with an evaluation prompt."""
        runs = hash_word_runs(text, self._overlap_ngram)
        suspects = runs[self._filter[_slots(runs)]]
        lookup = "SELECT 1 FROM evaluation_runs WHERE hash = ?"
        return any(self._database.execute(lookup, (run,)).fetchone() for run in _signed(suspects))

    def _candidates(self, bands: list[int]) -> NDArray[np.uint32]:
        lookup = f"SELECT prompt FROM bands WHERE hash = ? ORDER BY prompt DESC LIMIT {_MAX_CANDIDATES}"
        prompts = {row[0] for band in bands for row in self._database.execute(lookup, (band,))}
        load = f"SELECT signature FROM signatures WHERE prompt IN ({','.join(map(str, prompts))})"
        blobs = b"".join(row[0] for row in self._database.execute(load))
        return np.frombuffer(blobs, np.uint32).reshape(-1, NUM_HASHES)


def _signed(hashes: NDArray[np.uint64]) -> list[int]:
    # SQLite's integers are signed.
    return [int(value) for value in hashes.view(np.int64)]


def _slots(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)
