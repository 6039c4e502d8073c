"""The target store: what goes in comes out, within what the format says, and damage never goes unnoticed."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from proxykd.artifacts import Targets, read_json, seal, write_json
from proxykd.config.targets_store import TargetStoreSpec
from proxykd.exceptions import ArtifactError, ShapeError
from proxykd.targets.codec import Positions, check_positions
from proxykd.targets.reader import SparseTarget, TargetReader, read_targets, verify
from proxykd.targets.writer import TargetWriter, Weigh, merge

TOP_K, VOCAB = 4, 50
CODED = TargetStoreSpec(kind="coded", fit_positions=256)
COMPILED = pytest.mark.integration  # the coded format is compiled first
KINDS = [TargetStoreSpec(kind="plain"), pytest.param(CODED, marks=COMPILED)]


def positions(length: int, seed: int) -> Positions:
    """Random rows with tails; some are short, some have no tail."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(TOP_K + 1, 0.5), size=length).clip(1e-9)
    used = rng.integers(1, TOP_K + 1, size=length)[:, None] > np.arange(TOP_K)
    probs[:, :TOP_K] *= used
    probs[:, TOP_K] *= rng.random(length) < 0.7
    ids = np.stack([rng.choice(VOCAB, TOP_K, replace=False) for _ in range(length)])
    with np.errstate(divide="ignore"):
        logs = np.log(probs / probs.sum(1, keepdims=True)).astype(np.float32)
    return Positions(np.where(used, ids, -1).astype(np.int32), logs[:, :TOP_K], logs[:, TOP_K])


def ones(logprobs: np.ndarray, lengths: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.ones(len(logprobs))


def open_writer(folder: Path, store: TargetStoreSpec, **settings: object) -> TargetWriter:
    common = {"scratch": folder.parent / "scratch", "top_k": TOP_K, "vocab_size": VOCAB, "shard_positions": 40}
    return TargetWriter(folder, store=store, **{**common, **settings})  # type: ignore[arg-type]


def add(writer: TargetWriter, seed: int, length: int) -> None:
    writer.add(f"{seed:016x}", seed % 2, positions(length, seed), sequence_logprob=-float(seed))


def write_store(folder: Path, lengths: list[int], store: TargetStoreSpec, *, weigh: Weigh = ones) -> None:
    writer = open_writer(folder, store)
    for seed, length in enumerate(lengths):
        add(writer, seed, length)
    writer.finish(weigh, lambda: {"tokenizer": "abc"})


def assert_kept(found: SparseTarget, seed: int, length: int, max_kl: float) -> None:
    """The given tokens came back, none twice, and KL(given || kept) is within the bound at every position."""
    given = positions(length, seed)
    assert len(found.tail_logprob) == length
    for row in range(length):
        kept = dict(zip(found.token_ids[row].tolist(), found.logprobs[row].tolist(), strict=True))
        kept[-1] = float(found.tail_logprob[row])
        pairs = [*zip(given.token_ids[row].tolist(), given.logprobs[row].tolist(), strict=True)]
        pairs = [pair for pair in pairs if pair[0] >= 0] + [(-1, float(given.tail_logprob[row]))]
        assert {token for token, _ in pairs} == set(kept)
        kl = sum(np.exp(log) * (log - kept[token]) for token, log in pairs if log > -np.inf)
        assert -1e-6 < kl <= max_kl + 1e-6
        assert sum(np.exp(list(kept.values()))) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("store", KINDS, ids=lambda store: store.kind)
def test_any_sample_comes_back_in_any_order(tmp_path: Path, store: TargetStoreSpec) -> None:
    lengths = [*range(1, 40), 300]
    write_store(tmp_path / "store", lengths, store)
    reader = read_targets(tmp_path / "store")
    assert len(reader) == len(lengths)
    assert len(reader.description["shards"]) > 10
    for seed in reversed(range(len(lengths))):
        found = reader.get(f"{seed:016x}", seed % 2)
        assert_kept(found, seed, lengths[seed], store.max_kl if store.kind == "coded" else 0.0)
        if store.kind == "plain":
            for name in Positions._fields:
                np.testing.assert_array_equal(getattr(found, name), getattr(positions(lengths[seed], seed), name))
    assert verify(tmp_path / "store") == len(lengths)


@COMPILED
def test_another_process_reads_the_same(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [5, 9], CODED)
    code = (
        "import sys; from pathlib import Path; from proxykd.targets.reader import read_targets\n"
        "print(read_targets(Path(sys.argv[1])).get('0000000000000001', 1).logprobs.tobytes().hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert found == read_targets(tmp_path / "store").get("0000000000000001", 1).logprobs.tobytes().hex()


@COMPILED
def test_weights_see_every_log_likelihood_and_length(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [2, 4, 6], CODED, weigh=lambda logprobs, lengths: logprobs + lengths)
    reader = TargetReader(tmp_path / "store")
    assert [reader.get(f"{seed:016x}", seed % 2).weight for seed in range(3)] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("store", KINDS, ids=lambda store: store.kind)
def test_the_store_says_what_it_is_and_can_be_sealed(tmp_path: Path, store: TargetStoreSpec) -> None:
    write_store(tmp_path / "store", [2, 4], store)
    description = read_json(tmp_path / "store" / "targets.json")
    assert (description["top_k"], description["vocab_size"], description["num_positions"]) == (TOP_K, VOCAB, 6)
    assert description["tokenizer"] == "abc"
    if store.kind == "coded":
        assert 0.0 <= description["kl_mean"] <= description["kl_max"] <= store.max_kl
    seal(Targets(tmp_path / "store"))
    assert pq.read_table(tmp_path / "store" / "index.parquet").num_rows == 2
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("store", KINDS, ids=lambda store: store.kind)
def test_an_empty_store_can_be_opened(tmp_path: Path, store: TargetStoreSpec) -> None:
    write_store(tmp_path / "store", [], store)
    assert verify(tmp_path / "store") == 0


@COMPILED
def test_a_sample_without_a_target_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [2], CODED)
    with pytest.raises(ArtifactError, match="prompt ffff, sample 3"):
        TargetReader(tmp_path / "store").get("ffff", 3)


@pytest.mark.parametrize("store", KINDS, ids=lambda store: store.kind)
def test_any_changed_byte_of_any_file_is_found(tmp_path: Path, store: TargetStoreSpec) -> None:
    write_store(tmp_path / "store", [3, 7, 30, 2], store)
    seen = set()
    for path in sorted((tmp_path / "store").iterdir()):
        whole = path.read_bytes()
        for place in {*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}:
            if path.suffix == ".json" and whole[place : place + 1].isspace():
                continue  # white space means nothing in JSON
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            with pytest.raises(ArtifactError):
                verify(tmp_path / "store")
            seen.add(path.suffix)
        path.write_bytes(whole)
    assert seen == {".json", ".parquet", ".shard"} | ({".tables"} if store.kind == "coded" else set())
    assert verify(tmp_path / "store") == 4


@COMPILED
@pytest.mark.parametrize("pattern", ["*.shard", "*.tables", "index.parquet", "targets.json"])
@pytest.mark.parametrize("keep", [0, 0.5, None])
def test_a_missing_or_truncated_file_is_named(tmp_path: Path, pattern: str, keep: float | None) -> None:
    write_store(tmp_path / "store", [4], CODED)
    path = next((tmp_path / "store").glob(pattern))
    data = path.read_bytes()
    path.unlink() if keep is None else path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ArtifactError, match=path.stem):
        verify(tmp_path / "store")


