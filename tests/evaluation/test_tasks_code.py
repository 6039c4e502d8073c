"""pass@k: the estimate against counting, and programs that really run."""

import json
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config import RunSpec
from proxykd.config.evaluation import PassAtKTaskSpec
from proxykd.evaluation.generation import Respondent
from proxykd.evaluation.tasks import run_task
from proxykd.evaluation.tasks_code import pass_at_k
from proxykd.exceptions import ShapeError
from proxykd.models.loading import load_model, load_tokenizer


@given(num_samples=st.integers(1, 9), data=st.data())
def test_estimate_is_the_share_of_draws_that_hold_a_right_program(num_samples: int, data: st.DataObject) -> None:
    num_passed, k = data.draw(st.integers(0, num_samples)), data.draw(st.integers(1, num_samples))
    draws = list(combinations(range(num_samples), k))
    expected = sum(any(one < num_passed for one in draw) for draw in draws) / len(draws)
    assert pass_at_k(num_samples, num_passed, k) == pytest.approx(expected)


@given(rate=st.floats(0, 1), k=st.integers(1, 5))
def test_estimate_has_no_bias(rate: float, k: int) -> None:
    # Over the binomial number of programs that pass, its mean is 1 - (1 - rate)^k: the chance that one of k passes.
    num_samples = 8
    chances = [comb(num_samples, c) * rate**c * (1 - rate) ** (num_samples - c) for c in range(num_samples + 1)]
    mean = sum(chance * pass_at_k(num_samples, c, k) for c, chance in enumerate(chances))
    assert mean == pytest.approx(1 - (1 - rate) ** k, abs=1e-9)


def test_more_than_was_sampled_cannot_be_estimated() -> None:
    with pytest.raises(ShapeError, match="n=3, c=1, k=4"):
        pass_at_k(3, 1, 4)


class Programmer:
    """A sampler that writes two right programs of three, and an endless one where it is asked for one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def with_stops(self, *_: Any) -> "Programmer":
        return self

    def sample(self, prompts: Any, **_: Any) -> list[list[int]]:
        texts = (
            "```python\ndef double(n):\n    return 2 * n\n```",
            "def double(n): return n",
            "def double(n): return n+n",
        )
        said = [
            "while True: pass" if "2" in self._tokenizer.decode(prompt) else texts[place % 3]
            for place, prompt in enumerate(prompts)
        ]
        return [self._tokenizer(text, add_special_tokens=False).input_ids for text in said]


@pytest.mark.integration
def test_programs_run_in_the_sandbox(run_spec: RunSpec, tmp_path: Path) -> None:
    model, tokenizer = load_model(run_spec.student.model, seed=0), load_tokenizer(run_spec.student.model)
    rows = [
        {"prompt": "Question 1?", "tests": "assert double(3) == 6", "kind": "easy"},
        {"prompt": "Question 2?", "tests": "assert True", "kind": "endless"},
    ]
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = PassAtKTaskSpec.model_validate(
        {"name": "code", "file": file, "num_samples": 3, "k": [1, 2], "slice_field": "kind", "sandbox": {"wall_s": 1.0}}
    )
    answers = list(run_task(spec, Respondent(model, tokenizer, sampler=Programmer(tokenizer)), ()))
    assert sorted(answer.is_correct for answer in answers[:3]) == [False, True, True]
    assert [(answer.text, answer.is_correct) for answer in answers[3:]] == [("while True: pass", False)] * 3
    # 2 of 3 pass: one of one draw in 2/3 of the cases, at least one of two always.
    assert answers[0].sums["pass@1/code"] == pytest.approx((2 / 3, 1.0))
    assert answers[0].sums["pass@2/code"] == (1.0, 1.0)
    assert answers[3].sums == {"pass@1/code": (0.0, 1.0), "pass@2/code": (0.0, 1.0)}
    assert [bool(answer.sums) for answer in answers] == [True, False, False] * 2
    assert answers[3].slices == ("code/kind=endless",)
