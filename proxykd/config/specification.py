"""The whole run specification and its smaller sections."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from proxykd.config.base import Count, Fraction, Spec
from proxykd.config.corrections import CorrectionsSpec
from proxykd.config.estimation import LogprobsEstimatorSpec, TargetsSpec
from proxykd.config.evaluation import EvaluationSpec
from proxykd.config.gate import GateSpec
from proxykd.config.models import ModelSpec, PreferenceSpec, ProxySpec, StudentSpec
from proxykd.config.prompts import EmbeddedPromptsSpec, OpenAIFinetuningPromptsSpec, PromptsSpec
from proxykd.config.shielding import unshielded
from proxykd.config.staging import StagingSpec
from proxykd.config.teacher import ApiTeacherSpec, RecordedTeacherSpec, TeacherSpec
from proxykd.config.terms import UNKNOWN
from proxykd.config.validation import ValidationSpec
from proxykd.config.verifiers import VerifierSpec

Ablation = Literal["no_proxy", "unaligned_proxy", "no_preference", "no_weights"]


class DataSplitSpec(Spec):
    """Which part of the corpus each stage sees (Proxy-KD, section 1.1), by the hash of the prompt's id."""

    mode: Literal["disjoint", "shared"] = "disjoint"
    """disjoint = warm-up, alignment and distillation see different prompts; shared = each sees all three sides."""
    heldout: Fraction = 0.1
    """Share of all prompts kept for the evaluation."""
    development: Fraction = 0.05
    """Share of all prompts on which learning rates are chosen."""
    warmup: Fraction = 0.10
    """Share of the remaining prompts for the proxy's warm-up."""
    alignment: Fraction = 0.45
    """Share of the remaining prompts for the preference rounds."""
    distillation: Fraction = 0.45
    """Share of the remaining prompts for the student."""
    min_heldout: Count = 20
    """Fewest held-out prompts with which an evaluation is worth making."""

    @model_validator(mode="after")
    def _sums(self) -> Self:
        if abs(self.warmup + self.alignment + self.distillation - 1.0) > 1e-6:
            raise ValueError(
                f"warmup + alignment + distillation must be 1, got "
                f"{self.warmup} + {self.alignment} + {self.distillation}"
            )
        if self.heldout + self.development >= 1.0:
            raise ValueError(f"heldout + development must be below 1, got {self.heldout} + {self.development}")
        return self


class RegistrySpec(Spec):
    """Under which name the student is registered."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Registered model name."""
    licence: str = UNKNOWN
    """Licence under which the student is given to others, an SPDX identifier, for its card; unknown = nobody has
    stated it."""
    language: tuple[str, ...] = ()
    """Languages that the student speaks, by their ISO 639 codes, for its card; empty = not stated."""


class QuerySpec(Spec):
    """Questions and who answers them: the part of a run that can be used alone."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything but the students, which have their own."""
    prompts: PromptsSpec
    """The questions."""
    teacher: TeacherSpec
    """The black box."""

    @model_validator(mode="after")
    def _prompts_and_teacher_fit(self) -> Self:
        if isinstance(self.teacher, RecordedTeacherSpec):
            _check_recorded(self.prompts, self.teacher)
        if (self.prompts.kind == "embedded") != (self.teacher.kind == "embedded"):
            raise ValueError(
                f"the embedded teacher and the embedded prompts go together; got prompts.kind={self.prompts.kind!r} "
                f"and teacher.kind={self.teacher.kind!r}"
            )
        return self


