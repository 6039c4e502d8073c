"""A text that was cut off is followed by at most one further call, whatever comes of it and however often we run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import read_json
from proxykd.config.specification import RunSpec
from proxykd.config.teacher import OpenAITeacherSpec
from proxykd.forecast import TextLengths, price_of_calls, tokens_of_call
from proxykd.records import Completion, Outcome
from proxykd.teacher.query import SUMMARY, collect_prompts, look_ahead_all, query_teacher
from proxykd.teacher.replies import Reply
from proxykd.teacher.truncation import GO_ON, join


def _spec(**fields: Any) -> OpenAITeacherSpec:
    return OpenAITeacherSpec.model_validate({"model": "gpt", **fields})


class _Cuts:
    """Cuts a question's text off at the limit that is asked for."""

    def __init__(self, endpoint: Any, *, fails_further: bool = False) -> None:
        self._endpoint, self._fails_further = endpoint, fails_further
        self.bodies = endpoint.bodies
        endpoint.answer = self.answer

    def answer(self, question: str) -> tuple[int, Any]:
        body = self.bodies[-1]
        if question == GO_ON:
            if self._fails_further:
                return 400, {"error": {"message": "no assistant turns here"}}
            done = body["messages"][-2]["content"]
            text = "long tale"[len(done) :] if done in "long tale" else "?"
            return 200, self._endpoint.chat(text[: body["max_tokens"]], "stop")
        whole = {"short": "ok", "long": "long tale"}[question]
        if self._fails_further and body["max_tokens"] > 4:
            return 400, {"error": {"message": "too large"}}
        cut = whole[: body["max_tokens"]]
        return 200, self._endpoint.chat(cut, "stop" if cut == whole else "length")


@pytest.fixture
def ask(endpoint: Any, make_run: Callable[..., RunSpec], tmp_path: Path) -> Callable[..., list[Completion]]:
    def ask_with(**fields: Any) -> list[Completion]:
        teacher = {"kind": "openai", "base_url": endpoint.url, "model": "gpt", "sampling": {"max_tokens": 4}, **fields}
        run = make_run(teacher, [{"prompt": "short"}, {"prompt": "long"}])
        prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / f"prompts-{len(list(tmp_path.iterdir()))}")
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        completions = query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=output)
        assert sum(read_json(output / SUMMARY)["outcomes"].values()) == 2
        return list(completions.rows())

    return ask_with


@pytest.mark.parametrize(
    ("policy", "outcome", "text", "num_calls"),
    [
        ({"on_truncated": "keep"}, Outcome.TRUNCATED, "long", 2),
        ({"on_truncated": "retry", "truncated_max_tokens": 9}, Outcome.OK, "long tale", 3),
        ({"on_truncated": "retry"}, Outcome.TRUNCATED, "long tal", 3),
        ({"on_truncated": "continue", "truncated_max_tokens": 20}, Outcome.OK, "long tale", 3),
    ],
)
def test_what_each_policy_gives(
    endpoint: Any,
    ask: Callable[..., list[Completion]],
    policy: dict[str, Any],
    outcome: Outcome,
    text: str,
    num_calls: int,
) -> None:
    _Cuts(endpoint)
    for _ in range(2):  # the second run finds all of it in the journal
        short, long = ask(**policy)
        assert (short.outcome, short.text) == (Outcome.OK, "ok")
        assert (long.outcome, long.text) == (outcome, text)
        assert len(endpoint.bodies) == num_calls
        assert (long.prompt_tokens, long.completion_tokens) == (10 * (num_calls - 1), 5 * (num_calls - 1))


@pytest.mark.parametrize("policy", ["retry", "continue"])
def test_a_further_call_that_fails_leaves_the_text_as_it_was(
    endpoint: Any, ask: Callable[..., list[Completion]], policy: str
) -> None:
    _Cuts(endpoint, fails_further=True)
    for _ in range(2):
        _, long = ask(on_truncated=policy)
        assert (long.outcome, long.text) == (Outcome.TRUNCATED, "long")
        assert len(endpoint.bodies) == 3


def test_a_policy_that_is_changed_later_asks_only_what_is_new(
    endpoint: Any, ask: Callable[..., list[Completion]]
) -> None:
    _Cuts(endpoint)
    ask()
    assert ask(on_truncated="retry", truncated_max_tokens=9)[1].text == "long tale"
    assert ask(on_truncated="continue")[1].text == "long tale"[:8]
    assert ask()[1].text == "long"
    assert len(endpoint.bodies) == 4


def test_a_further_call_counts_under_the_caps(
    endpoint: Any, ask: Callable[..., list[Completion]], make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    _Cuts(endpoint)
    fields = {"on_truncated": "retry", "truncated_max_tokens": 9}
    assert ask(**fields, budget={"requests": 2})[1].outcome is Outcome.TRUNCATED
    assert len(endpoint.bodies) == 2
    assert ask(**fields, budget={"requests": 3})[1].outcome is Outcome.OK
    teacher = {"kind": "openai", "base_url": endpoint.url, "model": "gpt", "sampling": {"max_tokens": 4}, **fields}
    run = make_run({**teacher, "budget": {"requests": 3}}, [{"prompt": "short"}, {"prompt": "long"}])
    prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / "again")
    assert look_ahead_all(prompts, run, journal_path=tmp_path / "journal.sqlite")[-1].spent.requests == 3


def test_tokens_of_both_calls_are_kept_whatever_comes_of_the_second() -> None:
    first = Reply(text="a", finish_reason="length", prompt_tokens=3, completion_tokens=4, cached_tokens=1)
    for further in (Reply(text="ab", prompt_tokens=5, completion_tokens=6), Reply(error="HTTP 500", prompt_tokens=5)):
        for policy in ("retry", "continue"):
            joined = join(_spec(on_truncated=policy), first, further)
            assert joined.prompt_tokens == 8
            assert joined.completion_tokens == 4 + further.completion_tokens
            assert joined.cached_tokens == 1


def test_a_retry_with_no_more_room_is_refused() -> None:
    with pytest.raises(ValueError, match="would cut the text again"):
        _spec(on_truncated="retry", truncated_max_tokens=512)


@pytest.mark.parametrize(
    ("policy", "tokens"),
    [
        ({"on_truncated": "keep"}, (10, 4)),
        ({"on_truncated": "retry"}, (20, 4 + 8)),
        ({"on_truncated": "retry", "truncated_max_tokens": 30}, (20, 4 + 30)),
        ({"on_truncated": "continue"}, (10 + 10 + 4, 4 + 4)),
    ],
)
def test_the_forecast_holds_for_texts_that_are_all_cut_off(policy: dict[str, Any], tokens: tuple[int, int]) -> None:
    price = {"input_usd_per_million": 1e6, "output_usd_per_million": 1e6}
    spec, lengths = _spec(sampling={"max_tokens": 4}, price=price, **policy), TextLengths(10, 4, 14, True)
    assert tokens_of_call(spec, lengths) == tokens
    assert price_of_calls(spec, 3, lengths) == pytest.approx(3 * sum(tokens))
