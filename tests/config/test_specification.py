"""The specification itself: frozen, documented to the last field, sections that fit each other, ablations."""

import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from pydantic import ValidationError

from proxykd.config import DataSplitSpec, RunSpec
from proxykd.config.base import read_secret
from proxykd.exceptions import ConfigError


def make(**sections: Any) -> RunSpec:
    base = {
        "name": "a-run",
        "prompts": {"kind": "embedded"},
        "teacher": {"kind": "embedded"},
        "proxy": {"model": {"source": "embedded:proxy"}},
        "student": {"model": {"source": "embedded:student"}},
        "registry": {"model_name": "a-run"},
    }
    return RunSpec.model_validate({**base, **sections})


@cache
def definitions() -> list[tuple[str, dict[str, Any]]]:
    schema = RunSpec.model_json_schema()
    return [("RunSpec", schema), *schema["$defs"].items()]


@pytest.mark.parametrize(("name", "definition"), definitions(), ids=[name for name, _ in definitions()])
def test_every_field_is_documented(name: str, definition: dict[str, Any]) -> None:
    assert definition.get("description"), name
    models = dict(definitions())
    for field, schema in definition["properties"].items():
        if "description" not in schema and "$ref" in schema:  # left out where it equals the section's own
            schema = models[schema["$ref"].rpartition("/")[2]]
        assert schema.get("description", "").endswith("."), f"{name}.{field} has no sentence under it"
    assert definition["additionalProperties"] is False


def test_specifications_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make().seed = 3  # type: ignore[misc]


