"""What is said while the teacher is asked: alive where answers are slow, the latest trouble where there is one."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.config.specification import RunSpec
from proxykd.teacher.asking import alive
from proxykd.teacher.query import collect_prompts, query_teacher


class _Recorder:
    def __init__(self) -> None:
        self.counts: list[int] = []

    def advance(self, count: int = 1, **_: float | str) -> None:
        self.counts.append(count)


def test_a_stage_that_waits_says_that_it_is_alive_until_it_ends() -> None:
    recorder = _Recorder()

    async def wait() -> None:
        async with alive(recorder, every_s=0.001):
            while len(recorder.counts) < 3:
                await asyncio.sleep(0.001)
        told = len(recorder.counts)
        await asyncio.sleep(0.01)
        assert recorder.counts == [0] * told

    asyncio.run(asyncio.wait_for(wait(), timeout=10))


@pytest.mark.parametrize("on_unanswered", ["stop", "fail_rows"])
def test_the_latest_trouble_stands_beside_the_count(
    endpoint: Any,
    make_run: Callable[..., RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    on_unanswered: str,
) -> None:
    monkeypatch.setenv("PROXYKD_PROGRESS", "lines")
    endpoint.answer = lambda question: (
        (503, {"error": {"message": "overloaded"}}) if endpoint.asked[question] == 1 else (200, endpoint.chat("fine"))
    )
    teacher = {"kind": "openai", "base_url": endpoint.url, "model": "gpt", "max_attempts": 2}
    run = make_run({**teacher, "on_unanswered": on_unanswered}, [{"prompt": f"question {n}"} for n in range(3)])
    prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / "prompts")
    query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=tmp_path / "completions")
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("Asking the teacher: 3"))
    assert line.endswith("not_ok=0, latest_error=HTTP 503: overloaded")
