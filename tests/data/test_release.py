"""Released rows: they teach in spite of their findings, and a list that does not fit stops the run."""

import json
from pathlib import Path

import pytest

from proxykd.artifacts import CompletionSet, PromptSet, QuarantineSet, ValidatedSet, seal
from proxykd.config import DataSplitSpec, ValidationSpec
from proxykd.data.judging import Environment, JudgedRow, judge
from proxykd.data.quality import Verdict
from proxykd.data.quarantine import build_quarantine
from proxykd.data.release import Release, append_release, check_files, read_releases
from proxykd.exceptions import InputError
from proxykd.records import Completion, Message, Outcome, Prompt, ValidatedRow

TEXTS = ["A useful text.", "I'm sorry, but I can't do that.", "", "I'm sorry, but I can't <b>go</b>."]
PROMPTS = [Prompt.build([Message("user", f"question {idx}")]) for idx in range(len(TEXTS))]


def judge_texts(folder: Path, release: Path | None) -> list[JudgedRow]:
    prompts, completions = PromptSet(folder / "prompts"), CompletionSet(folder / "completions")
    prompts.write(PROMPTS)
    completions.write(
        Completion(prompt.prompt_id, 0, Outcome.OK, "", text, "stop", 0, 0, 0.0, "teacher", "hash")
        for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    )
    spec = ValidationSpec(release=release)
    return list(judge(prompts, completions, spec, DataSplitSpec(), Environment(folder / "scratch")))


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps({"by": "Ann", "reason": "a quote", **line}) + "\n" for line in lines))
    return path


def test_a_released_row_teaches_and_keeps_its_findings(tmp_path: Path) -> None:
    listed = write(tmp_path / "release.jsonl", {"prompt_id": PROMPTS[1].prompt_id, "sample_idx": 0})
    rows = [judged.row for judged in judge_texts(tmp_path, listed)]
    assert [row.verdict for row in rows] == ["keep", "keep", "empty", "refused"]
    assert [row.released for row in rows] == ["", "Ann: a quote", "", ""]
    assert [found.rule for found in rows[1].findings] == ["refused"]


def test_a_release_without_a_sample_is_for_all_of_them(tmp_path: Path) -> None:
    listed = write(tmp_path / "release.jsonl", {"prompt_id": PROMPTS[3].prompt_id})
    assert judge_texts(tmp_path, listed)[3].row.released == "Ann: a quote"


def test_samples_without_a_text_are_passed_over_if_another_has_one(tmp_path: Path) -> None:
    listed = read_releases(write(tmp_path / "release.jsonl", {"prompt_id": "a" * 16}))
    found = [listed.find("a" * 16, idx, verdict) for idx, verdict in enumerate((Verdict.FAILED, Verdict.REFUSED))]
    assert found == ["", "Ann: a quote"]
    listed.require_all_used()


def test_releasing_a_row_that_nothing_drops_changes_nothing(tmp_path: Path) -> None:
    listed = write(tmp_path / "release.jsonl", {"prompt_id": PROMPTS[0].prompt_id})
    assert [judged.row for judged in judge_texts(tmp_path, listed)] == [
        judged.row for judged in judge_texts(tmp_path / "without", None)
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt_id": "f" * 16}, "rows that this run does not have .1 in all; line 1: ffff"),
        ({"prompt_id": PROMPTS[1].prompt_id, "sample_idx": 7}, "rows that this run does not have"),
        ({"prompt_id": PROMPTS[2].prompt_id, "sample_idx": 0}, "which is empty and has no text to teach"),
        ({"prompt_id": PROMPTS[2].prompt_id}, "no sample of which has a text to teach .1 in all; line 1"),
        ({"prompt_id": "short"}, r'expected \{"prompt_id": .* on line 1'),
        ({"prompt_id": "f" * 16, "by": ""}, "on line 1"),
        ({"prompt_id": "f" * 16, "why": "?"}, "on line 1"),
    ],
)
def test_a_list_that_does_not_fit_stops_the_run(tmp_path: Path, line: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge_texts(tmp_path, write(tmp_path / "release.jsonl", line))


def test_a_row_is_named_once(tmp_path: Path) -> None:
    line = {"prompt_id": "f" * 16}
    with pytest.raises(InputError, match="the same row on lines 1 and 2"):
        read_releases(write(tmp_path / "release.jsonl", line, line))


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path, release = tmp_path / "new" / "release.jsonl", Release(prompt_id="a" * 16, sample_idx=1, by="Ann", reason="é")
    append_release(path, release)
    assert read_releases(path).names("a" * 16, 1)
    assert not read_releases(path).names("a" * 16, None)
    with pytest.raises(InputError, match="already"):
        append_release(path, release)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1e", "\n", "\r"])
def test_a_reason_with_any_line_break_can_be_read_again(tmp_path: Path, character: str) -> None:
    path = tmp_path / "releases.jsonl"
    for number in range(2):
        append_release(path, Release(prompt_id=f"{number:016x}", by="Ana", reason=f"checked{character}by hand"))
    found = read_releases(path)
    assert found.find("0" * 16, 0, Verdict.TOO_SHORT) == f"Ana: checked{character}by hand"
    assert found.names(f"{1:016x}", None)


def test_a_line_is_added_after_a_last_one_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "releases.jsonl"
    for number in range(2):
        append_release(path, Release(prompt_id=f"{number:016x}", by="Ana", reason="checked"))
        path.write_text(path.read_text().rstrip("\n"))
    assert all(read_releases(path).names(f"{number:016x}", None) for number in range(2))


def test_files_are_checked_before_anything_is_spent(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for spec in (
        ValidationSpec(release=missing),
        ValidationSpec(evaluation_files=(missing,)),
        ValidationSpec(refusal_model=missing),
    ):
        with pytest.raises(InputError, match="missing"):
            check_files(spec)
    check_files(ValidationSpec())


def test_the_quarantine_holds_exactly_the_rows_that_may_not_teach(tmp_path: Path) -> None:
    rows, validated = [judged.row for judged in judge_texts(tmp_path, None)], ValidatedSet(tmp_path / "validated")
    validated.write(rows)
    seal(validated)
    quarantine: QuarantineSet = build_quarantine(validated, output=tmp_path / "quarantine")
    quarantine.verify()
    dropped: list[ValidatedRow] = [row for row in rows if row.verdict != "keep"]
    assert list(quarantine.rows()) == dropped
    lines = [json.loads(line) for line in (quarantine.path / "rows.jsonl").read_text().splitlines()]
    assert [(line["prompt_id"], line["verdict"]) for line in lines] == [(r.prompt_id, r.verdict) for r in dropped]
    page = (quarantine.path / "index.html").read_text()
    assert all(row.prompt_id in page for row in dropped)
    assert "&lt;b&gt;go&lt;/b&gt;" in page
    assert "<b>go</b>" not in page
    assert "http" not in page
