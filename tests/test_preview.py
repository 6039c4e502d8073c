"""The preview: the body that is sent, to the byte; what it costs, by hand; no key, no call, nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest

from proxykd.config import load_specification
from proxykd.data.shares import Share
from proxykd.preview import make_preview, preview_text
from proxykd.records import Message, Prompt
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.query import collect_prompts, probe_teacher
from proxykd.workspace import Workspace

PRICE = {"input_usd_per_million": 1.0, "output_usd_per_million": 10.0}
LIVE = {
    "kind": "openai",
    "base_url": "http://127.0.0.1:9/v1",
    "model": "m",
    "api_key": "${PREVIEW_KEY_THAT_IS_UNSET}",
    "price": PRICE,
    "sampling": {"max_tokens": 50},
}


def bodies(text: str) -> list[Any]:
    """The JSON objects of a printed preview."""
    decoder, found = json.JSONDecoder(), []
    while (start := text.find("\n{\n")) >= 0:
        value, length = decoder.raw_decode(text[start + 1 :])
        found.append(value)
        text = text[start + 1 + length :]
    return found


def test_it_shows_the_very_bodies_that_are_sent(proxykd: Any, write: Any, tmp_path: Path) -> None:
    config = write(teacher=LIVE, prompts__system_messages="explanation_traces")
    ended = proxykd("preview", config)
    assert (ended.status, ended.err) == (0, "")
    run = load_specification(Path(config)).with_ablations_applied()
    keyless = run.teacher.model_copy(update={"api_key": None})
    prompts = list(collect_prompts(run.prompts, seed=run.seed, output=tmp_path / "prompts").rows())
    teacher = LiveTeacher.of(run, keyless)  # type: ignore[arg-type]
    assert bodies(ended.out) == [teacher.request(prompt, 0).body for prompt in prompts[:3]]
    assert ended.out.count("POST http://127.0.0.1:9/v1/chat/completions\n") == 3
    assert "PREVIEW_KEY" not in ended.out
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("rows", "shown"), [("1", 1), ("300", 300), ("1000", 300)])
def test_it_shows_as_many_as_are_asked_for(proxykd: Any, write: Any, rows: str, shown: int) -> None:
    assert len(bodies(proxykd("preview", write(teacher=LIVE), "--rows", rows).out)) == shown


def test_prices_are_those_of_the_worst_case(write: Any, tmp_path: Path) -> None:
    run = load_specification(Path(write(teacher={**LIVE, "sampling": {"max_tokens": 50, "num_samples": 2}})))
    found = make_preview(run, workspace=Workspace(tmp_path / "home"), rows=1)
    # [{"role": "user", "content": "How much is 0 plus 0?"}] is 54 bytes: 2 * (54 * 1 + 50 * 10) / 1e6
    assert found.prompts[0].usd == pytest.approx(2 * (54 + 500) / 1e6)
    assert (found.num_prompts, found.num_calls, found.calls_left) == (300, 600, 600)
    assert found.usd_left == pytest.approx(600 * (found.lengths.prompt + 500) / 1e6)
    text = preview_text(found)
    assert "sent 2 times, each with a seed of its own" in text
    assert "600 calls" in text
    assert "at most 30,000 out" in text


def test_an_unknown_price_is_said(proxykd: Any, write: Any) -> None:
    assert proxykd("preview", write(teacher={**LIVE, "price": None})).out.count("price unknown: set teacher.price") == 4


def test_a_recorded_teacher_sends_nothing(proxykd: Any, write: Any) -> None:
    ended = proxykd("preview", write(), "--rows", "2")
    assert ended.status == 0
    assert "How much is 1 plus 1?" in ended.out
    assert "recorded completion:\nIt is 2." in ended.out
    assert "300 prompts with recorded completions, no calls, 0.00 USD" in ended.out
    assert "POST" not in ended.out


def test_the_embedded_teacher_costs_nothing(proxykd: Any, write: Any) -> None:
    ended = proxykd("preview", write(prompts={"kind": "embedded", "count": 40}, teacher={"kind": "embedded"}))
    assert len(bodies(ended.out)) == 3
    assert "40 calls" in ended.out
    assert ended.out.count("0.00 USD") == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts__template": "{{ promtp }}"}, ["rows.jsonl, line 1", "'promtp'", "did you mean 'prompt'?"]),
        ({"prompts__template": "{{ prompt"}, ["prompts.template", "expected a template"]),
        ({"prompts__kind": "xml"}, ["prompts", "jsonl", "parquet"]),
        ({"prompts__system_messages": "explanation_traces"}, ["recorded", "leave out"]),
    ],
)
def test_bad_input_is_one_message(proxykd: Any, write: Any, changes: dict[str, Any], words: list[str]) -> None:
    ended = proxykd("preview", write(**changes))
    assert (ended.status, ended.out) == (2, "")
    assert all(word in ended.err for word in words), ended.err
    assert "Traceback" not in ended.err


def test_what_the_journal_has_is_not_paid_again(write: Any, tmp_path: Path) -> None:
    run = load_specification(Path(write(prompts={"kind": "embedded", "count": 40}, teacher={"kind": "embedded"})))
    workspace = Workspace(tmp_path / "home")
    workspace.enter()
    before = make_preview(run, workspace=workspace)
    probe_teacher(run, journal_path=workspace.journal, prompt=before.prompts[0].prompt)
    after = make_preview(run, workspace=workspace)
    assert (before.calls_left, after.calls_left, after.num_calls) == (40, 39, 40)
    assert "39 calls (1 more are in the journal)" in preview_text(after)


def test_a_staged_run_shows_what_each_teacher_is_sent_and_needs_no_key(proxykd: Any, write: Any) -> None:
    cheap = {**LIVE, "model": "cheap", "base_url": "http://127.0.0.1:9/v2", "sampling": {"max_tokens": 20}}
    config = write(teacher=LIVE, staging={"earlier": [{"teacher": cheap}], "fraction": 0.5})
    ended = proxykd("preview", config, "--rows", "300")
    assert (ended.status, ended.err) == (0, "")
    models = [body["model"] for body in bodies(ended.out)]
    run = load_specification(Path(config))
    shares = [Share(1.0, False, run.split), Share(0.5, True, run.split)]
    prompts = [Prompt.build([Message("user", f"How much is {n} plus {n}?")]) for n in range(300)]
    counts = [sum(share.has(prompt.split_key) for prompt in prompts) for share in shares]
    assert [models.count("cheap"), models.count("m")] == counts
    assert f"the whole run: 300 prompts, {sum(counts)} calls" in ended.out
    assert f"- cheap: {counts[0]} prompts, {counts[0]} calls" in ended.out
    assert f"at most {20 * counts[0]:,} out" in ended.out


def test_a_plan_of_a_staged_run_lists_the_teachers(proxykd: Any, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREVIEW_KEY_THAT_IS_UNSET", "key")
    cheap = {**LIVE, "model": "cheap", "api_key": "${ANOTHER_KEY_THAT_IS_UNSET}", "budget": {"usd": 2}}
    config = write(teacher=LIVE, staging={"earlier": [{"teacher": cheap}], "fraction": 0.5})
    ended = proxykd("plan", config)
    assert (ended.status, "ANOTHER_KEY_THAT_IS_UNSET" in ended.err) == (2, True)
    monkeypatch.setenv("ANOTHER_KEY_THAT_IS_UNSET", "key")
    ended = proxykd("plan", config)
    assert ended.status == 0, ended.err
    assert "from cheap" in ended.out
    assert "from m " in ended.out
    assert "cheap: " in ended.out
    few = write(teacher=LIVE, staging={"earlier": [{"teacher": cheap, "fraction": 1e-9}]})
    ended = proxykd("plan", few)
    assert (ended.status, "staging.earlier[0]" in ended.err) == (2, True)
