"""A small corpus of the embedded teacher's texts, split, and a specification with the embedded models."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from proxykd.artifacts import SplitSet, ValidatedSet, seal
from proxykd.config import RunSpec
from proxykd.data.splits import build_splits
from proxykd.records import Outcome, ValidatedRow
from proxykd.teacher.problems import generate_prompts, sample_completion

NUM_PROMPTS = 60

# Models this small only lose time to threads, much of it where other work shares the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[ValidatedSet, SplitSet]:
    """Validated rows and their sides, in shared mode with a development side."""
    folder = tmp_path_factory.mktemp("corpus")
    validated, rng = ValidatedSet(folder / "validated"), random.Random(0)
    validated.write(
        ValidatedRow(
            prompt.prompt_id,
            0,
            prompt.messages,
            sample_completion(prompt.messages[-1].content, rng),
            prompt.task,
            prompt.reference,
            Outcome.OK,
            "keep",
            "",
        )
        for prompt in generate_prompts(NUM_PROMPTS, 0)
    )
    seal(validated)
    return validated, build_splits(validated, run_spec().split, output=folder / "splits")


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunSpec]:
    """``run_spec``, for tests."""
    return run_spec


def run_spec(**sections: Any) -> RunSpec:
    """A run of the embedded models with a few short steps; ``sections`` replaces whole sections."""
    student = {"model": {"source": "embedded:student", "num_layers": 1, "max_seq_tokens": 160}, "steps": 3}
    values: dict[str, Any] = {
        "name": "tiny",
        "prompts": {"kind": "embedded", "count": NUM_PROMPTS},
        "teacher": {"kind": "embedded"},
        "split": {"mode": "shared", "development": 0.2},
        "proxy": {"model": {"source": "embedded:proxy", "num_layers": 1, "max_seq_tokens": 160}},
        "registry": {"model_name": "tiny"},
    }
    student["optimizer"] = {"batch_size": 4, "learning_rate": 1e-3}
    student |= sections.pop("student", {})
    return RunSpec.model_validate({**values, **sections, "student": student})
