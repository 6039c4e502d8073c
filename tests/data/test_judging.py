"""Verdicts: the first broken rule wins, measures are counted where they do not drop, memory holds one row."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxykd.artifacts import CompletionSet, PromptSet, seal
from proxykd.config import DataSplitSpec, ValidationSpec
from proxykd.data.judging import Environment, JudgedRow, judge, judge_findings
from proxykd.data.quality import Verdict, jaccard, shingles_of
from proxykd.data.splits import side_of
from proxykd.data.summary import RULES
from proxykd.exceptions import ArtifactError
from proxykd.records import Completion, Message, Outcome, Prompt, Side

SPLIT = DataSplitSpec()
TEXTLESS = {Verdict.FAILED, Verdict.FILTERED, Verdict.EMPTY}


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
    return list(judge(prompts, completions, spec, split, Environment(folder / "scratch")))


def drop(*rules: str) -> dict[str, object]:
    return {"rules": {rule: {"rows": "drop"} for rule in rules}}


def breaks(rows: list[JudgedRow], rule: Verdict) -> list[bool | None]:
    return [row.breaks(rule) for row in rows]


def judge_one(folder: Path, row: Completion, **rules: object) -> JudgedRow:
    prompts, completions = PromptSet(folder / "prompts"), CompletionSet(folder / "completions")
    prompt = Prompt.build([Message("user", "q")])
    prompts.write([prompt])
    completions.write([replace(row, prompt_id=prompt.prompt_id)])
    spec = ValidationSpec.model_validate(rules)
    return next(judge(prompts, completions, spec, SPLIT, Environment(folder / "scratch")))


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
def test_first_broken_rule_about_the_text(tmp_path: Path, outcome: Outcome, text: str, verdict: Verdict) -> None:
    assert judge_one(tmp_path, completion(text, outcome), min_chars=5, max_chars=20).row.verdict == verdict


def test_truncated_texts_teach_where_the_specification_says_so(tmp_path: Path) -> None:
    row = completion("half a sen", Outcome.TRUNCATED)
    judged = judge_one(tmp_path, row, rules={"truncated": {"rows": "keep"}})
    assert judged.row.verdict == Verdict.KEEP
    assert [found.rule for found in judged.row.findings] == ["truncated"]


@given(st.sets(st.sampled_from(RULES)), st.sets(st.sampled_from(RULES)))
def test_the_verdict_is_the_first_rule_that_drops_and_every_finding_stays(
    broken: set[Verdict], dropping: set[Verdict]
) -> None:
    rules = {rule: {"rows": "drop" if rule in dropping | TEXTLESS else "keep"} for rule in RULES}
    spec = ValidationSpec.model_validate({"rules": rules})
    verdict, findings = judge_findings({rule: f"about {rule}" for rule in broken}, spec)
    assert [found.rule for found in findings] == [rule for rule in RULES if rule in broken]
    assert {found.rule for found in findings if found.drops} == broken & (dropping | TEXTLESS)
    assert verdict == next((rule for rule in RULES if rule in broken & (dropping | TEXTLESS)), Verdict.KEEP)


LONG = "Tell me about the river that runs through the old town in the north and why people love it so much today"


def test_exact_duplicates_are_counted_from_the_second_on(tmp_path: Path) -> None:
    rows = judge_corpus(tmp_path, [("q", ["same", "same", "other", " same\n"]), ("r", ["same"])])
    assert breaks(rows, Verdict.DUPLICATE) == [False, True, False, True, False]
    assert {row.row.verdict for row in rows} == {"keep"}
    dropped = judge_corpus(tmp_path / "drop", [("q", ["same", "same"])], **drop("duplicate"))
    assert [row.row.verdict for row in dropped] == ["keep", "duplicate"]


def test_near_duplicate_prompts_are_counted_or_dropped_with_all_their_samples(tmp_path: Path) -> None:
    long = LONG + " " + LONG.replace("river", "bridge")
    corpus = [(long, ["a", "b"]), (f"{long} please", ["c", "d"]), ("Something else altogether", ["e"])]
    rows = judge_corpus(tmp_path, corpus)
    assert breaks(rows, Verdict.NEAR_DUPLICATE) == [False, False, True, True, False]
    dropped = judge_corpus(tmp_path / "drop", corpus, **drop("near_duplicate"))
    assert [row.row.verdict for row in dropped] == ["keep", "keep", "near_duplicate", "near_duplicate", "keep"]


def test_threshold_one_finds_equal_prompts_only(tmp_path: Path) -> None:
    corpus = [(LONG, ["a"]), (LONG + " please", ["b"]), (LONG.upper() + "?", ["c"])]
    rows = judge_corpus(tmp_path, corpus, near_duplicate_threshold=1.0)
    assert breaks(rows, Verdict.NEAR_DUPLICATE) == [False, False, True]


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
            assert row.breaks(Verdict.NEAR_DUPLICATE) == (exact > 0.9)


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
    assert breaks(rows, Verdict.OVERLAP) == [False, True, True, None, False]
    assert {row.row.verdict for row in rows} == {"keep"}
    dropped = judge_corpus(tmp_path / "drop", corpus, **drop("overlap"))
    assert [row.row.verdict for row in dropped] == ["keep", "overlap", "overlap", "keep", "keep"]


def test_system_messages_do_not_count_as_overlap_or_similarity(tmp_path: Path) -> None:
    prompts, completions = PromptSet(tmp_path / "p"), CompletionSet(tmp_path / "c")
    built = [Prompt.build([Message("system", LONG * 3), Message("user", f"question {idx}")]) for idx in range(60)]
    prompts.write(built)
    completions.write(completion("t", prompt_id=prompt.prompt_id) for prompt in built)
    rows = list(judge(prompts, completions, ValidationSpec(), SPLIT, Environment(tmp_path / "s")))
    assert not any(row.breaks(Verdict.NEAR_DUPLICATE) or row.breaks(Verdict.OVERLAP) for row in rows)


def test_one_question_under_several_system_messages_is_no_near_duplicate_of_itself(tmp_path: Path) -> None:
    prompts, completions = PromptSet(tmp_path / "p"), CompletionSet(tmp_path / "c")
    built = [
        Prompt.build([Message("system", system), Message("user", question)], group=group)
        for question, group in ((LONG, "1" * 16), (LONG + "!", "2" * 16))
        for system in ("Explain.", "Be brief.", "Step by step.")
    ]
    prompts.write(built)
    completions.write(completion(f"text {idx}", prompt_id=one.prompt_id) for idx, one in enumerate(built))
    rows = list(judge(prompts, completions, ValidationSpec(), SPLIT, Environment(tmp_path / "s")))
    assert [row.breaks(Verdict.NEAR_DUPLICATE) for row in rows] == [False] * 3 + [True] * 3
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
    rows = list(judge(prompts, completions, ValidationSpec(), SPLIT, Environment(tmp_path / "s")))
    assert {row.side for row in rows} == set(Side)
    assert [row.row.messages for row in rows] == [(question,) for question in questions]
    assert not any(row.breaks(Verdict.NEAR_DUPLICATE) or row.breaks(Verdict.OVERLAP) for row in rows)


def test_rows_that_cannot_teach_are_not_what_others_are_duplicates_of(tmp_path: Path) -> None:
    rows = judge_corpus(tmp_path, [(LONG, [""]), (LONG + "!", ["text"])], **drop("near_duplicate"))
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
            list(judge(prompts, completions, ValidationSpec(), SPLIT, Environment(tmp_path / "s")))


def test_what_two_teachers_agree_on_is_no_duplicate(tmp_path: Path) -> None:
    prompts, completions = PromptSet(tmp_path / "p"), CompletionSet(tmp_path / "c")
    prompt = Prompt.build([Message("user", "q")])
    prompts.write([prompt])
    stages = [0, 0, 1, 1]
    completions.write(
        replace(completion("same", prompt_id=prompt.prompt_id, sample_idx=idx), stage=stage)
        for idx, stage in enumerate(stages)
    )
    spec = ValidationSpec.model_validate(drop("duplicate"))
    rows = [judged.row for judged in judge(prompts, completions, spec, SPLIT, Environment(tmp_path / "scratch"))]
    assert [row.verdict for row in rows] == ["keep", "duplicate", "keep", "duplicate"]
    assert [row.stage for row in rows] == stages
