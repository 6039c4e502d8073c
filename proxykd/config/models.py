"""Open models and how they are trained: the proxy and the student."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from proxykd.config.base import Count, Fraction, InputPath, ModelSource, PositiveFloat, Spec
from proxykd.config.cross_tokenizer import CrossTokenizerSpec
from proxykd.config.living import LivingTeacherSpec
from proxykd.config.objective import ObjectiveSpec
from proxykd.exceptions import ConfigError


class LoraSpec(Spec):
    """Low-rank adapters instead of full weights; merged into the weights when the model is saved."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapters."""
    lora_alpha: PositiveFloat = 32.0
    """Scale: the update is multiplied by lora_alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapters' inputs."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get adapters; all-linear = every one but the head."""


class ModelSpec(Spec):
    """Where an open model comes from and which part of it is used."""

    source: ModelSource
    """A folder, a hub name, ``embedded:proxy`` or ``embedded:student`` (tiny, random weights), or
    ``package:IMPORT_NAME/FILE.gguf`` (a GGUF file inside an installed Python package)."""
    num_layers: Count | None = None
    """Keep so many of its layers, evenly spaced, first and last among them; None = all."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward passes; the weights and the optimiser stay float32 while training."""
    attention: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = None
    """transformers' implementation of attention; None = its choice. On CPUs eager trains short texts faster."""
    lora: LoraSpec | None = None
    """Train adapters only; None = all weights."""
    max_seq_tokens: Annotated[int, Field(ge=16)] = 1024
    """Longest prompt plus completion, in tokens; longer completions are cut, longer prompts are left out."""


class OptimizerSpec(Spec):
    """AdamW and its schedule, for one stage."""

    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate."""
    batch_size: Count = 16
    """Sequences a step."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps in which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Course of the learning rate after the warm-up; cosine and linear end at 0."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""


class WarmupSpec(Spec):
    """Supervised fine-tuning of the proxy on the warm-up side (Proxy-KD, section "proxy alignment")."""

    optimizer: OptimizerSpec = OptimizerSpec()
    """How it is trained."""
    epochs: PositiveFloat = 1.0
    """Passes over the warm-up side."""


class PreferenceSpec(Spec):
    """Rounds of NLL + DPO in which the teacher's text is preferred to the proxy's own (Proxy-KD, Eq. 3-6)."""

    optimizer: OptimizerSpec = OptimizerSpec(learning_rate=2e-5)
    """How it is trained."""
    rounds: Count = 1
    """K: each round samples the proxy afresh and takes the previous round's proxy as the reference."""
    epochs: PositiveFloat = 1.0
    """Passes over the alignment side in all rounds together."""
    beta: PositiveFloat = 0.1
    """DPO's beta. The paper does not state it; 0.1 is the common choice."""
    nll_coef: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the NLL of the teacher's text (Eq. 6: 1)."""
    preference_coef: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the preference term (Eq. 6: 1); 0 = the same rounds with NLL alone, and nothing is sampled."""
    temperature: PositiveFloat = 1.0
    """Temperature at which the proxy's own completions are sampled."""
    max_new_tokens: Count = 256
    """Longest sampled completion, in tokens."""
    sampling_batch_tokens: Count = 16_384
    """Bound on completions * (prompt + ``max_new_tokens``) that each process samples together. More is faster where
    there is memory for their keys and values, above all with ``fsdp``, whose every token gathers all weights."""


class ProxySpec(Spec):
    """The open stand-in for the black box."""

    model: ModelSpec
    """The model."""
    warmup: WarmupSpec | None = WarmupSpec()
    """First stage of the alignment; None = leave it out."""
    preference: PreferenceSpec | None = PreferenceSpec()
    """Second stage of the alignment; None = leave it out. Without both, the proxy stays unaligned."""
    processes: Count = 1
    """Processes on this machine that share the alignment (torchrun), one an accelerator. With several, other
    completions are drawn for the preference rounds than one process draws. A placement's launcher goes before it."""
    fsdp: bool = False
    """Share the proxy's weights out among the processes (FSDP), for one that an accelerator has no room for: each layer
    is gathered in every pass, and in every token that is sampled. False = each process has the whole proxy (DDP); with
    one process it is the same."""
    gradient_checkpointing: bool = False
    """Keep each layer's inputs alone and compute the rest again: less memory for about a third more time."""


