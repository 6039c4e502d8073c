"""The stage as a whole: prompts in order, one outcome each, nothing paid twice, clear ends."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import read_json
from proxykd.config.specification import RunSpec
from proxykd.exceptions import (
    ConfigError,
    InputError,
    StorageError,
    TeacherAuthError,
    TeacherError,
    TeacherUnreachableError,
)
from proxykd.records import Outcome
from proxykd.teacher.query import (
    check_inputs,
    collect_prompts,
    inputs_of,
    look_ahead_all,
    probe_teacher,
    query_teacher,
)

Make = Callable[..., RunSpec]
_ROWS = [{"prompt": f"question {number}"} for number in range(12)]


def _openai(endpoint: Any, **changes: Any) -> dict[str, Any]:
    return {"kind": "openai", "base_url": endpoint.url, "model": "gpt", "max_attempts": 2, **changes}


def _query(run: RunSpec, folder: Path, name: str = "completions") -> Any:
    prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / f"{name}-prompts")
    return query_teacher(prompts, run, journal_path=folder / "journal.sqlite", output=folder / name)


def test_answers_come_in_the_order_of_the_prompts_and_a_rerun_asks_nothing(
    endpoint: Any, make_run: Make, tmp_path: Path
) -> None:
    run = make_run(_openai(endpoint), _ROWS)
    completions = _query(run, tmp_path)
    assert [row.text for row in completions.rows()] == [f"QUESTION {number}" for number in range(12)]
    again = _query(run, tmp_path, "again")
    assert endpoint.asked.total() == 12
    assert again.hash == completions.hash
    completions.verify()


def test_every_ending_is_an_outcome_and_the_counts_add_up(endpoint: Any, make_run: Make, tmp_path: Path) -> None:
    script = {
        "question 1": (200, endpoint.chat("half a", "length")),
        "question 2": (200, endpoint.chat(None, "content_filter")),
        "question 3": (200, endpoint.chat(None, refusal="I cannot.")),
        "question 4": (200, endpoint.chat("")),
        "question 5": (400, {"error": {"message": "too long"}}),
        "question 6": (200, b"<html>"),
        "question 7": (503, b"down"),
    }
    endpoint.answer = lambda question: script.get(question, (200, endpoint.chat("fine")))
    price = {"input_usd_per_million": 100.0, "output_usd_per_million": 1000.0}
    completions = _query(make_run(_openai(endpoint, price=price, on_unanswered="fail_rows"), _ROWS), tmp_path)
    rows = list(completions.rows())
    named = ["ok", "truncated", "filtered", "refused", *["failed"] * 4, *["ok"] * 4]
    assert [row.outcome for row in rows] == [Outcome(name) for name in named]
    assert [row.text for row in rows[:5]] == ["fine", "half a", "", "I cannot.", ""]
    assert all((row.reason == "") == (row.outcome is Outcome.OK) for row in rows)
    summary = read_json(completions.path / "summary.json")
    assert summary["outcomes"] == {"ok": 5, "refused": 1, "truncated": 1, "filtered": 1, "failed": 4}
    assert sum(summary["outcomes"].values()) == summary["num_prompts"] * summary["num_samples"]
    # 9 answers with usage: 10 tokens in at 100 and 5 out at 1000 USD a million = 0.006 USD each.
    assert summary["cost_usd"] == pytest.approx(9 * 0.006)
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (90, 45)


@pytest.mark.parametrize("status", [404, 429, 500])
def test_a_passing_outage_ends_in_an_error_and_the_same_command_asks_what_is_missing(
    endpoint: Any, make_run: Make, tmp_path: Path, status: int
) -> None:
    down = ("question 3", "question 7")
    endpoint.answer = lambda question: (status, b"down") if question in down else (200, endpoint.chat("fine"))
    run = make_run(_openai(endpoint, max_attempts=1), _ROWS)
    with pytest.raises(TeacherError, match=rf"2 of 12 requests got no answer \(last reason: HTTP {status}: down\)"):
        _query(run, tmp_path)
    assert not (tmp_path / "completions" / "manifest.json").exists()
    endpoint.answer = lambda question: (200, endpoint.chat("late"))
    rows = list(_query(run, tmp_path, "again").rows())
    assert [row.text == "late" for row in rows] == [f"question {number}" in down for number in range(12)]
    assert {row.outcome for row in rows} == {Outcome.OK}
    assert endpoint.asked.total() == 12 + 2


def test_an_endpoint_that_is_down_stops_the_run_unless_its_rows_may_fail(
    endpoint: Any, make_run: Make, tmp_path: Path
) -> None:
    rows = [{"prompt": f"question {number}"} for number in range(60)]
    endpoint.answer = lambda question: (503, b"down")
    patient = {"max_attempts": 1, "concurrency": 4}
    with pytest.raises(TeacherError, match=r"no answer to 20 requests in a row .*HTTP 503: down.*answers .* are kept"):
        _query(make_run(_openai(endpoint, **patient), rows), tmp_path)
    assert endpoint.asked.total() <= 1 + 20 + 4  # the probe, the row, the calls in flight
    completions = _query(make_run(_openai(endpoint, on_unanswered="fail_rows", **patient), rows), tmp_path, "failing")
    assert read_json(completions.path / "summary.json")["outcomes"]["failed"] == 60


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, {"code": "invalid_api_key"}),
        (402, {}),
        (403, {}),
        (429, {"code": "insufficient_quota"}),
        (429, {"type": "insufficient_quota"}),
    ],
)
@pytest.mark.parametrize("on_unanswered", ["stop", "fail_rows"])
def test_a_key_or_credit_that_ends_on_the_way_stops_the_run_and_is_never_shown(
    endpoint: Any,
    make_run: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: int,
    error: dict[str, str],
    on_unanswered: str,
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-secret/1")
    body = {"error": {"message": "the key sk-secret/1 is spent", **error}}
    bodies = [json.dumps(body).encode(), json.dumps(body).replace("/", "\\/").encode()]
    endpoint.answer = lambda question: (
        (status, bodies[endpoint.asked.total() % 2]) if endpoint.asked.total() > 5 else (200, endpoint.chat("fine"))
    )
    teacher = _openai(endpoint, api_key="${TEACHER_KEY}", concurrency=1, on_unanswered=on_unanswered)
    run = make_run(teacher, _ROWS)
    with pytest.raises(TeacherError, match=rf"HTTP {status}.* run the same command again") as caught:
        _query(run, tmp_path)
    assert endpoint.asked.total() == 6
    assert "secret" not in str(caught.value) + "".join(capfd.readouterr())
    assert b"sk-secret" not in (tmp_path / "journal.sqlite").read_bytes()
    endpoint.answer = lambda question: (200, endpoint.chat("fine"))
    assert {row.outcome for row in _query(run, tmp_path, "again").rows()} == {Outcome.OK}
    assert endpoint.asked.total() == 6 + 7


def test_a_moderated_prompt_is_filtered_and_stops_nobody(endpoint: Any, make_run: Make, tmp_path: Path) -> None:
    flagged = {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["x"], "flagged_input": "..."}}}
    endpoint.answer = lambda question: (403, flagged) if question == "question 3" else (200, endpoint.chat("fine"))
    run = make_run(_openai(endpoint), _ROWS)
    assert [row.outcome for row in _query(run, tmp_path).rows()][2:5] == [Outcome.OK, Outcome.FILTERED, Outcome.OK]
    _query(run, tmp_path, "again")
    assert endpoint.asked.total() == 12


def test_rows_that_may_fail_are_still_asked_again(endpoint: Any, make_run: Make, tmp_path: Path) -> None:
    endpoint.answer = lambda question: (500, b"") if question == "question 3" else (200, endpoint.chat("fine"))
    run = make_run(_openai(endpoint, on_unanswered="fail_rows"), _ROWS)
    assert read_json(_query(run, tmp_path).path / "summary.json")["outcomes"]["failed"] == 1
    endpoint.answer = lambda question: (200, endpoint.chat("late"))
    assert [row.text for row in _query(run, tmp_path, "again").rows()][2:5] == ["fine", "late", "fine"]
    assert endpoint.asked.total() == 12 + 1 + 1


def test_several_samples_are_several_calls_with_seeds_of_their_own(
    endpoint: Any, make_run: Make, tmp_path: Path
) -> None:
    rows = list(_query(make_run(_openai(endpoint, sampling={"num_samples": 3}), _ROWS), tmp_path).rows())
    assert [row.sample_idx for row in rows[:4]] == [0, 1, 2, 0]
    assert endpoint.asked["question 0"] == 3
    assert len({body["seed"] for body in endpoint.bodies}) == len({row.request_hash for row in rows}) == 36


@pytest.mark.parametrize(("status", "error"), [(401, TeacherAuthError), (403, TeacherAuthError), (404, TeacherError)])
def test_an_unusable_endpoint_costs_one_call_and_no_secret(
    endpoint: Any,
    make_run: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    error: type[TeacherError],
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    endpoint.answer = lambda _: (status, {"error": {"message": "bad key sk-secret"}})
    run = make_run(_openai(endpoint, api_key="${TEACHER_KEY}"), _ROWS)
    with pytest.raises(error) as caught:
        _query(run, tmp_path)
    assert endpoint.asked.total() == 1
    assert endpoint.secrets == {"Bearer sk-secret"}
    assert endpoint.url in str(caught.value)
    assert "sk-secret" not in str(caught.value)
    assert b"sk-secret" not in (tmp_path / "journal.sqlite").read_bytes()


def test_a_dead_endpoint_is_told_after_one_call(make_run: Make, tmp_path: Path) -> None:
    run = make_run({"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "gpt"}, _ROWS)
    with pytest.raises(TeacherUnreachableError, match=r"http://127\.0\.0\.1:9/v1.*check teacher\.base_url"):
        _query(run, tmp_path)


def test_a_missing_key_is_told_before_any_call(endpoint: Any, make_run: Make, tmp_path: Path) -> None:
    run = make_run(_openai(endpoint, api_key="${TEACHER_KEY_THAT_IS_UNSET}"), _ROWS)
    with pytest.raises(ConfigError, match="TEACHER_KEY_THAT_IS_UNSET"):
        _query(run, tmp_path)
    assert endpoint.asked.total() == 0


def test_a_probe_is_one_call_that_is_kept(endpoint: Any, make_run: Make, tmp_path: Path) -> None:
    run = make_run(_openai(endpoint), _ROWS)
    for _ in range(2):
        probe_teacher(run, journal_path=tmp_path / "journal.sqlite")
    assert endpoint.asked.total() == 1


def test_looking_ahead_counts_what_the_journal_has_and_asks_nothing(
    endpoint: Any, make_run: Make, tmp_path: Path
) -> None:
    run, journal = make_run(_openai(endpoint), _ROWS), tmp_path / "journal.sqlite"
    prompts = collect_prompts(run.prompts, seed=run.seed, output=tmp_path / "prompts")
    first = next(iter(prompts.rows()))
    outlook = look_ahead_all(prompts, run, journal_path=journal)[-1]
    assert (outlook.num_requests, outlook.num_known, outlook.first_unknown) == (12, 0, (first, 0))
    assert (endpoint.asked.total(), journal.exists()) == (0, False)
    probe_teacher(run, journal_path=journal, prompt=first)
    outlook = look_ahead_all(prompts, run, journal_path=journal)[-1]
    assert (outlook.num_known, outlook.first_unknown and outlook.first_unknown[0]) == (1, list(prompts.rows())[1])
    query_teacher(prompts, run, journal_path=journal, output=tmp_path / "completions")
    assert endpoint.asked.total() == 12
    assert look_ahead_all(prompts, run, journal_path=journal)[-1][1:3] == (12, None)


def test_a_recorded_teacher_makes_no_calls(make_run: Make, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "A"}, {"prompt": "b", "completion": " "}, {"prompt": "c", "completion": "C"}]
    run = make_run({"kind": "recorded", "model": "gpt-4"}, rows)
    probe_teacher(run, journal_path=tmp_path / "journal.sqlite")
    completions = _query(run, tmp_path)
    found = list(completions.rows())
    assert [(row.outcome, row.text) for row in found] == [
        (Outcome.OK, "A"),
        (Outcome.FAILED, ""),
        (Outcome.OK, "C"),
    ]
    assert {row.model for row in found} == {"gpt-4"}
    assert not (tmp_path / "journal.sqlite").exists()
    assert read_json(completions.path / "summary.json")["outcomes"]["failed"] == 1


@pytest.mark.parametrize("changed", [{"prompt": "b", "completion": "B"}, {"prompt": "a", "completion": "B"}])
def test_a_recorded_file_that_changed_is_refused(make_run: Make, tmp_path: Path, changed: dict[str, str]) -> None:
    run = make_run({"kind": "recorded"}, [{"prompt": "a", "completion": "A"}])
    prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / "prompts")
    (tmp_path / "rows.jsonl").write_text(json.dumps(changed) + "\n")
    with pytest.raises(InputError, match="the data has changed"):
        query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=tmp_path / "completions")


def test_prompts_that_changed_since_the_plan_are_refused(make_run: Make, tmp_path: Path) -> None:
    run = make_run({"kind": "recorded"}, [{"prompt": "a", "completion": "A"}])
    planned = inputs_of(collect_prompts(run.prompts, seed=0, output=tmp_path / "planned"))
    path = tmp_path / "rows.jsonl"
    assert planned == hashlib.sha256(path.read_bytes()).hexdigest()
    check_inputs(collect_prompts(run.prompts, seed=0, output=tmp_path / "same"), planned)
    path.write_text(json.dumps({"prompt": "a", "completion": "B"}) + "\n")
    with pytest.raises(InputError, match="changed meanwhile; run the same command again"):
        check_inputs(collect_prompts(run.prompts, seed=0, output=tmp_path / "changed"), planned)


def test_generated_prompts_are_checked_by_their_own_hash(make_run: Make, tmp_path: Path) -> None:
    run = make_run({"kind": "embedded"})
    prompts = collect_prompts(run.prompts, seed=1, output=tmp_path / "one")
    assert inputs_of(prompts) == prompts.hash
    check_inputs(prompts, prompts.hash)
    with pytest.raises(InputError, match="planned with"):
        check_inputs(collect_prompts(run.prompts, seed=2, output=tmp_path / "two"), prompts.hash)


def test_a_journal_that_cannot_be_opened_is_told(endpoint: Any, make_run: Make, tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(StorageError, match="expected a journal"):
        _query(make_run(_openai(endpoint), _ROWS), tmp_path)
    assert endpoint.asked.total() == 0


def test_the_embedded_generator_is_an_artifact_that_the_seed_decides(make_run: Make, tmp_path: Path) -> None:
    run = make_run({"kind": "embedded"})
    first, same, other = (
        collect_prompts(run.prompts, seed=seed, output=tmp_path / str(idx)) for idx, seed in enumerate((1, 1, 2))
    )
    assert first.num_rows == 30
    assert first.hash == same.hash != other.hash
