"""Nothing that a run leaves or says holds the key, however an endpoint repeats it."""

import logging
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import CompletionSet
from proxykd.config.specification import RunSpec
from proxykd.exceptions import ProxykdError
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.query import collect_prompts, probe_teacher, query_teacher
from tests.support.secrets import KEY, faults, faulty_endpoint, leaks, leaks_in, said_in_every_way, spellings
from tests.teacher.batches.conftest import BatchServer, server  # noqa: F401  (a fixture)
from tests.teacher.providers.shapes import anthropic_answer, gemini_answer, openai_answer

pytestmark = pytest.mark.integration

ANSWERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "openai": openai_answer,
    "anthropic": anthropic_answer,
    "gemini": gemini_answer,
}
NUM_FAULTS = len(faults(openai_answer))
ROWS = [{"prompt": f"question {number}. What now?"} for number in range(NUM_FAULTS + 2)]


def _said_by(error: BaseException) -> str:
    """All that an exception may say, to a log or to another process."""
    lines = "".join(traceback.format_exception(error))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  (our own)
    return f"{error!s} {error!r} {lines} {copy!r} {error.__dict__!r}"


def test_the_search_finds_every_spelling(tmp_path: Path) -> None:
    for name, needle in spellings().items():
        (tmp_path / "file").write_bytes(b"<" + needle + b">")
        assert name in leaks_in(tmp_path)[str(tmp_path / "file")]
    for response in faults(openai_answer)[:-3]:
        assert leaks(response) or b"gzip" in response


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_no_output_of_a_faulty_run_holds_the_key(
    make_run: Callable[..., RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    source: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    out, keys = tmp_path / "out", tmp_path / "keys"
    keys.mkdir()
    (keys / "key").write_text(KEY + "\n")
    monkeypatch.setenv("FAULTY_KEY", KEY)
    secret = {"api_key": "${FAULTY_KEY}"} if source == "environment" else {"api_key_file": str(keys / "key")}
    said = []
    with faulty_endpoint(ANSWERS[kind]) as endpoint:
        teacher = {"kind": kind, "base_url": endpoint.url, "model": "m", "max_attempts": 1, "concurrency": 1, **secret}
        sampling = {"top_logprobs": 0 if kind == "anthropic" else 2}
        run = make_run({**teacher, "sampling": sampling, "on_unanswered": "fail_rows"}, ROWS)
        prompts = collect_prompts(run.prompts, seed=0, output=out / "prompts")
        query_teacher(prompts, run, journal_path=out / "journal.sqlite", output=out / "completions")
        for number, prompt in enumerate(prompts.rows()):
            try:
                probe_teacher(run, journal_path=out / f"journal-{number}.sqlite", prompt=prompt)
            except ProxykdError as error:
                said.append(_said_by(error))
        said += [repr(run), run.model_dump_json(), repr(LiveTeacher.of(run, run.teacher))]  # type: ignore[arg-type]
    assert any(KEY.encode() in head for head in endpoint.requests)
    rows = list(CompletionSet(out / "completions").rows())
    assert len({row.outcome for row in rows}) > 1
    assert any("***" in row.text for row in rows)
    assert len(said) > 5
    printed = capfd.readouterr()
    for text in (*said, printed.out, printed.err, caplog.text, repr(rows)):
        assert not leaks(text)
    assert not leaks_in(out)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_no_output_of_a_faulty_batch_holds_the_key(
    server: BatchServer,  # noqa: F811
    make_run: Callable[..., RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    monkeypatch.setenv("FAULTY_KEY", KEY)
    everything = said_in_every_way()
    answers = iter([(400, everything), (200, everything), (500, everything)])
    server.answer = lambda question, _: next(answers, (200, KEY))
    out = tmp_path / "out"
    batch = {"poll_s": 0.02, "max_requests": 10}
    teacher = {"kind": kind, "base_url": server.url, "model": "m", "api_key": "${FAULTY_KEY}", "batch": batch}
    run = make_run({**teacher, "on_unanswered": "fail_rows", "budget": {"requests": 99}}, ROWS)
    prompts = collect_prompts(run.prompts, seed=0, output=out / "prompts")
    query_teacher(prompts, run, journal_path=out / "journal.sqlite", output=out / "completions")
    server.failure = (KEY, everything)
    failing = make_run({**teacher, "model": "n"}, ROWS)
    said = []
    if kind == "openai":
        with pytest.raises(ProxykdError) as caught:
            query_teacher(prompts, failing, journal_path=out / "journal.sqlite", output=out / "failing")
        said.append(_said_by(caught.value))
    rows = list(CompletionSet(out / "completions").rows())
    assert any("***" in row.text for row in rows)
    assert any("***" in row.reason for row in rows)
    for text in (*said, *capfd.readouterr(), repr(rows)):
        assert not leaks(text)
    assert not leaks_in(out)
