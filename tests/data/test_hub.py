"""Hugging Face datasets: folders of data files and of save_to_disk give their rows; faults are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from proxykd.config.prompts import HuggingFacePromptsSpec
from proxykd.data.hub import identity_of
from proxykd.data.prompts import hash_inputs, iter_recorded, load_prompts
from proxykd.exceptions import InputError

ROWS = [{"prompt": f"q{idx}", "completion": f"a{idx}", "gold": idx} for idx in range(5)]


@pytest.fixture(params=["data files", "saved", "saved splits"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same five rows of the split "train" in each shape."""
    folder = tmp_path / "dataset"
    if request.param == "data files":
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return folder
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict({"train": saved}) if request.param == "saved splits" else saved).save_to_disk(folder)
    return folder


def spec_of(source: Path | str, **changes: Any) -> HuggingFacePromptsSpec:
    return HuggingFacePromptsSpec.model_validate({"source": str(source), **changes})


def test_rows_of_a_folder_come_in_order(source: Path, tmp_path: Path) -> None:
    spec = spec_of(source, template="{{ prompt }}?", reference_field="gold", limit=3)
    prompts = list(load_prompts(spec, output=tmp_path / "out").rows())
    assert [(p.messages[0].content, p.reference) for p in prompts] == [("q0?", "0"), ("q1?", "1"), ("q2?", "2")]
    assert [p.source for p in prompts] == ["dataset:1", "dataset:2", "dataset:3"]
    assert [text for _, text in iter_recorded(spec_of(source), "completion")] == [row["completion"] for row in ROWS]


def test_a_column_or_a_split_that_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset, row 1: expected the field 'promt', found .*mean 'prompt'"):
        load_prompts(spec_of(source, prompt_field="promt"), output=tmp_path / "out")
    if not (source / "state.json").exists():  # what holds one table holds one split of no name
        with pytest.raises(InputError, match="split 'test'"):
            load_prompts(spec_of(source, split="test"), output=tmp_path / "out")


def test_the_identity_of_a_folder_is_its_content(source: Path) -> None:
    spec = spec_of(source)
    before = identity_of(spec), hash_inputs(spec)
    assert (identity_of(spec), hash_inputs(spec)) == before
    (source / ".hidden").write_text("x")
    assert identity_of(spec) == before[0]
    (source / "more.txt").write_text("x")
    assert identity_of(spec) != before[0]
    assert hash_inputs(spec_of(source, split="test")) != hash_inputs(spec)


def test_a_commit_is_its_own_identity_and_nobody_is_asked() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert identity_of(spec_of("owner/name", revision=commit)) == f"commit:{commit}"


def test_a_folder_has_no_revision(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no prompts\.revision"):
        load_prompts(spec_of(source, revision="main"), output=tmp_path / "out")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"correct prompts\.source"):
        load_prompts(spec_of(tmp_path / "empty"), output=tmp_path / "out")


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name of a dataset on the Hugging Face hub"):
        load_prompts(spec_of("not a/na/me"), output=tmp_path / "out")
