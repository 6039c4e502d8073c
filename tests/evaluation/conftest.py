"""A small real corpus of the embedded teacher, tiny untrained models, and one evaluation of them."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet, seal
from proxykd.config import RunSpec
from proxykd.data.splits import build_splits
from proxykd.evaluation.evaluating import evaluate
from proxykd.models.loading import load_model, load_tokenizer, save_model
from proxykd.records import Outcome, ValidatedRow
from proxykd.teacher.problems import generate_prompts, sample_completion

# Models this small only lose time to threads, much of it where other work shares the cores.
torch.set_num_threads(1)

SPECIFICATION: dict[str, Any] = {
    "name": "tiny",
    "prompts": {"kind": "embedded", "count": 50},
    "teacher": {"kind": "embedded"},
    "split": {"heldout": 0.4, "development": 0.1},
    "proxy": {"model": {"source": "embedded:proxy", "max_seq_tokens": 256}},
    "student": {"model": {"source": "embedded:student", "max_seq_tokens": 256}, "seeds": [3, 4]},
    "evaluation": {
        "exact_kl": True,
        "exact_kl_prompts": 6,
        "resamples": 200,
        "tasks": [{"name": "sums", "answer_pattern": r"#### (-?\d+)", "max_new_tokens": 6, "limit": 5}],
    },
    "registry": {"model_name": "tiny"},
}


@pytest.fixture(scope="session")
def run_spec() -> RunSpec:
    return RunSpec.model_validate(SPECIFICATION)


@pytest.fixture(scope="session")
def validated(tmp_path_factory: pytest.TempPathFactory) -> ValidatedSet:
    """50 prompts with two texts each."""
    rng = random.Random(0)
    rows = [
        ValidatedRow(
            prompt_id=prompt.prompt_id,
            sample_idx=sample_idx,
            messages=prompt.messages,
            text=sample_completion(prompt.messages[-1].content, rng),
            task=prompt.task,
            reference=prompt.reference,
            outcome=Outcome.OK,
            verdict="keep",
            request_hash="",
        )
        for prompt in generate_prompts(50, 0)
        for sample_idx in (0, 1)
    ]
    rows.append(replace(rows[-1], sample_idx=2, verdict="too_short", text=""))
    found = ValidatedSet(tmp_path_factory.mktemp("validated"))
    found.write(rows)
    seal(found)
    return found


@pytest.fixture(scope="session")
def splits(validated: ValidatedSet, run_spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> SplitSet:
    return build_splits(validated, run_spec.split, output=tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="session")
def arms(run_spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Untrained students of four seeds: two each for two arms."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(run_spec.student.model)
    for seed in range(4):
        save_model(load_model(run_spec.student.model, seed=seed), tokenizer, root / str(seed))
    return {"sft": [root / "0", root / "1"], "proxy_kd": [root / "2", root / "3"]}


FACTS: dict[str, Any] = {
    "spend": {"num_completions": 100, "cost_usd": 0.25},
    "fidelity": [{"stage": "unaligned", "development_nll": 7.0, "top1_agreement": None}],
    "curves": {"sft/seed-3": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]},
    "validation": {
        "gate": {"is_open": True, "reasons": []},
        "verdicts": {"overlap": 0},
        "rules": {"overlap": {"broken": 1, "measured": 60}},
    },
    "made_from": {"student": "ab" * 32},
}


@pytest.fixture(scope="session")
def evaluation(
    arms: dict[str, list[Path]],
    validated: ValidatedSet,
    splits: SplitSet,
    run_spec: RunSpec,
    tmp_path_factory: pytest.TempPathFactory,
) -> Evaluation:
    root = tmp_path_factory.mktemp("evaluation")
    output, scratch = root / "output", root / "scratch"
    scratch.mkdir()
    return evaluate(arms, validated, splits, run_spec, facts=FACTS, output=output, scratch=scratch)
