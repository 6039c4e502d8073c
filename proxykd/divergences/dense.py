"""Divergences over the whole vocabulary, from the student's scores: the oracle of the bucketed forms."""

from torch import Tensor

from proxykd.divergences import outcomes
from proxykd.divergences.buckets import accumulate_dtype
from proxykd.divergences.outcomes import Divergence
from proxykd.exceptions import ConfigError, ShapeError


def dense_divergence(
    student_logits: Tensor, teacher_logprobs: Tensor, divergence: Divergence, *, temperature: float = 1.0
) -> Tensor:
    """A divergence per position over the whole vocabulary.

    Args:
        student_logits: Unnormalised scores, float [..., vocab]; -inf allowed.
        teacher_logprobs: Log-probabilities, float [..., vocab]; -inf allowed.
        divergence: One of ``proxykd.divergences.outcomes``, its parameters bound.
        temperature: > 0; divides both sides' scores before they are normalised. The value is NOT multiplied by
            temperature**2; ``student_objective`` does that.

    Returns:
        float32 [...] (float64 for float64 scores), not reduced.

    Raises:
        ShapeError: if the shapes differ.
        ConfigError: if the temperature is not positive.
    """
    if student_logits.shape != teacher_logprobs.shape:
        raise ShapeError(
            f"expected student_logits and teacher_logprobs of one shape, got {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logprobs.shape)}; use bucketed_divergence for a teacher known at some tokens only"
        )
    if not temperature > 0.0:
        raise ConfigError(f"expected a temperature above 0, got {temperature}; 1 leaves the distributions as they are")
    dtype = accumulate_dtype(student_logits)
    student, teacher = student_logits.to(dtype), teacher_logprobs.to(dtype)
    if temperature != 1.0:
        student, teacher = student / temperature, (teacher / temperature).log_softmax(dim=-1)
    return divergence(student.log_softmax(dim=-1), teacher)


def forward_kl(student_logits: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(teacher || student) per position over the whole vocabulary, in nats.

    Args:
        student_logits: Unnormalised scores, float [..., vocab]; -inf allowed.
        teacher_logprobs: Log-probabilities, float [..., vocab]; -inf allowed (contributes 0).

    Returns:
        float32 [...], >= 0; 0 where the distributions coincide; inf where the student excludes a token that the
        teacher allows. Not reduced.

    Raises:
        ShapeError: if the shapes differ.

    References:
        Chen et al., Knowledge Distillation of Black-Box Large Language Models, arXiv:2401.07013, Eq. (8).
    """
    return dense_divergence(student_logits, teacher_logprobs, outcomes.forward_kl)
