"""The main job: a black-box teacher becomes a registered student."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from zenml import pipeline
from zenml.config.cache_policy import CachePolicy

from proxykd.config import RunSpec
from proxykd.config.shielding import unshielded
from proxykd.config.steps import portion_name
from proxykd.own_code import code_hash
from steps import (
    align_proxy,
    check_drift,
    distill_student,
    estimate_distributions,
    estimate_distributions_portion,
    evaluate_student,
    promote_model,
    query_teacher,
    query_teacher_portion,
    split,
    validate_data,
)
from steps.settings import settings_for

WITHOUT_TARGETS = CachePolicy(ignored_inputs=["targets", "proxy"])
"""The SFT arm opens neither targets nor proxy: others do not train it again."""
FROM_TARGETS = CachePolicy(ignored_inputs=["proxy"])
"""The distilled arm opens the targets, which are the proxy's."""
FROM_PROXY = CachePolicy(ignored_inputs=["targets"])
"""The distilled arm with a living teacher opens the proxy alone."""


@dataclass(frozen=True)
class _Wiring:
    """What each step of a run is told.

    Attributes:
        run: The specification.
        models: Role -> identity of the model behind its source.
        portions: Step -> in how many parts its prompts are worked on; those left out are one.
    """

    run: RunSpec
    models: Mapping[str, str]
    portions: Mapping[str, int]

    def told(self, module: ModuleType) -> dict[str, Any]:
        """Settings, hash of the code and, where it opens some, identities of models."""
        settings = settings_for(self.run, *module.SECTIONS)
        found: dict[str, Any] = {"settings": settings, "code": code_hash(module.__name__)}
        if roles := getattr(module, "MODELS", ()):
            found["models"] = {role: self.models[role] for role in roles}
        return found

    def in_portions(self, name: str, module: ModuleType, *made_from: Any, **more: Any) -> list[Any]:
        """What the portions of a step hand over, each a step of its own; nothing where the step is not divided."""
        count, portion_step = self.portions.get(name, 1), getattr(module, f"{name}_portion")
        arguments = {**self.told(module), **more, "of": count}
        return [
            portion_step(*made_from, **arguments, number=number, id=portion_name(name, number, count))
            for number in range(count if count > 1 else 0)
        ]


@pipeline(enable_cache=True, enable_step_logs=False)
def distill(
    specification: dict[str, Any],
    inputs: str,
    models: dict[str, str],
    files: str,
    trajectories: str,
    task_files: str,
    baseline: dict[str, Any] | None,
    portions: dict[str, int] | None = None,
) -> None:
    """Wire the steps.

    Args:
        specification: The resolved run specification, ablations applied, shielded (``proxykd.config.shielding``).
        inputs: Hash of the prompts' file.
        models: Role -> identity of the model behind its source.
        files: Hash of the files that the validation reads.
        trajectories: Identity of the trajectories that the students learn from; "" = there are none.
        task_files: Hash of the files that the evaluation's tasks read.
        baseline: What the last accepted runs measured, as ``proxykd.data.accepted`` keeps it; None = there is none.
        portions: One of ``DIVISIBLE`` -> in how many parts its prompts are worked on, each part a step of its own (a
            shard, in a pod of its own on a cluster); None = every step is one.
    """
    run = RunSpec.model_validate(unshielded(specification))

    wiring = _Wiring(run, models, portions or {})
    told, in_portions = wiring.told, wiring.in_portions
    answers = in_portions("query_teacher", query_teacher_portion, inputs=inputs)
    prompts, completions, journal = query_teacher.query_teacher(answers, **told(query_teacher), inputs=inputs)
    validated, validation, _ = validate_data.validate_data(
        prompts,
        completions,
        **told(validate_data),
        files=files,
        tokenizer=run.student.model.source if run.validation.counts_tokens else None,
        models={"student": models["student"]} if run.validation.counts_tokens else {},
    )
    drift = check_drift.check_drift(validation, baseline=baseline, **told(check_drift))
    splits = split.split(validated, validation, drift, **told(split))
    proxy = align_proxy.align_proxy(validated, splits, **told(align_proxy))
    targets = None
    if run.student.reads_targets:
        texts = completions, validated, splits, proxy
        parts = in_portions("estimate_distributions", estimate_distributions_portion, *texts)
        targets = estimate_distributions.estimate_distributions(parts, *texts, **told(estimate_distributions))
    both = {**told(distill_student), "trajectories": trajectories}
    soft = FROM_TARGETS if run.student.living_teacher is None else FROM_PROXY
    sft, student = (
        distill_student.distill_student.with_options(cache_policy=policy)(
            validated, splits, targets, proxy, arm=arm, **both, id=f"distill_student_{arm}"
        )
        for arm, policy in (("sft", WITHOUT_TARGETS), ("proxy_kd", soft))
    )
    made = completions, validation, validated, splits, proxy, targets, sft, student
    evaluation = evaluate_student.evaluate_student(*made, files=task_files, **told(evaluate_student))
    promote_model.promote_model(
        journal,
        validation,
        drift,
        validated,
        splits,
        student,
        evaluation,
        specification=specification,
        planned=None if run.prompts.kind == "embedded" else inputs,
        code=code_hash(promote_model.__name__),
    )
