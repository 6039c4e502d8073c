"""Corrections over a real endpoint: what is asked, what is paid, which trajectories come of it, what teaches."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxykd.artifacts import PromptSet, TrajectorySet, read_json, seal
from proxykd.config.specification import RunSpec
from proxykd.data.segments import render_trajectory, segment_spans
from proxykd.exceptions import BudgetError, ConfigError, InputError
from proxykd.records import Message, Prompt
from proxykd.teacher.trajectories import build_trajectories, read_attempts
from proxykd.trajectories import SegmentKind, Trajectory, TrajectoryEnd

Make = Callable[..., RunSpec]
EXACT = {"kind": "numeric"}
PARTS: dict[str, Any] = {"rows": [{"prompt": "unused"}], "verifier": EXACT, "corrections": {}}
QUESTIONS = [Prompt.build([Message("user", f"What is {n} + {n}?")], reference=str(2 * n)) for n in range(12)]
ASKS_FEEDBACK = "Do not write a corrected answer"


class Tutor:
    """Gives feedback, and an answer that is right once ``needed`` pieces of feedback were given on the question."""

    def __init__(self, chat: Callable[..., dict[str, Any]], needed: int = 1) -> None:
        self.chat, self.needed = chat, needed

    def __call__(self, request: str) -> tuple[int, Any]:
        number = int(re.findall(r"What is (\d+) \+", request)[0])
        if ASKS_FEEDBACK in request:
            step = int(re.findall(r"try (\d+)", request)[-1])
            return 200, self.chat(f"feedback {step}: the sum is off")
        step = int(re.findall(r"feedback (\d+)", request)[-1]) + 1
        return 200, self.chat(f"try {step}: {2 * number + (step < self.needed)}")


@pytest.fixture
def correct(endpoint: Any, make_run: Make, tmp_path: Path) -> Callable[..., TrajectorySet]:
    """Corrects ``attempts`` at the questions; ``teacher`` and other keys change the specification."""
    prompts = PromptSet(tmp_path / "prompts")
    prompts.write(QUESTIONS)
    seal(prompts)
    endpoint.answer = Tutor(endpoint.chat)

    def correct(
        attempts: list[tuple[str, str]],
        *,
        name: str = "out",
        teacher: dict[str, Any] | None = None,
        verifier: dict[str, Any] | None = None,
        **spec: Any,
    ) -> TrajectorySet:
        openai = {"kind": "openai", "base_url": endpoint.url, "model": "gpt", "max_attempts": 2, **(teacher or {})}
        run = make_run(openai, [{"prompt": "unused"}], verifier=verifier or EXACT, corrections=spec)
        return build_trajectories(
            prompts, attempts, run, journal_path=tmp_path / "journal.sqlite", output=tmp_path / name
        )

    return correct


def attempts_at(*, right: int, wrong: int) -> list[tuple[str, str]]:
    """Attempts at the first questions: ``wrong`` of them off by one, then ``right`` correct."""
    texts = [f"try 0: {2 * n + (n < wrong)}" for n in range(right + wrong)]
    return [(prompt.prompt_id, text) for prompt, text in zip(QUESTIONS, texts, strict=False)]


def kinds(row: Trajectory) -> str:
    return "".join(segment.kind[0] for segment in row.segments)


def test_wrong_attempts_are_corrected_and_right_ones_cost_nothing(correct: Any, endpoint: Any) -> None:
    rows = list(correct(attempts_at(right=2, wrong=3)).rows())
    assert [row.end for row in rows] == [TrajectoryEnd.IMPROVED] * 3 + [TrajectoryEnd.RIGHT] * 2
    assert [kinds(row) for row in rows] == ["afu"] * 3 + ["a"] * 2
    assert [row.prompt_id for row in rows] == [prompt.prompt_id for prompt in QUESTIONS[:5]]
    first = rows[0]
    assert [segment.text for segment in first.segments] == ["try 0: 1", "feedback 0: the sum is off", "try 1: 0"]
    assert [segment.weight for segment in first.segments] == [0.0, 1.5, 1.5]
    assert [segment.weight for segment in rows[-1].segments] == [1.0]
    assert endpoint.asked.total() == 6
    assert all("What is" in body["messages"][-1]["content"] for body in endpoint.bodies)


def test_rounds_go_on_until_an_update_is_right(correct: Any, endpoint: Any) -> None:
    endpoint.answer = Tutor(endpoint.chat, needed=2)
    trajectories = correct(attempts_at(right=0, wrong=2))
    row = next(trajectories.rows())
    assert (kinds(row), row.end) == ("afufu", TrajectoryEnd.IMPROVED)
    # The update that is still wrong is read, not learnt.
    assert [segment.weight for segment in row.segments] == [0.0, 1.5, 0.0, 1.5, 1.5]
    summary = read_json(trajectories.path / "summary.json")
    assert summary["improved_after_updates"] == {"1": 0, "2": 2, "3": 0}
    assert summary["requests"] == endpoint.asked.total() == 8
    assert summary["prompt_tokens"] == 80


def test_what_stays_wrong_or_unanswered_is_recorded_and_does_not_teach(correct: Any, endpoint: Any) -> None:
    tutor = Tutor(endpoint.chat, needed=9)

    def answer(request: str) -> tuple[int, Any]:
        return (200, endpoint.chat("half", "length")) if "What is 1 +" in request else tutor(request)

    endpoint.answer = answer
    trajectories = correct(attempts_at(right=0, wrong=2), rounds=2)
    stubborn, cut = trajectories.rows()
    assert (kinds(stubborn), stubborn.end, stubborn.is_kept) == ("afufu", TrajectoryEnd.WRONG, False)
    assert (kinds(cut), cut.end, cut.is_kept) == ("a", TrajectoryEnd.UNANSWERED, False)
    assert all(segment.weight == 0.0 for segment in stubborn.segments if segment.kind is not SegmentKind.FEEDBACK)
    assert read_json(trajectories.path / "summary.json")["ends"] == {
        "right": 0,
        "improved": 0,
        "wrong": 1,
        "unanswered": 1,
    }


def test_a_rerun_asks_nothing_and_gives_the_same_bytes(correct: Any, endpoint: Any) -> None:
    first = correct(attempts_at(right=3, wrong=4))
    asked = endpoint.asked.total()
    again = correct(attempts_at(right=3, wrong=4), name="again")
    assert endpoint.asked.total() == asked
    assert again.hash == first.hash
    again.verify()


@pytest.mark.parametrize(
    ("ratio", "right", "wrong", "kept_right"), [(1.5, 8, 3, 2), (3.0, 6, 2, 0), (0.5, 8, 2, 4), (1.0, 2, 6, 2)]
)
def test_the_balance_keeps_so_many_right_at_once_and_the_same_ones_in_any_order(
    correct: Any, ratio: float, right: int, wrong: int, kept_right: int
) -> None:
    attempts = attempts_at(right=right, wrong=wrong)
    rows = list(correct(attempts, improve_ratio=ratio).rows())
    kept = [row for row in rows if row.is_kept]
    assert sum(row.end is TrajectoryEnd.IMPROVED for row in kept) == wrong
    assert sum(row.end is TrajectoryEnd.RIGHT for row in kept) == kept_right
    # A hash chooses, not the place in the corpus.
    assert kept_right in (0, right) or [row.is_kept for row in rows[wrong:]] != [True] * kept_right + [False] * (
        right - kept_right
    )
    turned = list(correct(attempts[::-1], improve_ratio=ratio, name="turned").rows())
    assert turned == rows


def test_equal_attempts_are_corrected_once_and_different_ones_each(correct: Any, endpoint: Any) -> None:
    prompt_id = QUESTIONS[3].prompt_id
    rows = list(correct([(prompt_id, "try 0: 5"), (prompt_id, "try 0: 7"), (prompt_id, "try 0: 5")]).rows())
    assert [(row.attempt_idx, row.segments[0].text) for row in rows] == [(0, "try 0: 5"), (1, "try 0: 7")]
    assert endpoint.asked.total() == 4


def test_two_trajectories_that_need_the_same_question_share_its_answer(correct: Any, endpoint: Any) -> None:
    # Both first updates are the same wrong text, so that the second round's requests are equal.
    endpoint.answer = lambda request: (200, endpoint.chat("why" if ASKS_FEEDBACK in request else "it is 1"))
    prompt_id = QUESTIONS[3].prompt_id
    trajectories = correct([(prompt_id, "5"), (prompt_id, "7")], rounds=2)
    assert [kinds(row) for row in trajectories.rows()] == ["afufu", "afufu"]
    assert max(endpoint.asked.values()) == 1
    assert read_json(trajectories.path / "summary.json")["requests"] == endpoint.asked.total() == 6


def test_the_caps_hold_over_all_rounds_together(correct: Any, endpoint: Any) -> None:
    endpoint.answer = Tutor(endpoint.chat, needed=3)
    attempts = attempts_at(right=0, wrong=2)
    with pytest.raises(BudgetError, match="budget"):
        correct(attempts, teacher={"budget": {"requests": 7}})
    assert endpoint.asked.total() == 7
    rows = list(correct(attempts, teacher={"budget": {"requests": 12}}, name="raised").rows())
    assert endpoint.asked.total() == 12
    assert {row.end for row in rows} == {TrajectoryEnd.IMPROVED}


def test_a_template_of_the_users_may_show_the_reference(correct: Any, endpoint: Any, tmp_path: Path) -> None:
    template = tmp_path / "feedback.txt"
    template.write_text(f"{ASKS_FEEDBACK} $question | $attempt | right: $reference | costs $$5", encoding="utf-8")
    correct([(QUESTIONS[1].prompt_id, "try 0: 3 $reference ${feedback}")], feedback_template=str(template))
    asked = [question for question in endpoint.asked if ASKS_FEEDBACK in question]
    # What is quoted is not read for placeholders.
    assert asked == [
        f"{ASKS_FEEDBACK} What is 1 + 1? | try 0: 3 $reference ${{feedback}} | right: 2 | costs $5",
    ]


@pytest.mark.parametrize(
    "text", ["$question", "$question $attempt $other", "$question $attempt $", "$question $attempt $feedback"]
)
def test_a_template_that_cannot_be_used_is_refused_before_anything_is_asked(
    correct: Any, endpoint: Any, tmp_path: Path, text: str
) -> None:
    (tmp_path / "feedback.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\$attempt"):
        correct(attempts_at(right=0, wrong=1), feedback_template=str(tmp_path / "feedback.txt"))
    assert not endpoint.asked


def test_the_whole_conversation_is_shown_without_its_system_message(
    endpoint: Any, make_run: Make, tmp_path: Path
) -> None:
    turns = [Message("system", "hidden"), Message("user", "one"), Message("assistant", "two"), Message("user", "3?")]
    prompts = PromptSet(tmp_path / "prompts")
    prompts.write([prompt := Prompt.build(turns, reference="3")])
    seal(prompts)
    run = make_run({"kind": "openai", "base_url": endpoint.url, "model": "gpt"}, **PARTS)
    endpoint.answer = lambda request: (200, endpoint.chat("3"))
    build_trajectories(prompts, [(prompt.prompt_id, "4")], run, journal_path=tmp_path / "j", output=tmp_path / "out")
    assert all("User: one\n\nAssistant: two\n\nUser: 3?" in question for question in endpoint.asked)
    assert not any("hidden" in question for question in endpoint.asked)


def test_one_sample_is_asked_for_however_many_the_corpus_has(correct: Any, endpoint: Any) -> None:
    correct(attempts_at(right=0, wrong=1), teacher={"sampling": {"num_samples": 4, "temperature": 0.5}})
    correct(attempts_at(right=0, wrong=1), sampling={"temperature": 0.0, "num_samples": 2}, name="other")
    assert [body["temperature"] for body in endpoint.bodies] == [0.5, 0.5, 0.0, 0.0]


def test_nobody_is_asked_where_everything_is_right(correct: Any, endpoint: Any) -> None:
    rows = list(correct(attempts_at(right=3, wrong=0)).rows())
    assert not endpoint.asked
    assert [row.is_kept for row in rows] == [False] * 3  # no improving sample that they could stand beside


def test_attempts_at_other_prompts_are_refused(correct: Any, endpoint: Any) -> None:
    with pytest.raises(InputError, match="1 of 2 are at others"):
        correct([*attempts_at(right=0, wrong=1), ("0" * 16, "text")])
    assert not endpoint.asked


@pytest.mark.parametrize(
    "sections", [{"teacher": {"kind": "recorded"}}, {"verifier": None}], ids=["no endpoint", "no verifier"]
)
def test_a_specification_that_cannot_correct_is_refused(make_run: Make, sections: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="corrections need a verifier"):
        make_run(**{"teacher": {"kind": "openai", "model": "gpt"}, **PARTS, **sections})


def test_a_run_without_corrections_is_refused(make_run: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="corrections=None"):
        build_trajectories(
            PromptSet(tmp_path), [], make_run({"kind": "embedded"}), journal_path=tmp_path / "j", output=tmp_path / "o"
        )


def test_verified_by_programs_that_run(correct: Any, endpoint: Any) -> None:
    endpoint.answer = lambda request: (200, endpoint.chat("hint" if ASKS_FEEDBACK in request else "print(3 + 3)"))
    rows = list(correct([(QUESTIONS[3].prompt_id, "print(3 * 3)")], verifier={"kind": "program"}).rows())
    assert [row.end for row in rows] == [TrajectoryEnd.IMPROVED]


def test_the_spans_follow_the_segments(correct: Any) -> None:
    row = next(correct(attempts_at(right=0, wrong=1)).rows())
    text, spans = render_trajectory(row), segment_spans(row)
    assert text == "try 0: 1\n\nFeedback: feedback 0: the sum is off\n\nImproved answer: try 1: 0"
    assert text[spans[1].start : spans[1].end] == "\n\nFeedback: feedback 0: the sum is off"
    assert [span.weight for span in spans] == [0.0, 1.5, 1.5]


def test_attempts_are_read_line_by_line_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "attempts.jsonl"
    path.write_text('{"prompt_id": "a", "text": "1", "more": 2}\n\n{"prompt_id": "b", "text": ""}\n')
    assert list(read_attempts(path)) == [("a", "1"), ("b", "")]
    for bad in ("[]", '{"prompt_id": "a"}', '{"prompt_id": 1, "text": ""}', "{", "\xff"):
        path.write_bytes(b'{"prompt_id": "a", "text": "1"}\n' + bad.encode("latin-1"))
        with pytest.raises(InputError, match="line 2"):
            list(read_attempts(path))
    with pytest.raises(InputError, match="expected a file of attempts"):
        list(read_attempts(tmp_path / "missing"))
