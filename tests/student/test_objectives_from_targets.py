"""Every objective on targets as the estimators really write them: posterior and prior, samples, a temperature."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import ProxyModel, SplitSet, ValidatedSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.estimation.estimating import PRIOR, estimate_distributions
from proxykd.models.loading import load_model, load_tokenizer, save_model
from proxykd.student.inputs import PRIOR_FOLDER
from proxykd.student.training import distill_student

pytestmark = pytest.mark.integration

Corpus = tuple[ValidatedSet, SplitSet]
MakeRun = Callable[..., RunSpec]
POSTERIOR = {"kind": "posterior", "keep_prior": True}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> ProxyModel:
    """A saved proxy with random weights."""
    folder, spec = tmp_path_factory.mktemp("proxy"), make_run().proxy.model
    save_model(load_model(spec, seed=0), load_tokenizer(spec), folder / "model")
    seal(ProxyModel(folder))
    return ProxyModel(folder)


def test_both_stages_mean_the_same_folder() -> None:
    assert PRIOR == PRIOR_FOLDER


@pytest.mark.parametrize(
    ("objective", "targets"),
    [
        *(
            ({"divergence": {"kind": kind}, "prior_alpha": 0.5}, {"estimator": POSTERIOR})
            for kind in (
                "forward_kl",
                "reverse_kl",
                "generalized_jsd",
                "skew_kl",
                "skew_reverse_kl",
                "total_variation",
                "adaptive_kl",
            )
        ),
        ({"divergence": {"kind": "forward_kl"}}, {"reduction": {"kind": "sampled", "draws": 20}}),
        ({"divergence": {"kind": "forward_kl"}}, {"reduction": {"kind": "threshold", "k": 8}}),
        ({"divergence": {"kind": "generalized_jsd"}}, {"estimator": {"kind": "prior"}}),
        ({"divergence": {"kind": "reverse_kl"}, "prior_alpha": 0.5}, {"estimator": POSTERIOR, "temperature": 2.0}),
    ],
)
def test_an_objective_learns_from_what_the_estimators_write(
    corpus: Corpus,
    proxy: ProxyModel,
    make_run: MakeRun,
    tmp_path: Path,
    objective: dict[str, Any],
    targets: dict[str, Any],
) -> None:
    student = {
        "objective": objective,
        "alpha": 10.0,
        "steps": 12,
        "optimizer": {"batch_size": 8, "learning_rate": 3e-3},
    }
    run = make_run(student=student, targets=targets)
    stored = estimate_distributions(None, *corpus, proxy, run, output=tmp_path / "targets", scratch=tmp_path / "s1")
    trained = distill_student(
        *corpus, stored, run, arm="proxy_kd", output=tmp_path / "student", scratch=tmp_path / "s2"
    )
    curve = read_json(trained.path / "training.json")["runs"][0]["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert ("prior_divergence" in curve[0]) == ("prior_alpha" in objective)
    assert ("divergence" in curve[0]) == (objective["divergence"]["kind"] != "forward_kl")