@COMPILED
def test_a_store_of_another_tokenizer_format_or_description_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [4], CODED)
    description = read_json(tmp_path / "store" / "targets.json")
    read_targets(tmp_path / "store", {"tokenizer": "abc", "top_k": TOP_K})
    with pytest.raises(ArtifactError, match="tokenizer='xyz'"):
        read_targets(tmp_path / "store", {"tokenizer": "xyz"})
    with pytest.raises(ArtifactError, match="proxy="):
        read_targets(tmp_path / "store", {"proxy": "p"})
    write_json(tmp_path / "store" / "targets.json", {**description, "num_samples": 2})
    with pytest.raises(ArtifactError, match="checksum"):
        read_targets(tmp_path / "store")
    write_json(tmp_path / "store" / "targets.json", {**description, "format": "other"})
    with pytest.raises(ArtifactError, match="other"):
        read_targets(tmp_path / "store")


def test_shards_of_another_store_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "one", [4], KINDS[0])
    write_store(tmp_path / "two", [4], KINDS[0])
    shard = "targets-000-00000.shard"
    data = (tmp_path / "two" / shard).read_bytes()
    (tmp_path / "one" / shard).write_bytes(data)
    verify(tmp_path / "one")
    other = open_writer(tmp_path / "three", KINDS[0])
    other.add("0" * 16, 1, positions(4, 0), sequence_logprob=0.0)
    other.finish(ones, dict)
    shutil.copy(tmp_path / "three" / shard, tmp_path / "one" / shard)
    with pytest.raises(ArtifactError, match="not of one store"):
        TargetReader(tmp_path / "one").get("0" * 16, 0)


@pytest.mark.parametrize("place", [0, 8, 20], ids=["magic", "version", "header"])
def test_a_shard_that_cannot_be_read_is_found_when_the_store_is_opened(tmp_path: Path, place: int) -> None:
    """Not at the step that happens to need it: the last of several shards is as good as the first."""
    write_store(tmp_path / "store", [30, 30, 30], KINDS[0])
    shard = sorted((tmp_path / "store").glob("*.shard"))[-1]
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{shard.name}.*again"):
        TargetReader(tmp_path / "store")


