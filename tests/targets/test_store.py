"""The target store: what goes in comes out, bit for bit, and damage never goes unnoticed."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.artifacts import Targets, read_json, seal, write_json
from proxykd.exceptions import ArtifactError, ShapeError
from proxykd.targets.codec import Positions, decode, encode
from proxykd.targets.reader import TargetReader
from proxykd.targets.writer import TargetWriter, Weigh

TOP_K, VOCAB = 3, 50


def positions(length: int, seed: int, *, vocab_size: int = VOCAB) -> Positions:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(TOP_K + 1), size=length).astype(np.float32)
    ids = np.stack([rng.choice(vocab_size, TOP_K, replace=False) for _ in range(length)]).astype(np.int32)
    return Positions(ids, np.log(probs[:, :TOP_K]), np.log(probs[:, TOP_K]))


def ones(logprobs: np.ndarray, lengths: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.ones(len(logprobs))


def write_store(folder: Path, lengths: list[int], *, shard_positions: int = 8, weigh: Weigh = ones) -> None:
    writer = TargetWriter(
        folder, scratch=folder.parent / "scratch", top_k=TOP_K, vocab_size=VOCAB, shard_positions=shard_positions
    )
    for seed, length in enumerate(lengths):
        writer.add(f"{seed:016x}", seed % 2, positions(length, seed), sequence_logprob=-float(seed))
    writer.finish(weigh, lambda: {"tokenizer": "abc"})


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12), shard_positions=st.integers(1, 40))
def test_any_sequence_of_samples_comes_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shard_positions: int
) -> None:
    folder = tmp_path_factory.mktemp("targets") / "store"
    write_store(folder, lengths, shard_positions=shard_positions)
    reader = TargetReader(folder)
    assert len(reader) == len(lengths)
    for seed in reversed(range(len(lengths))):
        found, expected = reader.get(f"{seed:016x}", seed % 2), positions(lengths[seed], seed)
        for name in Positions._fields:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert found.weight == 1.0


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.int32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(vocab_size: int, dtype: type) -> None:
    highest = Positions(
        np.array([[vocab_size - 1, 0]], np.int32), np.zeros((1, 2), np.float32), np.zeros(1, np.float32)
    )
    arrays = encode(highest, vocab_size=vocab_size)
    assert arrays["token_ids"].dtype == dtype
    np.testing.assert_array_equal(decode(arrays).token_ids, highest.token_ids)


def test_a_full_vocabulary_has_no_tail_and_keeps_its_minus_infinities() -> None:
    whole = Positions(
        np.array([[0, 1]], np.int32), np.array([[0.0, -np.inf]], np.float32), np.array([-np.inf], np.float32)
    )
    found = decode(encode(whole, vocab_size=2))
    np.testing.assert_array_equal(found.logprobs, whole.logprobs)
    np.testing.assert_array_equal(found.tail_logprob, whole.tail_logprob)


def test_a_shard_holds_no_more_positions_than_it_may_and_no_sample_is_split(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [3, 5, 1, 7, 9, 2], shard_positions=8)
    # 3 + 5 | 1 + 7 | 9 (longer than a shard: alone) | 2
    assert [shard["positions"] for shard in TargetReader(tmp_path / "store").description["shards"]] == [8, 8, 9, 2]


def test_weights_see_every_log_likelihood_and_length(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [2, 4, 6], weigh=lambda logprobs, lengths: logprobs + lengths)
    reader = TargetReader(tmp_path / "store")
    assert [reader.get(f"{seed:016x}", seed % 2).weight for seed in range(3)] == [2.0, 3.0, 4.0]


def test_the_store_says_what_it_is_and_can_be_sealed(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [2, 4])
    description = read_json(tmp_path / "store" / "targets.json")
    assert (description["top_k"], description["vocab_size"], description["num_positions"]) == (TOP_K, VOCAB, 6)
    assert description["tokenizer"] == "abc"
    seal(Targets(tmp_path / "store"))
    assert pq.read_table(tmp_path / "store" / "index.parquet").num_rows == 2
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_empty_store_can_be_opened(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [])
    assert len(TargetReader(tmp_path / "store")) == 0


def test_a_sample_without_a_target_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [2])
    with pytest.raises(ArtifactError, match="prompt ffff, sample 3"):
        TargetReader(tmp_path / "store").get("ffff", 3)


def test_a_truncated_shard_is_found_at_once(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [4, 4, 4])
    shard = tmp_path / "store" / "targets-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="targets-00001"):
        TargetReader(tmp_path / "store")


def test_a_shard_with_a_damaged_header_is_an_artifact_error(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [4])
    shard = tmp_path / "store" / "targets-00000.safetensors"
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(ArtifactError, match="targets-00000"):
        TargetReader(tmp_path / "store").get(f"{0:016x}", 0)


@pytest.mark.parametrize("name", ["targets-00000.safetensors", "index.parquet", "targets.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write_store(tmp_path / "store", [4])
    (tmp_path / "store" / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        TargetReader(tmp_path / "store")


def test_an_index_of_other_rows_or_another_format_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [4])
    description = read_json(tmp_path / "store" / "targets.json")
    write_json(tmp_path / "store" / "targets.json", {**description, "num_samples": 2})
    with pytest.raises(ArtifactError, match="expected 2 rows"):
        TargetReader(tmp_path / "store")
    write_json(tmp_path / "store" / "targets.json", {**description, "format": "other"})
    with pytest.raises(ArtifactError, match="other"):
        TargetReader(tmp_path / "store")


def test_two_samples_with_one_key_are_refused(tmp_path: Path) -> None:
    writer = TargetWriter(tmp_path / "store", scratch=tmp_path / "scratch", top_k=TOP_K, vocab_size=VOCAB)
    for _ in range(2):
        writer.add("aa", 0, positions(2, 0), sequence_logprob=0.0)
    writer.finish(ones, dict)
    with pytest.raises(ArtifactError, match="two rows"):
        TargetReader(tmp_path / "store")


def test_arrays_that_do_not_fit_are_refused() -> None:
    good = positions(2, 0)
    with pytest.raises(ShapeError, match="tail_logprob"):
        encode(good._replace(tail_logprob=good.tail_logprob[:1]), vocab_size=VOCAB)
    with pytest.raises(ShapeError, match="token ids in"):
        encode(good._replace(token_ids=good.token_ids + VOCAB), vocab_size=VOCAB)