class StudentSpec(Spec):
    """The model that the user will own, and its baseline."""

    model: ModelSpec
    """The model."""
    optimizer: OptimizerSpec = OptimizerSpec(learning_rate=3e-4)
    """How it is trained; its learning rate is the one used unless ``learning_rates`` lists several."""
    learning_rates: tuple[PositiveFloat, ...] = ()
    """Search grid, the same for every arm: each is tried with the first seed, and the one with the lowest NLL on the
    development side wins. Empty = no search."""
    steps: Count = 300
    """Optimiser steps, the same for every arm."""
    alpha: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the weighted divergence against the NLL, both means over tokens (Eq. 11). The paper's 100 belongs to
    an unstated normalisation; with means over tokens about 1 is right. 0 = hard labels only."""
    objective: ObjectiveSpec = ObjectiveSpec()
    """Which divergence it is, and the prior's term."""
    packing: bool = False
    """Lay several texts of a micro-batch behind each other into one row instead of padding each; they do not see each
    other. Pays where lengths differ much."""
    gradient_checkpointing: bool = False
    """Keep each layer's inputs alone and compute the rest again: less memory for about a third more time."""
    processes: Count = 1
    """Processes on this machine that share each training run (torchrun and FSDP), one an accelerator. A placement's
    launcher goes before it."""
    checkpoint_s: Annotated[float, Field(ge=0.0)] = 300.0
    """Seconds between two checkpoints of a training run, from which the same command goes on after a kill."""
    cross_tokenizer: CrossTokenizerSpec | None = None
    """How targets of another tokenizer are aligned and translated, {} = as usual; None = the proxy must have the
    student's tokenizer. Where it has, this changes nothing."""
    living_teacher: LivingTeacherSpec | None = None
    """The proxy itself teaches while the student learns, and the stored targets are not read by it: ``gkd``,
    ``minillm`` or ``okd``; ``alpha`` is the weight of its term. None = the student learns from the stored targets."""
    trajectories: tuple[InputPath, ...] = ()
    """Folders that `proxykd correct` wrote: what teaches in them is learnt beside the teacher's answers, by both arms,
    each part with the weight that it was given there. By NLL alone: no distributions are estimated for them. Empty =
    there are none."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    """A student is trained for each; the first one is registered."""

    @property
    def reads_targets(self) -> bool:
        """Whether it learns from stored distributions: they have a weight, and no living teacher takes their place."""
        return self.living_teacher is None and (self.alpha > 0.0 or self.objective.prior_alpha > 0.0)

    def check_one_process(self) -> None:
        """Check that the distilled arm can do without student and teacher in one process; its baseline always can.

        Raises:
            ConfigError: naming the setting for which it cannot.
        """
        alone = {"cross_tokenizer": self.cross_tokenizer, "living_teacher": self.living_teacher}
        if found := [name for name, value in alone.items() if value is not None and self.alpha > 0.0]:
            raise ConfigError(
                f"student.{found[0]} needs student and teacher in one process; leave student.processes=1, and let the "
                "placement's launcher of distill_student_proxy_kd be of kind process"
            )

    @model_validator(mode="after")
    def _alignment_fits(self) -> Self:
        if self.cross_tokenizer is not None and (self.processes > 1 or self.objective.prior_alpha > 0.0):
            raise ValueError(
                f"cross_tokenizer translates one set of targets for one process; got processes={self.processes}, "
                f"objective.prior_alpha={self.objective.prior_alpha:g}: set them to 1 and 0"
            )
        return self

    @model_validator(mode="after")
    def _packing_fits(self) -> Self:
        if self.packing and self.model.attention == "flash_attention_2":
            raise ValueError(
                "packing lays texts into rows that model.attention=flash_attention_2 would let see each other; set "
                "packing=false or another attention (sdpa, flex_attention)"
            )
        return self

    @model_validator(mode="after")
    def _living_teacher_fits(self) -> Self:
        if self.living_teacher is None:
            return self
        unfit = {
            "processes": self.processes > 1,
            "packing": self.packing,
            "cross_tokenizer": self.cross_tokenizer is not None,
            "alpha": self.alpha == 0.0,
            "objective": self.objective != ObjectiveSpec(),
        }
        if found := [name for name, is_unfit in unfit.items() if is_unfit]:
            raise ValueError(
                f"living_teacher={self.living_teacher.kind} holds student and proxy in one process, one text a row, "
                "with one tokenizer, a weight above 0 and a divergence of its own (gkd's divergence); got other "
                f"settings of {', '.join(found)}: leave them as they are by default, or living_teacher out"
            )
        return self

    @field_validator("seeds", "trajectories")
    @classmethod
    def _distinct(cls, value: tuple[int | Path, ...], info: ValidationInfo) -> tuple[int | Path, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"expected distinct {info.field_name}, got ({', '.join(map(str, value))})")
        return value
