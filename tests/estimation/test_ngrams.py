"""N-gram counts on disk: the same whatever the order of the corpus, whole or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.config.prior import PriorSpec
from proxykd.data.tokenizing import Example
from proxykd.estimation.ngrams import NgramCounts
from proxykd.estimation.prior import prior_rows
from proxykd.exceptions import ArtifactError, InputError

pytestmark = pytest.mark.integration  # what is tested is compiled first


def example(prompt: list[int], completion: list[int], number: int = 0) -> Example:
    return Example(f"{number:016x}", 0, np.array(prompt, np.int32), np.array(completion, np.int32))


CORPUS = [example([9, 1], [2, 3, 2, 3, 4], 0), example([1], [2, 3, 4], 1), example([9, 1], [2, 3, 2, 3, 4], 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    NgramCounts.build(CORPUS, 3, tmp_path / "counts")
    return tmp_path / "counts"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(CORPUS), chunk=st.sampled_from([1, 1000]))
def test_neither_order_nor_repetition_of_the_work_changes_a_byte(
    order: list[Example], chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ngrams")
    NgramCounts.build(iter(order), 3, folder / "permuted", chunk_positions=chunk)
    NgramCounts.build(CORPUS, 3, folder / "given", chunk_positions=chunk)
    assert contents(folder / "permuted") == contents(folder / "given")


def test_what_was_built_can_be_opened_elsewhere_and_leaves_nothing_behind(folder: Path) -> None:
    counts = NgramCounts.open(folder)
    assert (counts.order, counts.num_tokens, counts.num_examples) == (3, 13, 3)
    assert sorted(contents(folder)) == ["contexts.npy", "entries.npy", "examples.npy", "ngrams.json", "roots.npy"]
    assert [path.name for path in folder.parent.iterdir()] == ["counts"]
    with pytest.raises(ValueError, match="read-only"):
        counts.trie.contexts[0, 0] = 1


def test_building_again_replaces_what_was_there(folder: Path) -> None:
    NgramCounts.build(CORPUS[:1], 1, folder)
    assert NgramCounts.open(folder).num_examples == 1


def test_a_failed_count_leaves_the_old_one(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(InputError, match="negative"):
        NgramCounts.build([example([1], [2, -5])], 2, folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["counts"]


@pytest.mark.parametrize("examples", [[], [example([1, 2], [])]], ids=["no example", "no completion"])
def test_an_empty_corpus_is_refused(examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        NgramCounts.build(examples, 2, tmp_path / "counts")
    assert not list(tmp_path.iterdir())


def test_a_negative_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="order >= 0"):
        NgramCounts.build(CORPUS, -1, tmp_path / "counts")


@pytest.mark.parametrize("name", ["contexts", "entries", "roots", "examples"])
@pytest.mark.parametrize("damage", ["missing", "short", "changed", "other type"])
def test_a_damaged_array_is_refused_by_its_name(folder: Path, name: str, damage: str) -> None:
    path = folder / f"{name}.npy"
    data = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "short":
            path.write_bytes(data[:-4])
        case "changed":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case _:
            np.save(path, np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match=rf"{name}\.npy.*count them again"):
        NgramCounts.open(folder)


def test_another_format_and_another_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    description = json.loads((folder / "ngrams.json").read_text())
    (folder / "ngrams.json").write_text(json.dumps(description | {"format": "ngrams-0"}))
    with pytest.raises(ArtifactError, match="ngrams-0"):
        NgramCounts.open(folder)
    del description["arrays"]["roots"]
    (folder / "ngrams.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match="roots"):
        NgramCounts.open(folder)
    with pytest.raises(ArtifactError):
        NgramCounts.open(tmp_path)


def test_an_example_counted_with_other_tokens_is_refused(folder: Path) -> None:
    counts = NgramCounts.open(folder)
    assert counts.is_counted(CORPUS[1])
    assert not counts.is_counted(example([1], [2, 3, 4], 77))
    with pytest.raises(InputError, match="other tokens"):
        prior_rows(counts, example([1], [2, 3], 1), PriorSpec(order=2))


def test_a_context_never_crosses_two_examples_and_prompts_are_not_counted(tmp_path: Path) -> None:
    counts = NgramCounts.build([example([7], [5], 0), example([], [6, 6], 1)], 2, tmp_path / "counts")
    asked = prior_rows(counts, example([], [5, 6], 99), PriorSpec(order=2, gamma=1.0))
    # Nothing begins with 5 inside one example: after it stands what the whole corpus has, 6 twice and 5 once.
    assert asked.orders.tolist() == [0, 0]
    assert asked.token_ids[1, :3].tolist() == [6, 5, -1]
    np.testing.assert_allclose(asked.probs[1, :2], [2 / 3, 1 / 3])
