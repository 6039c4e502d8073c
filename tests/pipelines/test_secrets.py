"""The whole program against an endpoint that repeats the key: no store, no page, no log and no output holds it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.teacher.problems import generate_prompts, sample_completion
from tests.support.program import SPECIFICATION, Home
from tests.support.secrets import KEY, faulty_endpoint, leaks, leaks_in
from tests.teacher.providers.shapes import openai_answer

pytestmark = pytest.mark.integration
_NUM_PROMPTS = 120


def _write_specification(home: Home, url: str, num_faults: int) -> dict[str, str]:
    """Write the run's specification and its questions; returns question -> text of a good answer."""
    questions = [prompt.messages[-1].content for prompt in generate_prompts(_NUM_PROMPTS, 0)]
    # The first question is the probe, which stops at an endpoint that cannot be used at all.
    asked = [f"{text} This is question {number - 1}." if 0 < number <= num_faults else text
             for number, text in enumerate(questions)]  # fmt: skip
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in asked)
    (home.folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    values: dict[str, Any] = {
        **SPECIFICATION,
        "prompts": {"kind": "jsonl", "path": "rows.jsonl"},
        "teacher": {
            "kind": "openai",
            "base_url": url,
            "model": "m",
            "api_key": "${FAULTY_KEY}",
            "max_attempts": 1,
            "on_unanswered": "fail_rows",
            "sampling": {"top_logprobs": 2},
        },
        "validation": {"min_keep_fraction": 0.2, "rules": {"failed": {"max_fraction": 0.5}}},
        "evaluation": {"resamples": 100},
    }
    (home.folder / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return dict(zip(asked, (sample_completion(text, random.Random(0)) for text in questions), strict=True))


def test_no_store_page_log_or_output_of_a_faulty_run_holds_the_key(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home")
    with faulty_endpoint(openai_answer) as endpoint:
        texts = _write_specification(home, endpoint.url, len(endpoint.responses))
        endpoint.good = lambda body: texts[json.loads(body)["messages"][-1]["content"]]
        endpoint.refuses = True
        refused = home.run(FAULTY_KEY=KEY)
        endpoint.refuses = False
        finished = home.run(FAULTY_KEY=KEY)
    assert refused.status == 2, refused.stderr
    assert finished.status == 0, finished.stderr
    assert set(finished.report["arms"]) >= {"none", "sft", "proxy_kd"}
    assert any(KEY.encode() in head for head in endpoint.requests)
    for text in (refused.stdout, refused.stderr, finished.stdout, finished.stderr):
        assert not leaks(text)
    assert (home.workspace.root / "zenml").is_dir()
    assert home.workspace.mlflow_uri
    assert not leaks_in(home.folder)
