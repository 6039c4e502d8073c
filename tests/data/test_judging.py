"""Verdicts: the first broken rule wins, measures are counted where they do not drop, memory holds one row."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxykd.artifacts import CompletionSet, PromptSet, seal
from proxykd.config import DataSplitSpec, ValidationSpec
from proxykd.data.judging import JudgedRow, Measures, judge, judge_measures, judge_rows, judge_text
from proxykd.data.quality import Verdict, jaccard, shingles_of
from proxykd.data.splits import side_of
from proxykd.exceptions import ArtifactError
from proxykd.records import Completion, Message, Outcome, Prompt, Side

SPLIT = DataSplitSpec()


def completion(text: str, outcome: Outcome = Outcome.OK, *, prompt_id: str = "", sample_idx: int = 0) -> Completion:
    return Completion(prompt_id, sample_idx, outcome, "", text, "stop", 0, 0, 0.0, "teacher", "hash")


def judge_corpus(
    folder: Path, corpus: Sequence[tuple[str, Sequence[str]]], *, split: DataSplitSpec = SPLIT, **rules: object
) -> list[JudgedRow]:
    prompts, completions = PromptSet(folder / "prompts"), CompletionSet(folder / "completions")
    built = [Prompt.build([Message("user", question)]) for question, _ in corpus]
    prompts.write(built)
    completions.write(
        completion(text, prompt_id=prompt.prompt_id, sample_idx=idx)
        for prompt, (_, texts) in zip(built, corpus, strict=True)
        for idx, text in enumerate(texts)
    )
    spec = ValidationSpec.model_validate(rules)
    return list(judge(prompts, completions, spec, split, scratch=folder / "scratch"))


@pytest.mark.parametrize(
    ("outcome", "text", "verdict"),
    [
        (Outcome.FAILED, "", Verdict.FAILED),
        (Outcome.FILTERED, "", Verdict.FILTERED),
        (Outcome.REFUSED, "No.", Verdict.REFUSED),
        (Outcome.OK, "I'm sorry, but I can't.", Verdict.REFUSED),
        (Outcome.TRUNCATED, "I'm sorry, but I can't", Verdict.REFUSED),
        (Outcome.TRUNCATED, "twelve chars", Verdict.TRUNCATED),
        (Outcome.OK, " \n", Verdict.EMPTY),
        (Outcome.OK, "four", Verdict.TOO_SHORT),
        (Outcome.OK, "12345", Verdict.KEEP),
        (Outcome.OK, "x" * 20, Verdict.KEEP),
        (Outcome.OK, "x" * 21, Verdict.TOO_LONG),
    ],
)
def test_first_broken_rule_about_the_text(outcome: Outcome, text: str, verdict: Verdict) -> None:
    assert judge_text(completion(text, outcome), ValidationSpec(min_chars=5, max_chars=20)) == verdict


def test_truncated_texts_teach_where_the_specification_says_so() -> None:
    row = completion("half a sen", Outcome.TRUNCATED)
    assert judge_text(row, ValidationSpec(drop_truncated=False)) == Verdict.KEEP


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_measures_drop_only_where_asked_and_in_order(a: bool, b: bool, c: bool, d: bool, e: bool, f: bool) -> None:
    spec = ValidationSpec(drop_duplicates=d, drop_near_duplicates=e, drop_overlap=f)
    dropping = {"duplicate": a and d, "near_duplicate": b and e, "overlap": c and f}
    expected = next((verdict for verdict, drops in dropping.items() if drops), "keep")
    assert judge_measures(Measures(a, b, c), spec) == expected


LONG = "Tell me about the river that runs through the old town in the north and why people love it so much today"


def test_exact_duplicates_are_counted_from_the_second_on(tmp_path: Path) -> None:
    rows = judge_corpus(tmp_path, [("q", ["same", "same", "other", " same\n"]), ("r", ["same"])])
    assert [row.measures.is_duplicate for row in rows] == [False, True, False, True, False]
    assert {row.row.verdict for row in rows} == {"keep"}
    dropped = judge_corpus(tmp_path / "drop", [("q", ["same", "same"])], drop_duplicates=True)
    assert [row.row.verdict for row in dropped] == ["keep", "duplicate"]


def test_near_duplicate_prompts_are_counted_or_dropped_with_all_their_samples(tmp_path: Path) -> None:
    long = LONG + " " + LONG.replace("river", "bridge")
    corpus = [(long, ["a", "b"]), (f"{long} please", ["c", "d"]), ("Something else altogether", ["e"])]
    rows = judge_corpus(tmp_path, corpus)
    assert [row.measures.is_near_duplicate for row in rows] == [False, False, True, True, False]
    dropped = judge_corpus(tmp_path / "drop", corpus, drop_near_duplicates=True)
    assert [row.row.verdict for row in dropped] == ["keep", "keep", "near_duplicate", "near_duplicate", "keep"]


def test_threshold_one_finds_equal_prompts_only(tmp_path: Path) -> None:
    corpus = [(LONG, ["a"]), (LONG + " please", ["b"]), (LONG.upper() + "?", ["c"])]
    rows = judge_corpus(tmp_path, corpus, near_duplicate_threshold=1.0)
    assert [row.measures.is_near_duplicate for row in rows] == [False, False, True]


def test_near_duplicates_agree_with_the_exact_similarity(tmp_path: Path) -> None:
    rng = random.Random(0)
    base = [" ".join(rng.choice("abcdefghijklmnopqrstuvwxyz") * 2 for _ in range(60)) for _ in range(30)]
    questions = []
    for text in base:
        words = text.split()
        words[30] = "changed"  # 5 of 56 shingles differ: J = 51 / 61 = 0.84
        far = [*words[:10], "x", *words[20:40], "y", *words[50:]]
        questions += [text, " ".join([*text.split(), "end"]), " ".join(far)]
    rows = judge_corpus(tmp_path, [(question, ["t"]) for question in questions], near_duplicate_threshold=0.9)
    for idx, row in enumerate(rows):
        exact = max((jaccard(shingles_of(questions[idx]), shingles_of(q)) for q in questions[:idx]), default=0.0)
        if abs(exact - 0.9) > 0.07:
            assert row.measures.is_near_duplicate == (exact > 0.9)


def question_on(side: Side, text: str) -> str:
    return next(
        q
        for i in range(10_000)
        if side_of(Prompt.build([Message("user", q := f"{i} {text}")]).prompt_id, SPLIT) == side
    )


def test_training_rows_that_share_a_run_with_heldout_prompts_overlap(tmp_path: Path) -> None:
    heldout = question_on(Side.HELDOUT, LONG)
    run = " ".join(LONG.split()[:13])
    training = [question_on(Side.ALIGNMENT, text) for text in ("one", "two", f"Three. {run}!")]
    short = " ".join(LONG.split()[:12])
    texts = ["no overlap here", f"As you said: {run.upper()}", "fine"]
    corpus = [(question, [text]) for question, text in zip(training, texts, strict=True)]
    corpus += [(heldout, [run]), (question_on(Side.DISTILLATION, "four"), [short])]
    rows = judge_corpus(tmp_path, corpus)
    assert [row.measures.has_overlap for row in rows] == [False, True, True, False, False]
    assert {row.row.verdict for row in rows} == {"keep"}
    dropped = judge_corpus(tmp_path / "drop", corpus, drop_overlap=True)
    assert [row.row.verdict for row in dropped] == ["keep", "overlap", "overlap", "keep", "keep"]


def test_system_messages_do_not_count_as_overlap_or_similarity(tmp_path: Path) -> None:
    prompts, completions = PromptSet(tmp_path / "p"), CompletionSet(tmp_path / "c")
    built = [Prompt.build([Message("system", LONG * 3), Message("user", f"question {idx}")]) for idx in range(60)]
    prompts.write(built)
    completions.write(completion("t", prompt_id=prompt.prompt_id) for prompt in built)
    rows = list(judge(prompts, completions, ValidationSpec(), SPLIT, scratch=tmp_path / "s"))
    assert not any(row.measures.is_near_duplicate or row.measures.has_overlap for row in rows)


def test_one_question_under_several_system_messages_is_no_near_duplicate_of_itself(tmp_path: Path) -> None:
    prompts, completions = PromptSet(tmp_path / "p"), CompletionSet(tmp_path / "c")
    built = [
        Prompt.build([Message("system", system), Message("user", question)], group=group)
        for question, group in ((LONG, "1" * 16), (LONG + "!", "2" * 16))
        for system in ("Explain.", "Be brief.", "Step by step.")
    ]
    prompts.write(built)
    completions.write(completion(f"text {idx}", prompt_id=one.prompt_id) for idx, one in enumerate(built))
    rows = list(judge(prompts, completions, ValidationSpec(), SPLIT, scratch=tmp_path / "s"))
    assert [row.measures.is_near_duplicate for row in rows] == [False] * 3 + [True] * 3
    assert [row.row.prompt_id for row in rows] == [prompt.prompt_id for prompt in built]
    assert {(row.row.group, row.side) for row in rows} == {
        (group, side_of(group, SPLIT)) for group in ("1" * 16, "2" * 16)
    }


def test_examples_for_the_teacher_are_neither_taught_nor_compared(tmp_path: Path) -> None:
    prompts, completions = PromptSet(tmp_path / "p"), CompletionSet(tmp_path / "c")
    turns = [Message("user", LONG), Message("assistant", LONG)]
    questions = [Message("user", f"question {idx}") for idx in range(60)]
    built = [Prompt.build([*turns, question], num_example_messages=2) for question in questions]
    prompts.write(built)
    completions.write(completion("t", prompt_id=prompt.prompt_id) for prompt in built)
    rows = list(judge(prompts, completions, ValidationSpec(), SPLIT, scratch=tmp_path / "s"))
    assert {row.side for row in rows} == set(Side)
    assert [row.row.messages for row in rows] == [(question,) for question in questions]
    assert not any(row.measures.is_near_duplicate or row.measures.has_overlap for row in rows)


def test_rows_that_cannot_teach_are_not_what_others_are_duplicates_of(tmp_path: Path) -> None:
    rows = judge_corpus(tmp_path, [(LONG, [""]), (LONG + "!", ["text"])], drop_near_duplicates=True)
    assert [row.row.verdict for row in rows] == ["empty", "keep"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(["text", "", "more"]), min_size=1, max_size=3), max_size=6))
def test_every_completion_gets_one_row_in_order(
    tmp_path_factory: pytest.TempPathFactory, samples: list[list[str]]
) -> None:
    corpus = [(f"question {idx}", texts) for idx, texts in enumerate(samples)]
    rows = judge_corpus(tmp_path_factory.mktemp("judge"), corpus)
    assert [(r.row.messages[0].content, r.row.sample_idx, r.row.text) for r in rows] == [
        (question, idx, text) for question, texts in corpus for idx, text in enumerate(texts)
    ]


def test_scratch_is_left_empty(tmp_path: Path) -> None:
    judge_corpus(tmp_path, [("q", ["t"])])
    assert list((tmp_path / "scratch").iterdir()) == []


def test_completions_of_other_prompts_are_refused(tmp_path: Path) -> None:
    prompts = PromptSet(tmp_path / "p")
    built = [Prompt.build([Message("user", question)]) for question in "ab"]
    prompts.write(built)
    seal(prompts)
    for name, ids, message in (
        ("missing", [built[0].prompt_id], f"of prompt {built[1].prompt_id} .* found the end"),
        ("swapped", [built[1].prompt_id, built[0].prompt_id], f"found prompt {built[1].prompt_id}"),
        ("extra", [built[0].prompt_id, built[1].prompt_id, "f" * 16], f"goes on with prompt {'f' * 16}"),
    ):
        completions = CompletionSet(tmp_path / name)
        completions.write(completion("t", prompt_id=prompt_id) for prompt_id in ids)
        with pytest.raises(ArtifactError, match=message):
            list(judge_rows(prompts, completions, ValidationSpec(), SPLIT, scratch=tmp_path / "s"))
