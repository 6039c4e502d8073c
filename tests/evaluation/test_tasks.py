"""Tasks over local rows: the harness's verdicts against plain re-implementations on the same answers."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch

from proxykd.config import RunSpec
from proxykd.config.evaluation import ExactMatchTaskSpec, MultipleChoiceTaskSpec, NllTaskSpec
from proxykd.data.chat import render_prompt
from proxykd.evaluation.generation import Generation, Respondent
from proxykd.evaluation.task_answers import TaskAnswer, TaskPrompt
from proxykd.evaluation.tasks import answer_confidences, choice_confidences, run_task
from proxykd.exceptions import InputError
from proxykd.models.loading import load_model, load_tokenizer
from proxykd.records import Message

SPEC = ExactMatchTaskSpec(name="sums", answer_pattern=r"#### (-?\d+)", max_new_tokens=40)
TEXTS = (
    "First 1 - 1 = 0.\n#### 7",  # right
    "#### 3\nNo, wait.\n#### 7",  # the last match counts
    "#### 7\n#### 8",  # ... also when it is wrong
    "The answer is 7",  # no match
    "",
    "#### -7",
    "#### 77",
    "[no answer]",  # a text that spells the fallback is still no answer
)


class Scripted:
    """A sampler that says what it is told, and remembers what it was asked."""

    def __init__(self, tokenizer: Any, texts: dict[str, str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts
        self.asked: list[tuple[str, int, float]] = []

    def with_stops(self, is_ended: Callable[[Sequence[int]], bool], stops: Sequence[str]) -> Self:
        return self

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        questions = [self._tokenizer.decode(prompt) for prompt in prompts]
        self.asked += [(question, max_new_tokens, temperature) for question in questions]
        said = [next((text for key, text in self._texts.items() if key in question), "") for question in questions]
        return [[*self._tokenizer(t, add_special_tokens=False).input_ids, self._tokenizer.eos_token_id] for t in said]


@pytest.fixture(scope="module")
def tokenizer(run_spec: RunSpec) -> Any:
    return load_tokenizer(run_spec.student.model)


@pytest.fixture(scope="module")
def model(run_spec: RunSpec) -> Any:
    return load_model(run_spec.student.model, seed=0)


@pytest.fixture
def scripted(tokenizer: Any) -> Scripted:
    return Scripted(tokenizer, {f"Question {row}?": text for row, text in enumerate(TEXTS)})


@pytest.fixture
def respondent(model: Any, tokenizer: Any, scripted: Scripted) -> Respondent:
    return Respondent(model, tokenizer, sampler=scripted)


def _prompts(count: int, reference: str = "7") -> list[TaskPrompt]:
    return [
        TaskPrompt(f"{row:016x}", (Message("user", f"Question {row}?"),), reference, ("#### 7", "#### 8", "none"))
        for row in range(count)
    ]


def _run(spec: Any, respondent: Respondent, prompts: Sequence[TaskPrompt] = ()) -> list[TaskAnswer]:
    return list(run_task(spec, respondent, prompts))


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_harness_agrees_with_a_plain_implementation(respondent: Respondent) -> None:
    answers = _run(SPEC, respondent, _prompts(len(TEXTS)))
    for answer, text in zip(answers, TEXTS, strict=True):
        matches = re.findall(SPEC.answer_pattern, text)
        assert answer.text == text
        assert answer.answer == (matches[-1] if matches else None)
        assert answer.is_correct == (bool(matches) and matches[-1] == "7")
        assert (answer.confidence is None) == (not matches)
        # Of the teacher's three samples two have an answer.
        assert answer.sums["answer_agreement/sums"] == (float(answer.answer in ("7", "8")), 2.0)
    assert [answer.prompt_id for answer in answers] == [prompt.prompt_id for prompt in _prompts(len(TEXTS))]
    assert sum(answer.sums["accuracy/sums"][0] for answer in answers) == 2


def test_prompts_are_rendered_and_continued_greedily(respondent: Respondent, scripted: Scripted) -> None:
    _run(SPEC, respondent, _prompts(2))
    assert all("Question" in text and (count, temperature) == (40, 0.0) for text, count, temperature in scripted.asked)


def test_limit_takes_the_first_prompts(respondent: Respondent) -> None:
    assert len(_run(SPEC.model_copy(update={"limit": 3}), respondent, _prompts(8))) == 3


def test_no_prompt_with_a_reference_is_no_answer(respondent: Respondent) -> None:
    assert _run(SPEC, respondent) == []


def test_reference_that_spells_the_fallback_is_never_right(respondent: Respondent) -> None:
    (answer,) = _run(SPEC, respondent, _prompts(8, "[no answer]")[7:])
    assert answer.answer is None
    assert not answer.is_correct


def test_nothing_is_printed(
    respondent: Respondent, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXYKD_PROGRESS", "off")
    _run(SPEC, respondent, _prompts(2))
    assert capfd.readouterr() == ("", "")


def test_file_of_questions_gives_what_the_same_heldout_prompts_give(respondent: Respondent, tmp_path: Path) -> None:
    rows = [{"q": f"Question {row}?", "a": 7, "level": row % 2} for row in range(len(TEXTS))]
    file = _write(tmp_path / "sums.jsonl", rows)
    keys = {"file": file, "prompt_field": "q", "reference_field": "a", "slice_field": "level"}
    found = _run(SPEC.model_copy(update=keys), respondent)
    expected = _run(SPEC, respondent, _prompts(len(TEXTS)))
    assert [(one.text, one.answer, one.confidence) for one in found] == [
        (one.text, one.answer, one.confidence) for one in expected
    ]
    assert found[3].slices == ("sums/level=1",)
    assert "answer_agreement/sums" not in found[0].sums


def test_confidence_is_the_probability_of_the_answers_own_tokens(model: Any, tokenizer: Any) -> None:
    respondent = Respondent(model, tokenizer)
    prompt, text = respondent.encode("Question?"), "well #### 12 or #### 345 then"
    completion = respondent.encode(text)
    (found,) = answer_confidences(r"#### (\d+)", respondent, [prompt], [completion])
    with torch.no_grad():
        logprobs = model(torch.tensor([[*prompt, *completion]])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    texts = [tokenizer.decode(completion[:count]) for count in range(len(completion) + 1)]
    inside = [
        place
        for place in range(len(completion))
        if len(texts[place + 1]) > text.index("345") and len(texts[place]) < text.index("345") + 3
    ]
    expected = math.exp(sum(float(logprobs[place, completion[place]]) for place in inside))
    assert found == pytest.approx(expected, rel=1e-4)


def test_choices_are_judged_by_their_likelihoods(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    choices = [["one apple", "a", "two pears and more"], ["red", "blue"], ["7", "77", "777"]]
    rows = [{"prompt": f"Pick {row}", "choices": of_row, "answer": 1} for row, of_row in enumerate(choices)]
    rows[1]["answer"] = "blue"  # by its text
    spec = MultipleChoiceTaskSpec(name="picks", file=_write(tmp_path / "picks.jsonl", rows))
    answers = _run(spec, Respondent(model, tokenizer))
    for row, of_row, answer in zip(rows, choices, answers, strict=True):
        context = render_prompt(tokenizer, (Message("user", str(row["prompt"])),))
        logprobs = [_logprob(model, tokenizer, context, choice) for choice in of_row]
        normalised = int(np.argmax([one / len(choice) for one, choice in zip(logprobs, of_row, strict=True)]))
        assert answer.answer == of_row[int(np.argmax(logprobs))]
        assert answer.is_correct == (int(np.argmax(logprobs)) == 1)
        assert answer.sums["accuracy_normalised/picks"] == (float(normalised == 1), 1.0)
        assert answer.confidence == pytest.approx(np.exp(max(logprobs)) / np.exp(logprobs).sum(), rel=1e-3)


def test_nll_of_texts_is_the_models_own_loss(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    texts = ["Ann has 3 pears.", "Two and two make four, says the teacher."]
    file = _write(tmp_path / "texts.jsonl", [{"text": text, "ask": "Say it."} for text in texts])
    respondent = Respondent(model, tokenizer)
    for prompt_field in (None, "ask"):
        spec = NllTaskSpec(name="texts", file=file, prompt_field=prompt_field)
        prefix = tokenizer.decode([respondent.prefix_id])
        context = prefix if prompt_field is None else render_prompt(tokenizer, (Message("user", "Say it."),))
        for answer, text in zip(_run(spec, respondent), texts, strict=True):
            nll, count = answer.sums["nll/texts"]
            assert nll == pytest.approx(-_logprob(model, tokenizer, context, text), rel=1e-4)
            assert count == len(respondent.encode(text))
            assert answer.sums["bits_per_byte/texts"] == pytest.approx((nll / math.log(2), len(text)))


def test_text_longer_than_the_model_reads_is_scored_in_parts(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    text = "one two three four five six seven eight nine ten " * 4
    spec = NllTaskSpec(name="long", file=_write(tmp_path / "long.jsonl", [{"text": text}]))
    respondent = Respondent(model, tokenizer)
    respondent.max_tokens = 16
    (answer,) = _run(spec, respondent)
    assert answer.sums["nll/long"][1] == len(respondent.encode(text))
    assert answer.sums["nll/long"][0] > 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "", "choices": ["a", "b"], "answer": 0}', "a question under 'prompt'"),
        ('{"prompt": "x", "choices": ["a"], "answer": 0}', "at least two texts under 'choices'"),
        ('{"prompt": "x", "choices": ["a", "b"], "answer": 2}', "one of the choices under 'answer'"),
        ('{"prompt": "x", "choices": ["a", "b"], "answer": true}', "one of the choices under 'answer'"),
        ("[1]", "a JSON object in"),
        ("{", "a JSON object in"),
        ("", "expected rows in"),
    ],
)
def test_bad_rows_are_named(respondent: Respondent, tmp_path: Path, line: str, expected: str) -> None:
    file = tmp_path / "picks.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(InputError, match=re.escape(expected)):
        _run(MultipleChoiceTaskSpec(name="picks", file=file), respondent)


def test_missing_file_is_named(respondent: Respondent, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="readable UTF-8 file"):
        _run(NllTaskSpec(name="none", file=tmp_path / "none.jsonl"), respondent)


def test_confidences_of_choices_sum_to_one_however_small_their_probabilities() -> None:
    found = choice_confidences([-2000.0, -2001.0, -3000.0])
    assert sum(found) == pytest.approx(1.0)
    assert found[0] / found[1] == pytest.approx(math.e)


def test_stop_strings_end_a_text(model: Any, tokenizer: Any) -> None:
    respondent = Respondent(model, tokenizer)
    prompts = [respondent.encode("User: 1 + 1?"), respondent.encode("User: tell me a story")]
    whole = respondent.generate(prompts, Generation(24))
    texts = [respondent.decode(one) for one in whole]
    stop = texts[0][5:7]
    cut = respondent.generate(prompts, Generation(24, stops=(stop,)))
    for one, text in zip(cut, texts, strict=True):
        assert respondent.decode(one, (stop,)) == text.split(stop)[0]
    assert len(cut[0]) < len(whole[0])


def _logprob(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    head = tokenizer(context, add_special_tokens=False).input_ids
    tail = tokenizer(continuation, add_special_tokens=False).input_ids
    with torch.no_grad():
        logprobs = model(torch.tensor([[*head, *tail]])).logits.log_softmax(-1)[0]
    return sum(float(logprobs[len(head) - 1 + place, token]) for place, token in enumerate(tail))