def test_a_damaged_index_is_told_once_and_a_missing_description_says_what_to_do(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [3], KINDS[0])
    index, description = tmp_path / "store" / "index.parquet", tmp_path / "store" / "targets.json"
    data = index.read_bytes()
    index.write_bytes(data[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"^the index .* is damaged[^;]*; copy the store again$"):
        TargetReader(tmp_path / "store")
    index.write_bytes(data)
    description.unlink()
    with pytest.raises(ArtifactError, match=r"no targets can be read from .*; estimate them again$"):
        TargetReader(tmp_path / "store")


def test_a_store_knows_which_samples_it_has(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [3, 2], KINDS[0])
    reader = TargetReader(tmp_path / "store")
    assert (f"{1:016x}", 1) in reader
    assert (f"{1:016x}", 0) not in reader
    assert ("ffff", 0) not in reader


@COMPILED
def test_two_samples_with_one_key_are_refused(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "store", CODED)
    for _ in range(2):
        writer.add("aa", 0, positions(2, 0), sequence_logprob=0.0)
    writer.finish(ones, dict)
    with pytest.raises(ArtifactError, match="two rows"):
        TargetReader(tmp_path / "store")


@COMPILED
@pytest.mark.parametrize("shared", [False, True])
def test_workers_write_side_by_side_and_are_merged(tmp_path: Path, shared: bool) -> None:
    first, tables = open_writer(tmp_path / "store", CODED), None
    for seed in range(30):
        add(first, seed, 20)
    if shared:
        tables = next((tmp_path / "store").glob("*.tables"))
    second = open_writer(tmp_path / "store", CODED, worker=1, tables=tables)
    for seed in range(30, 60):
        add(second, seed, 20)
        add(first, seed + 100, 3)
    second.close()
    first.close()
    merge(tmp_path / "store", scratch=tmp_path / "scratch", weigh=ones, facts=lambda: {"tokenizer": "abc"})
    assert verify(tmp_path / "store", {"tokenizer": "abc"}) == 90
    assert len(list((tmp_path / "store").glob("*.tables"))) == (1 if shared else 2)
    for seed in range(60):
        assert_kept(read_targets(tmp_path / "store").get(f"{seed:016x}", seed % 2), seed, 20, CODED.max_kl)


@pytest.mark.parametrize("store", KINDS, ids=lambda store: store.kind)
@pytest.mark.parametrize("torn", [1, 13, 200])
def test_a_killed_writer_goes_on_after_its_last_whole_block(tmp_path: Path, store: TargetStoreSpec, torn: int) -> None:
    killed = open_writer(tmp_path / "store", store)
    for seed in range(40):
        add(killed, seed, 20)
    killed._end_shard()  # what the system does for a killed process; nothing is flushed
    last = sorted((tmp_path / "store").glob("*.shard"))[-1]
    last.write_bytes(last.read_bytes()[:-torn])
    with pytest.raises(ArtifactError, match="resume"):
        open_writer(tmp_path / "store", store)
    again = open_writer(tmp_path / "store", store, resume=True)
    there = [seed for seed in range(40) if (f"{seed:016x}", seed % 2) in again]
    assert there == list(range(len(there)))
    assert 36 <= len(there) < 40
    for seed in range(len(there), 50):
        add(again, seed, 20)
    again.finish(ones, dict)
    assert verify(tmp_path / "store") == 50
    with pytest.raises(ArtifactError, match="another folder"):
        open_writer(tmp_path / "store", store, resume=True, top_k=TOP_K + 1)


@COMPILED
def test_targets_that_are_no_distributions_are_refused(tmp_path: Path) -> None:
    good = positions(2, 0)
    writer = open_writer(tmp_path / "store", CODED)
    bad = {
        "tail_logprob": good._replace(tail_logprob=good.tail_logprob[:1]),
        "token ids in": good._replace(token_ids=good.token_ids + VOCAB),
        "got nan": good._replace(logprobs=np.full_like(good.logprobs, np.nan), token_ids=np.array([[0, 1, 2, 3]] * 2)),
        "add up to 1": good._replace(tail_logprob=np.zeros(2, np.float32)),
        "last in a row": good._replace(token_ids=np.array([[-1, 1, 2, 3]] * 2)),
        "distinct": good._replace(token_ids=np.array([[1, 1, 2, 3]] * 2), logprobs=np.full((2, 4), np.log(0.25))),
    }
    for reason, wrong in bad.items():
        with pytest.raises(ShapeError, match=reason):
            writer.add("aa", 0, wrong, sequence_logprob=0.0)
    with pytest.raises(ShapeError, match="text"):
        writer.add("aa", 0, good, sequence_logprob=0.0, text_ids=np.array([1, VOCAB]))


def test_narrow_rows_are_padded_and_wide_ones_refused() -> None:
    one = Positions(np.array([[7]]), np.array([[np.log(0.5)]]), np.array([np.log(0.5)]))  # type: ignore[arg-type]
    padded = check_positions(one, top_k=3, vocab_size=8)
    assert padded.token_ids.tolist() == [[7, -1, -1]]
    assert padded.logprobs[0, 1:].tolist() == [-np.inf, -np.inf]
    with pytest.raises(ShapeError):
        check_positions(padded, top_k=2, vocab_size=8)
