"""A proxy and a student with different tokenizers, from the texts to a trained student."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxykd.artifacts import ProxyModel, SplitSet, StudentModel, Targets, ValidatedSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.estimation.estimating import estimate_distributions
from proxykd.exceptions import ArtifactError, ConfigError
from proxykd.student.training import distill_student
from tests.support.tokenizer_pairs import byte_level, save_tiny_model, sentence_piece
from tests.support.trajectories import correct_all

pytestmark = pytest.mark.integration
Corpus = tuple[ValidatedSet, SplitSet]
MakeRun = Callable[..., RunSpec]


@pytest.fixture(scope="module")
def sources(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A byte-level proxy and a student with a dummy prefix and byte fallback."""
    texts = [row.text for row in corpus[0].rows()]
    folder = tmp_path_factory.mktemp("models")
    return {
        "proxy": save_tiny_model(folder / "proxy", byte_level(texts, vocab_size=500), seed=1),
        "student": save_tiny_model(folder / "student", sentence_piece(texts, vocab_size=460), seed=2),
    }


@pytest.fixture(scope="module")
def run(sources: dict[str, str], make_run: MakeRun) -> RunSpec:
    return make_run(
        proxy={"model": {"source": sources["proxy"], "max_seq_tokens": 200}},
        student={
            "model": {"source": sources["student"], "max_seq_tokens": 160},
            "steps": 40,
            "optimizer": {"batch_size": 8, "learning_rate": 5e-3, "schedule": "constant"},
            "cross_tokenizer": {},
        },
        targets={"reduction": {"kind": "top_k", "k": 12}, "weighting": "none"},
    )


@pytest.fixture(scope="module")
def targets(corpus: Corpus, run: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> Targets:
    folder = tmp_path_factory.mktemp("targets")
    # The proxy has read the teacher's texts, so that its distributions are worth learning.
    values = run.model_dump(mode="json")
    values["student"] |= {"model": values["proxy"]["model"], "steps": 60}
    warm = RunSpec.model_validate(values)
    trained = distill_student(*corpus, None, warm, arm="sft", output=folder / "sft", scratch=folder / "scratch")
    shutil.copytree(trained.path / "seed-0", folder / "proxy")
    proxy = ProxyModel(folder / "proxy")
    seal(proxy)
    return estimate_distributions(None, *corpus, proxy, run, output=folder / "targets", scratch=folder / "scratch")


def distill(corpus: Corpus, targets: Targets, run: RunSpec, folder: Path) -> StudentModel:
    return distill_student(*corpus, targets, run, arm="proxy_kd", output=folder / "out", scratch=folder / "scratch")


def with_cross(run: RunSpec, cross: Any) -> RunSpec:
    values = run.model_dump(mode="json")
    values["student"]["cross_tokenizer"] = cross
    return RunSpec.model_validate(values)


@pytest.mark.parametrize("cross", [{}, {"unshared": "transport", "uld_weight": 0.5}])
def test_a_student_with_another_tokenizer_learns_the_proxys_distributions(
    corpus: Corpus, targets: Targets, run: RunSpec, tmp_path: Path, cross: dict[str, Any]
) -> None:
    targets.verify()
    student = distill(corpus, targets, with_cross(run, cross), tmp_path)
    record = read_json(student.path / "training.json")
    kl = [step["kl"] for step in record["runs"][0]["curve"]]
    assert np.mean(kl[-5:]) < 0.6 * np.mean(kl[:5])
    facts = record["alignment"]
    assert facts["one_to_one"] + facts["grouped"] == pytest.approx(1.0, abs=1e-6)
    assert 0.3 < facts["position_share"] < 1.0
    assert facts["texts_rewritten"] == facts["texts_without_target"] == 0


def test_trajectories_are_weighed_and_not_aligned(
    corpus: Corpus, targets: Targets, run: RunSpec, tmp_path: Path
) -> None:
    values = run.model_dump(mode="json")
    values["student"] |= {"trajectories": [str(correct_all(corpus[0], tmp_path).path)], "steps": 3}
    student = distill(corpus, targets, RunSpec.model_validate(values), tmp_path)
    record = read_json(student.path / "training.json")
    told, facts = record["trajectories"], record["alignment"]
    assert told["num_examples"] > 0
    assert facts["one_to_one"] + facts["grouped"] == pytest.approx(1.0, abs=1e-6)
    assert facts["texts_without_target"] == 0
    # Attempt, feedback and update weigh 0, 1.5 and 0.5: all of it is there, and less of it counts.
    assert 0.0 < told["weight_sum"] < told["completion_tokens"]


def test_without_the_setting_targets_of_another_tokenizer_are_refused(
    corpus: Corpus, targets: Targets, run: RunSpec, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"student\.cross_tokenizer: \{\}"):
        distill(corpus, targets, with_cross(run, None), tmp_path)


@pytest.mark.parametrize("changed", [{"reduction": {"kind": "sampled", "draws": 8}}, {"temperature": 2.0}])
def test_drawn_and_tempered_targets_are_not_translated(
    corpus: Corpus, targets: Targets, run: RunSpec, tmp_path: Path, changed: dict[str, Any]
) -> None:
    values = run.model_dump(mode="json")
    values["targets"] |= changed
    other = RunSpec.model_validate(values)
    proxy = ProxyModel(targets.path.parent / "proxy")
    made = estimate_distributions(
        None, *corpus, proxy, other, output=tmp_path / "targets", scratch=tmp_path / "scratch"
    )
    with pytest.raises(ConfigError, match=r"targets\.reduction\.kind=top_k"):
        distill(corpus, made, other, tmp_path)
