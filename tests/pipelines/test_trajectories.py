"""From a student's wrong attempts to a student that has learnt from their corrections, as a user types it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.artifacts import TrajectorySet
from proxykd.config import RunSpec
from proxykd.data.splits import TRAINING_SIDES, side_of
from proxykd.records import Prompt
from proxykd.teacher.problems import generate_prompts
from tests.support.endpoint import ScriptedEndpoint
from tests.support.program import NUM_PROMPTS, PROXYKD, SPECIFICATION, Finished, Home

pytestmark = pytest.mark.long
ALWAYS = {"check_drift", "promote_model"}


def answer_of(prompt: Prompt) -> str:
    return f"Let me add them up.\n#### {prompt.reference}"


@pytest.fixture
def prompts(tmp_path: Path, endpoint: ScriptedEndpoint) -> list[Prompt]:
    """Questions with recorded answers, and a teacher that corrects whatever it is shown."""
    found = list(generate_prompts(NUM_PROMPTS, 0))
    rows = [{"prompt": p.messages[-1].content, "answer": p.reference, "completion": answer_of(p)} for p in found]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def answer(request: str) -> tuple[int, Any]:
        prompt = next(prompt for prompt in found if prompt.messages[-1].content in request)
        return 200, endpoint.chat("The sum is off." if "Do not write" in request else answer_of(prompt))

    endpoint.answer = answer
    return found


def specify(home: Home, **sections: Any) -> dict[str, Any]:
    values = {
        **SPECIFICATION,
        "prompts": {"kind": "jsonl", "path": "rows.jsonl", "reference_field": "answer"},
        "evaluation": {**SPECIFICATION["evaluation"], "exact_kl": False},
        **sections,
    }
    (home.folder / "tiny.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return values


def correct(home: Home, prompts: list[Prompt], url: str, output: str) -> dict[str, Any]:
    api = {"kind": "openai", "base_url": url, "model": "gpt"}
    verifier = {"kind": "numeric", "answer_pattern": r"#### (-?\d+)"}
    specify(home, teacher=api, verifier=verifier, corrections={"rounds": 1})
    attempts = [{"prompt_id": prompt.prompt_id, "text": "#### 100000"} for prompt in prompts]
    (home.folder / "attempts.jsonl").write_text("\n".join(map(json.dumps, attempts)), encoding="utf-8")
    command = [PROXYKD, "correct", "tiny.yaml", "attempts.jsonl", output, "--quiet"]
    finished = subprocess.run(command, cwd=home.folder, env=home.environment(), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    summary: dict[str, Any] = json.loads(finished.stdout)
    return summary


def finish(home: Home, folders: list[str]) -> Finished:
    specify(home, teacher={"kind": "recorded"}, student={**SPECIFICATION["student"], "trajectories": folders})
    finished = home.run()
    assert finished.status == 0, finished.stderr
    return finished


def redone(home: Home) -> set[str]:
    return {step for step, status in home.statuses().items() if status == "completed"} - ALWAYS


def test_a_student_learns_from_what_the_teacher_corrected(
    tmp_path: Path, prompts: list[Prompt], endpoint: ScriptedEndpoint
) -> None:
    home = Home.create(tmp_path)
    split = RunSpec.model_validate(SPECIFICATION).split
    taught = [prompt for prompt in prompts if side_of(prompt.split_key, split) in TRAINING_SIDES]
    assert correct(home, prompts, endpoint.url, "corrections")["kept"] == len(taught) < len(prompts)
    report = finish(home, ["corrections"]).report
    found = TrajectorySet(tmp_path / "corrections" / "trajectories")
    for arm in ("sft", "proxy_kd"):
        told = report["facts"]["training"][arm]
        assert told["trajectories"]["num_examples"] == found.num_rows == len(taught)
        assert told["corpus"]["num_examples"] == 2 * len(taught)
        assert told["trajectories"]["weight_sum"] > 0.0
    assert report["facts"]["targets"]["num_samples"] == len(taught)
    assert report["facts"]["validation"]["num_rows"] == len(prompts)

    # The same again is in the cache; other trajectories behind the same name train the students anew, and nothing else.
    finish(home, ["corrections"])
    assert redone(home) == set()
    (tmp_path / "corrections").rename(tmp_path / "first")
    correct(home, prompts[: len(prompts) // 2], endpoint.url, "corrections")
    finish(home, ["corrections"])
    assert redone(home) == {"distill_student_sft", "distill_student_proxy_kd", "evaluate_student"}
