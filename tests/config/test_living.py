"""What a living teacher can be combined with."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from proxykd.config import RunSpec

MakeRun = Callable[..., RunSpec]
GKD = {"kind": "gkd"}


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"processes": 2}, "processes"),
        ({"packing": True}, "packing"),
        ({"cross_tokenizer": {}}, "cross_tokenizer"),
        ({"alpha": 0.0}, "alpha"),
        ({"objective": {"divergence": {"kind": "reverse_kl"}}}, "objective"),
        ({"objective": {"prior_alpha": 1.0}}, "objective"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make_run: MakeRun, other: dict[str, Any], name: str) -> None:
    make_run(student={"living_teacher": GKD})
    with pytest.raises(ValidationError, match=f"got other settings of {name}:"):
        make_run(student={"living_teacher": GKD, **other})


@pytest.mark.parametrize("kind", [{"kind": "minillm", "teacher_mix": 1.0}, {"kind": "gkd", "on_policy": 1.5}])
def test_shares_lie_within_their_bounds(make_run: MakeRun, kind: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_run(student={"living_teacher": kind})


def test_targets_that_are_not_read_may_be_any(make_run: MakeRun) -> None:
    sampled = {"reduction": {"kind": "sampled"}}
    make_run(student={"living_teacher": {**GKD, "divergence": {"kind": "reverse_kl"}}}, targets=sampled)
    with pytest.raises(ValidationError, match="forward_kl"):
        make_run(student={"objective": {"divergence": {"kind": "reverse_kl"}}}, targets=sampled)


def test_the_ablation_without_proxy_has_no_living_teacher(make_run: MakeRun) -> None:
    run = make_run(student={"living_teacher": GKD}, ablations=["no_proxy"]).with_ablations_applied()
    assert run.student.living_teacher is None
    assert RunSpec.model_validate(run.model_dump()).student.alpha == 0.0


@pytest.mark.parametrize(
    "section", [{"ablations": ["no_weights"]}, {"targets": {"temperature": 2.0, "store": {"kind": "plain"}}}]
)
def test_what_a_living_teacher_would_not_heed_is_refused(make_run: MakeRun, section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="no_weights"):
        make_run(student={"living_teacher": GKD}, **section)


def test_packing_needs_an_attention_that_keeps_texts_apart(make_run: MakeRun) -> None:
    model = {"source": "embedded:student", "attention": "flash_attention_2"}
    with pytest.raises(ValidationError, match="packing=false"):
        make_run(student={"model": model, "packing": True})


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_that_no_generator_takes_are_refused(make_run: MakeRun, seed: int) -> None:
    with pytest.raises(ValidationError, match="seeds"):
        make_run(student={"seeds": [seed]})