class RunSpec(QuerySpec):
    """One run: a black-box teacher becomes a registered student."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    """Name of the run, of its MLflow experiment and of its pipeline."""
    staging: StagingSpec | None = None
    """Cheaper teachers from which the student learns before it learns from ``teacher``; None = there are none."""
    verifier: VerifierSpec | None = None
    """How a completion is checked against what is known of its prompt; None = it is not."""
    validation: ValidationSpec = ValidationSpec()
    """Which rows may teach."""
    split: DataSplitSpec = DataSplitSpec()
    """Which stage sees which prompts."""
    proxy: ProxySpec
    """The open stand-in for the black box."""
    targets: TargetsSpec = TargetsSpec()
    """The distributions that the student learns from."""
    student: StudentSpec
    """The model that the user will own."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """How the arms are compared."""
    corrections: CorrectionsSpec | None = None
    """How the teacher corrects the student's wrong attempts, for `proxykd correct`; None = it does not."""
    gate: GateSpec = GateSpec()
    """What the student has to show before it becomes champion."""
    registry: RegistrySpec
    """Where the student goes."""
    ablations: tuple[Ablation, ...] = ()
    """Parts of the method to switch off, as in the paper's ablations: no_proxy (hard labels only), unaligned_proxy,
    no_preference (alignment by NLL alone), no_weights (every sample weighs 1)."""

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.staging is None:
            return self
        if not isinstance(self.teacher, ApiTeacherSpec):
            raise ValueError(
                f"staging needs teachers that are asked: a live API as the main teacher too (kind: openai, anthropic, "
                f"gemini); got teacher.kind={self.teacher.kind!r}"
            )
        teachers = [*(one.teacher for one in self.staging.earlier), self.teacher]
        asked = [(one.kind, one.provider, one.model, one.sampling) for one in teachers]
        if twins := [one for position, one in enumerate(asked) if one in asked[:position]]:
            raise ValueError(
                f"staging asks the model {twins[0][2]!r} of {twins[0][1]} twice with the same sampling, which gives "
                "the same texts twice; name another model or another sampling"
            )
        if self.student.steps < len(teachers):
            raise ValueError(
                f"staging has {len(teachers)} teachers, so that student.steps must be at least {len(teachers)}; got "
                f"{self.student.steps}"
            )
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.corrections is not None and (self.verifier is None or not isinstance(self.teacher, ApiTeacherSpec)):
            raise ValueError(
                f"corrections need a verifier, which says what is wrong, and a live API, which answers all; got "
                f"verifier={self.verifier and self.verifier.kind!r}, teacher.kind={self.teacher.kind!r}"
            )
        _check_slices(self.gate, self.evaluation)
        if self.evaluation.exact_kl and self.teacher.kind != "embedded":
            raise ValueError("evaluation.exact_kl needs teacher.kind=embedded: no other teacher tells its odds")
        if isinstance(self.targets.estimator, LogprobsEstimatorSpec) and not _tells_logprobs(self.teacher):
            raise ValueError(
                f"targets.estimator.kind=logprobs needs an API that is asked for its probabilities; set "
                f"teacher.sampling.top_logprobs (1 to 20), or another estimator; got teacher.kind={self.teacher.kind!r}"
            )
        if self.student.living_teacher is None:
            self.student.objective.check_targets(self.targets, alpha=self.student.alpha)
        elif "no_weights" in self.ablations or self.targets.temperature != 1.0:
            raise ValueError(
                "student.living_teacher weighs every sample alike and tempers nothing: leave out the ablation "
                "no_weights and targets.temperature"
            )
        if self.proxy.model.max_seq_tokens < self.student.model.max_seq_tokens:
            raise ValueError(
                f"the proxy must read all that the student learns; got proxy.model.max_seq_tokens="
                f"{self.proxy.model.max_seq_tokens} below student.model.max_seq_tokens="
                f"{self.student.model.max_seq_tokens}"
            )
        return self

    @property
    def main_stage(self) -> int:
        """Stage of the main teacher's texts, the last one."""
        return 0 if self.staging is None else len(self.staging.earlier)

    def with_ablations_applied(self) -> "RunSpec":
        """The specification in which each listed ablation has become ordinary settings and the list is empty."""
        proxy, targets, student = self.proxy, self.targets, self.student
        if "no_proxy" in self.ablations:
            objective = student.objective.model_copy(update={"prior_alpha": 0.0})
            student = student.model_copy(update={"alpha": 0.0, "objective": objective, "living_teacher": None})
        if "unaligned_proxy" in self.ablations:
            proxy = proxy.model_copy(update={"warmup": None, "preference": None})
        if "no_preference" in self.ablations and proxy.preference is not None:
            proxy = proxy.model_copy(update={"preference": _without_preference_term(proxy.preference)})
        if "no_weights" in self.ablations:
            targets = targets.model_copy(update={"weighting": "none"})
        return self.model_copy(update={"proxy": proxy, "targets": targets, "student": student, "ablations": ()})

    def with_questions_guarded(self) -> "RunSpec":
        """The specification in which no row may teach that shares text with a file of the evaluation's tasks."""
        validation = self.validation
        files = dict.fromkeys((*validation.evaluation_files, *self.evaluation.question_files()))
        return self.model_copy(update={"validation": validation.model_copy(update={"evaluation_files": tuple(files)})})

    @classmethod
    def view(cls, sections: Mapping[str, Any]) -> "RunSpec":
        """A specification that knows the given sections only; reading any other raises AttributeError.

        A step gets a view, so that it cannot depend on a section that its cache key does not contain.

        Args:
            sections: Section name -> its value in plain JSON types, shielded or not (``proxykd.config.shielding``).
        """
        plain = unshielded(dict(sections))
        values = {name: TypeAdapter(_annotation(cls, name)).validate_python(value) for name, value in plain.items()}
        run = cls.model_construct(**values)
        for name in set(cls.model_fields) - set(values):
            run.__dict__.pop(name, None)
        return run

    def models(self) -> dict[str, ModelSpec]:
        """The open models of the run by role."""
        return {"proxy": self.proxy.model, "student": self.student.model}


def _check_slices(gate: GateSpec, evaluation: EvaluationSpec) -> None:
    """Refuse a rule on a slice that no prompt can fall into before anything is paid for."""
    for rule in gate.slices:
        field, _, value = rule.slice.partition("=")
        if value and field.isalpha() and field not in evaluation.slices.by:
            raise ValueError(
                f"gate.slices names {rule.slice!r}, but evaluation.slices.by divides by "
                f"{', '.join(evaluation.slices.by) or 'nothing'} alone; add {field!r} to it, or drop the rule"
            )


def _tells_logprobs(teacher: TeacherSpec) -> bool:
    return not isinstance(teacher, RecordedTeacherSpec) and teacher.sampling.top_logprobs > 0


def _check_recorded(prompts: PromptsSpec, teacher: RecordedTeacherSpec) -> None:
    if isinstance(prompts, EmbeddedPromptsSpec):
        raise ValueError("teacher.kind=recorded reads its texts from the prompts' data: set prompts.kind=jsonl, say")
    if prompts.is_expanded:
        raise ValueError(
            "teacher.kind=recorded has its texts already, which nobody can elicit otherwise any more: leave out "
            "prompts.system_messages and prompts.examples; a system message of each row's goes into "
            "prompts.system_template"
        )
    standard = RecordedTeacherSpec.model_fields["completion_field"].default
    if isinstance(prompts, OpenAIFinetuningPromptsSpec) and teacher.completion_field != standard:
        raise ValueError(
            f"prompts.kind=openai_finetuning takes the assistant's last message as the completion; leave out "
            f"teacher.completion_field={teacher.completion_field!r}"
        )


def _annotation(model: type[Spec], name: str) -> Any:
    field = model.model_fields[name]
    return Annotated[field.annotation, field] if field.metadata or field.discriminator else field.annotation


def _without_preference_term(preference: PreferenceSpec) -> PreferenceSpec:
    return preference.model_copy(update={"preference_coef": 0.0})
