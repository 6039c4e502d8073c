"""The proxy as a living teacher: what it teaches while the student learns, in place of distributions stored before.

docs/methods/living-teacher.md has the equations and says when to choose which.
"""

from typing import Annotated, Literal

from pydantic import Field

from proxykd.config.base import Count, Fraction, PositiveFloat, Spec
from proxykd.config.objective import DivergenceSpec, GeneralizedJsdSpec


class GkdSpec(Spec):
    """Generalised distillation: any divergence over the whole vocabulary, on the teacher's texts or the student's own.

    On-policy distillation is ``on_policy: 1`` with ``divergence: {kind: reverse_kl}``.
    """

    kind: Literal["gkd"] = "gkd"
    """Agarwal et al., arXiv:2306.13649."""
    on_policy: Fraction = 0.5
    """Share of the steps, drawn at random, in which the student writes the texts itself; 0 = the teacher's texts with
    the proxy's whole distributions, 1 = its own in every step. 0.5 is the paper's mixture."""
    divergence: DivergenceSpec = GeneralizedJsdSpec()
    """How far the student is from the proxy, at each position; a symmetric Jensen-Shannon divergence unless told."""
    own_divergence: DivergenceSpec | None = None
    """Another divergence for the texts that the student writes; None = the same. ``skew_kl`` above and
    ``skew_reverse_kl`` here are the pair of DistiLLM-2 (arXiv:2503.07067)."""
    temperature: PositiveFloat = 1.0
    """Divides both models' scores in the divergence, which is then multiplied by its square (by itself for the total
    variation), so that its gradient keeps its size."""
    sampling_temperature: PositiveFloat = 1.0
    """Temperature at which the student writes; 1 = its own distribution, for which on-policy distillation is meant."""
    max_new_tokens: Count = 256
    """Longest text of its own, in tokens; ``student.model.max_seq_tokens`` bounds it too."""


class MiniLlmSpec(Spec):
    """Policy gradient of the reverse KL between whole texts, KL(student || proxy), on texts of the student's own.

    ``discount: 0`` with ``single_step: false``, ``teacher_mix: 0`` and ``length_norm: false`` is the form of Thinking
    Machines: each token's advantage is log p - log q.
    """

    kind: Literal["minillm"] = "minillm"
    """Gu et al., arXiv:2306.08543."""
    discount: Fraction = 0.95
    """How much of the next token's return counts for this one; 1 = the gradient of the reverse KL itself, 0 = each
    token answers for itself alone. 0.95 is the authors' choice."""
    teacher_mix: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of the proxy in the distribution from which the texts are drawn, so that they stay readable while the
    student is weak; each token is weighted by how much likelier the student would have drawn it. 0.2 is the paper's."""
    length_norm: bool = True
    """Divide each return by the number of tokens it sums over, so that long texts are not shunned."""
    single_step: bool = True
    """Take the part of the gradient that belongs to the token itself exactly, over the whole vocabulary, and leave the
    tokens behind it alone to sampling."""
    max_new_tokens: Count = 256
    """Longest text, in tokens; ``student.model.max_seq_tokens`` bounds it too."""


class OkdSpec(Spec):
    """Online distillation: small adapters on the frozen proxy are trained with the student, so that they meet."""

    kind: Literal["okd"] = "okd"
    """arXiv:2409.12512."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of the proxy's adapters (LoRA on all its linear layers but the head)."""
    learning_rate: PositiveFloat = 1e-4
    """Peak learning rate of the adapters; it follows the student's schedule."""
    anchor: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the proxy's own NLL of the teacher's texts, without which it would move to whatever the student finds
    easy."""


LivingTeacherSpec = Annotated[GkdSpec | MiniLlmSpec | OkdSpec, Field(discriminator="kind")]