def test_importing_the_specification_imports_nothing_heavy() -> None:
    heavy = "torch transformers pandas zenml mlflow great_expectations"
    code = f"import sys, proxykd.config; print(*set('{heavy}'.split()) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"warmup": 0.2}, "must be 1, got 0.2 + 0.45 + 0.45"),
        ({"heldout": 0.6, "development": 0.4}, "must be below 1, got 0.6 + 0.4"),
        ({"heldout": -0.1}, "greater than or equal to 0"),
    ],
)
def test_shares_must_add_up(split: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataSplitSpec.model_validate(split)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"kind": "recorded"}}, "set prompts.kind=jsonl"),
        ({"prompts": {"kind": "jsonl", "path": "p"}}, "go together"),
        ({"teacher": {"kind": "openai", "model": "m"}}, "go together"),
        (
            {
                "prompts": {"kind": "jsonl", "path": "p"},
                "teacher": {"kind": "recorded"},
                "evaluation": {"exact_kl": True},
            },
            "needs teacher.kind=embedded",
        ),
        ({"teacher": {"kind": "embedded", "sampling": {"temperature": 0.5}}}, "temperature=0.5"),
        ({"name": "A run"}, "pattern"),
    ],
)
def test_sections_must_fit(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make(**sections)
    assert message in str(caught.value)


def test_each_ablation_becomes_ordinary_settings() -> None:
    plain = make()
    applied = {
        name: make(ablations=[name]).with_ablations_applied()
        for name in ("no_proxy", "unaligned_proxy", "no_preference", "no_weights")
    }
    assert all(run.ablations == () for run in applied.values())
    assert applied["no_proxy"].student.alpha == applied["no_proxy"].student.objective.prior_alpha == 0.0
    assert (applied["unaligned_proxy"].proxy.warmup, applied["unaligned_proxy"].proxy.preference) == (None, None)
    preference = applied["no_preference"].proxy.preference
    assert preference is not None
    assert preference.preference_coef == 0.0
    assert plain.proxy.preference is not None
    assert (preference.rounds, preference.epochs) == (plain.proxy.preference.rounds, plain.proxy.preference.epochs)
    assert applied["no_weights"].targets.weighting == "none"
    # Each touches one section and leaves the rest as it was.
    for name, section in (
        ("no_proxy", "student"),
        ("unaligned_proxy", "proxy"),
        ("no_preference", "proxy"),
        ("no_weights", "targets"),
    ):
        changed = {f for f in RunSpec.model_fields if getattr(applied[name], f) != getattr(plain, f)}
        assert changed == {section}


def test_ablations_combine_and_none_changes_nothing() -> None:
    run = make(ablations=["unaligned_proxy", "no_preference", "no_weights"]).with_ablations_applied()
    assert (run.proxy.warmup, run.proxy.preference, run.targets.weighting) == (None, None, "none")
    assert make().with_ablations_applied() == make()
    assert run.with_ablations_applied() == run


def test_models_by_role() -> None:
    assert {role: model.source for role, model in make().models().items()} == {
        "proxy": "embedded:proxy",
        "student": "embedded:student",
    }


def test_secrets_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYKD_TEST_KEY", "value")
    assert read_secret("${PROXYKD_TEST_KEY}") == "value"
    for unset in ("", " \n", None):
        if unset is None:
            monkeypatch.delenv("PROXYKD_TEST_KEY")
        else:
            monkeypatch.setenv("PROXYKD_TEST_KEY", unset)
        with pytest.raises(ConfigError, match="export PROXYKD_TEST_KEY="):
            read_secret("${PROXYKD_TEST_KEY}")


def test_a_secret_may_end_in_a_line_break_as_mounted_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYKD_TEST_KEY", " sk-secret\r\n")
    assert read_secret("${PROXYKD_TEST_KEY}") == "sk-secret"


@pytest.mark.parametrize("inside", ["\n", "\r", "\t", "\x1b", "\x7f", "\u200b"])
def test_a_secret_with_control_characters_is_refused_without_being_repeated(
    monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    monkeypatch.setenv("PROXYKD_TEST_KEY", f"sk-first{inside}second")
    with pytest.raises(ConfigError, match="environment variable PROXYKD_TEST_KEY") as caught:
        read_secret("${PROXYKD_TEST_KEY}")
    assert not any(part in str(caught.value) for part in ("sk-first", "second"))


POSTERIOR = {"kind": "posterior", "keep_prior": True}


def student_with(**objective: Any) -> dict[str, Any]:
    return {"model": {"source": "embedded:student"}, "objective": objective}


@pytest.mark.parametrize(
    ("objective", "targets", "message"),
    [
        ({"divergence": {"kind": "generalized_jsd"}}, {"reduction": {"kind": "sampled"}}, "kind=sampled .* forward KL"),
        ({"divergence": {"kind": "skew_kl"}}, {"reduction": {"kind": "threshold"}}, "kind=threshold .* forward KL"),
        ({"divergence": {"kind": "reverse_kl"}}, {"estimator": {"kind": "prior"}}, "allow every token"),
        (
            {"divergence": {"kind": "adaptive_kl"}},
            {"estimator": {**POSTERIOR, "hits": "sampled"}},
            "allow every token",
        ),
        ({"prior_alpha": 0.5}, {}, "prior_alpha=0.5 .*keep_prior"),
        ({"prior_alpha": 0.5}, {"estimator": {"kind": "posterior"}}, "keep_prior"),
        (
            {"prior_alpha": 0.5, "prior_divergence": {"kind": "total_variation"}},
            {"estimator": POSTERIOR, "reduction": {"kind": "sampled"}},
            "prior_divergence.kind=total_variation",
        ),
        ({"prior_divergence": {"kind": "reverse_kl"}}, {}, "infinite where counts"),
        ({"divergence": {"kind": "skew_kl", "skew": 1.0}}, {}, "less than 1"),
    ],
)
def test_an_objective_that_its_targets_cannot_serve_is_refused(
    objective: dict[str, Any], targets: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make(student=student_with(**objective), targets=targets)


def test_objectives_and_targets_that_fit_each_other() -> None:
    both = student_with(divergence={"kind": "reverse_kl"}, prior_alpha=0.5)
    run = make(student=both, targets={"estimator": POSTERIOR})
    applied = run.model_copy(update={"ablations": ("no_proxy",)}).with_ablations_applied()
    assert (applied.student.alpha, applied.student.objective.prior_alpha) == (0.0, 0.0)
    assert applied.student.objective.divergence.kind == "reverse_kl"
    make(student=student_with(), targets={"reduction": {"kind": "sampled"}})
    # A term that is off cannot clash.
    make(
        student={**student_with(divergence={"kind": "reverse_kl"}), "alpha": 0.0},
        targets={"estimator": {"kind": "prior"}},
    )
