"""A tiny run with two teachers from end to end: the better one, asked less, is the black box that is estimated."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.config import RunSpec
from proxykd.data.splits import TRAINING_SIDES, side_of
from proxykd.teacher.problems import generate_prompts
from proxykd.teacher.server import MODEL
from proxykd.teacher.serving import embedded_teacher
from tests.support.program import NUM_PROMPTS, SPECIFICATION, Home

pytestmark = pytest.mark.integration
SPEED = {"num_prompts": 2, "prompt_tokens": 4, "new_tokens": 2, "repeats": 1}


def test_a_run_learns_from_the_cheaper_teacher_first(tmp_path: Path) -> None:
    home, prompts = Home.create(tmp_path), list(generate_prompts(NUM_PROMPTS, 0))
    lines = (json.dumps({"prompt": prompt.messages[-1].content, "answer": prompt.reference}) for prompt in prompts)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with embedded_teacher(seed=1) as url:
        api: dict[str, Any] = {"kind": "openai", "base_url": url, "model": MODEL, "price": {
            "input_usd_per_million": 1.0, "output_usd_per_million": 1.0}}  # fmt: skip
        sections = {
            **SPECIFICATION,
            "prompts": {"kind": "jsonl", "path": "rows.jsonl", "reference_field": "answer"},
            "teacher": {**api, "sampling": {"max_tokens": 256}},
            "staging": {"earlier": [{"teacher": {**api, "sampling": {"max_tokens": 200}}}], "fraction": 0.5},
            "evaluation": {**SPECIFICATION["evaluation"], "exact_kl": False, "speed": SPEED},
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
        finished = home.run()
    assert finished.status == 0, finished.stderr
    split = RunSpec.model_validate(sections).split
    num_training = sum(side_of(prompt.split_key, split) in TRAINING_SIDES for prompt in prompts)
    assert finished.report["resources"]["tokens_per_s"] > 0
    facts = finished.report["facts"]
    cheap, main = facts["spend"]["teachers"]
    assert cheap["num_prompts"] == num_training
    assert NUM_PROMPTS - num_training < main["num_prompts"] < NUM_PROMPTS
    assert facts["spend"]["num_completions"] == cheap["num_prompts"] + main["num_prompts"] == home.num_answers()
    for arm in ("sft", "proxy_kd"):
        stages = facts["training"][arm]["corpus"]["stages"]
        by_main = main["num_prompts"] - (NUM_PROMPTS - num_training)
        assert [one["num_examples"] for one in stages] == [num_training, by_main]
        assert sum(one["num_steps"] for one in stages) == SPECIFICATION["student"]["steps"]
    assert facts["targets"]["num_samples"] == sum(one["num_examples"] for one in stages)
