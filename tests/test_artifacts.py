"""Artifacts: sealed folders that notice every change, refuse code, and are written in bounded memory."""

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.artifacts import (
    MANIFEST,
    Artifact,
    CompletionSet,
    Evaluation,
    PromptSet,
    ProxyModel,
    SplitSet,
    batched,
    read_json,
    seal,
    write_json,
)
from proxykd.exceptions import ArtifactError
from proxykd.records import Message, Prompt, Side, SplitRow


def make(folder: Path, **files: str) -> Evaluation:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    evaluation = Evaluation(folder)
    seal(evaluation)
    return evaluation


def split_rows(count: int) -> Iterator[SplitRow]:
    return (SplitRow(f"{idx:016x}", Side.WARMUP) for idx in range(count))


def test_sealed_folder_verifies(tmp_path: Path) -> None:
    evaluation = make(tmp_path / "e", report="{}")
    evaluation.verify()
    assert list(evaluation.manifest["files"]) == ["report.json"]
    assert len(evaluation.hash) == 64


def test_hash_follows_content_kind_and_parents_and_not_the_place(tmp_path: Path) -> None:
    first = make(tmp_path / "one", report="{}")
    assert make(tmp_path / "two", report="{}").hash == first.hash
    hashes = {first.hash, make(tmp_path / "three", report="[]").hash, make(tmp_path / "four", other="{}").hash}
    proxy = ProxyModel(make(tmp_path / "five", report="{}").path)
    seal(proxy)
    hashes.add(proxy.hash)
    seal(first, {"prompts": "abc"})
    assert len({*hashes, first.hash}) == 5
    assert first.manifest["made_from"] == {"prompts": "abc"}


def test_sealing_again_changes_nothing(tmp_path: Path) -> None:
    evaluation = make(tmp_path / "e", report="{}")
    before = evaluation.manifest
    seal(evaluation)
    assert evaluation.manifest == before


def test_tampering_is_noticed_and_named(tmp_path: Path) -> None:
    evaluation = make(tmp_path / "e", report="{}", other="{}")
    (evaluation.path / "report.json").write_text("{ }")
    with pytest.raises(ArtifactError, match=r"differs from its manifest in \['report\.json'\]"):
        evaluation.verify()


def test_a_manifest_that_was_made_to_fit_is_noticed(tmp_path: Path) -> None:
    evaluation, other = make(tmp_path / "e", report="{}"), make(tmp_path / "other", report="[]")
    (evaluation.path / "report.json").write_text("[]")
    write_json(evaluation.path / MANIFEST, {**evaluation.manifest, "files": other.manifest["files"]})
    with pytest.raises(ArtifactError, match="not what was sealed"):
        evaluation.verify()


def test_missing_and_added_files_are_noticed(tmp_path: Path) -> None:
    evaluation = make(tmp_path / "e", report="{}")
    (evaluation.path / "sub").mkdir()
    (evaluation.path / "sub" / "more.json").write_text("{}")
    (evaluation.path / "report.json").unlink()
    with pytest.raises(ArtifactError, match=r"\['report\.json', 'sub/more\.json'\]"):
        evaluation.verify()


def test_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected a proxy artifact .*kind='evaluation'"):
        ProxyModel(make(tmp_path / "e", report="{}").path).verify()


@pytest.mark.parametrize("name", ["model.pkl", "model.bin", "model.pt", "run.py", "noext"])
def test_files_that_could_run_code_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ArtifactError, match=r"hold .* only"):
        seal(Artifact(tmp_path))
    assert not (tmp_path / "manifest.json").exists()


def test_unsealed_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected a JSON object in .*manifest\.json"):
        _ = Artifact(tmp_path).hash
    for content in ("{", "[1]"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ArtifactError, match="expected a JSON object"):
            _ = Artifact(tmp_path).manifest


def test_json_keeps_order_and_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "sub" / "a.json", {"b": "\u00e9", "a": 1})
    assert list(read_json(tmp_path / "sub" / "a.json").items()) == [("b", "\u00e9"), ("a", 1)]
    assert "\u00e9" in (tmp_path / "sub" / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [0, 1, 4, 5, 12, 13])
def test_rows_come_back_in_order_whatever_the_parts(tmp_path: Path, count: int) -> None:
    splits = SplitSet(tmp_path / str(count))
    splits.write(split_rows(count), rows_per_part=4, batch_rows=2)
    assert list(splits.rows()) == list(split_rows(count))
    assert splits.num_rows == count
    assert len(splits.parts()) == max(1, -(-count // 4))


def test_batches_can_be_small_and_of_some_columns(tmp_path: Path) -> None:
    splits = SplitSet(tmp_path)
    splits.write(split_rows(10), rows_per_part=4, batch_rows=4)
    batches = list(splits.batches(batch_rows=3, columns=["side"]))
    assert [batch.num_rows for batch in batches] == [3, 1, 3, 1, 2]
    assert batches[0].schema.names == ["side"]


def test_nested_records_come_back(tmp_path: Path) -> None:
    prompts = PromptSet(tmp_path)
    rows = [Prompt.build([Message("user", str(idx))], reference=None if idx % 2 else "r") for idx in range(5)]
    prompts.write(rows)
    assert list(prompts.rows()) == rows


def test_writing_holds_one_batch_of_rows(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            SplitSet(tmp_path / str(count)).write(split_rows(count), rows_per_part=1000, batch_rows=500)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # imports and caches
    assert peak(8000) < 1.3 * peak(2000)


def test_reading_holds_a_small_share_of_a_part(tmp_path: Path) -> None:
    rng = random.Random(0)  # text that does not compress
    prompts = PromptSet(tmp_path)
    prompts.write((Prompt.build([Message("user", rng.randbytes(1000).hex())]) for _ in range(4000)), batch_rows=100)
    size = prompts.parts()[0].stat().st_size
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in prompts.batches(batch_rows=100))
    assert peak < size / 8


def test_rows_are_taken_as_they_are_written(tmp_path: Path) -> None:
    taken = 0

    def rows() -> Iterator[SplitRow]:
        nonlocal taken
        for row in split_rows(100):
            assert taken < 10 or (tmp_path / "part-00000.parquet").exists()
            taken += 1
            yield row

    SplitSet(tmp_path).write(rows(), rows_per_part=20, batch_rows=10)
    assert taken == 100


@given(st.lists(st.integers(), max_size=30), st.integers(1, 7))
def test_batched_loses_nothing(items: list[int], size: int) -> None:
    batches = list(batched(items, size))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == size for batch in batches[:-1])


def test_an_empty_set_still_has_a_schema(tmp_path: Path) -> None:
    completions = CompletionSet(tmp_path)
    completions.write([])
    assert completions.num_rows == 0
    assert list(completions.rows()) == []
