"""Divergences from a teacher known at k tokens, the rest of its mass in one tail bucket.

Both sides become distributions over k + 1 outcomes, "token 1", ..., "token k", "any other". For the forward KL:

    sum_k p_k (log p_k - log q_k) + p_tail (log p_tail - log q_tail),    q_tail = 1 - sum_k q_k

By the data-processing inequality no f-divergence between the two exceeds the one over the whole vocabulary, and it
equals it when k is the vocabulary. Everything here is a function of k + 2 numbers a position.
"""

import torch
from torch import Tensor

from proxykd.divergences import outcomes
from proxykd.divergences.buckets import BucketedLogprobs, bucketed_logprobs
from proxykd.divergences.outcomes import Divergence
from proxykd.exceptions import ShapeError

# Below exp(-70) the student's tail no longer pulls: its gradient would otherwise overflow float32.
_MIN_TAIL_LOGPROB = -70.0


def bucketed_divergence(
    student: BucketedLogprobs, teacher_logprobs: Tensor, tail_logprob: Tensor, divergence: Divergence
) -> Tensor:
    """A divergence per position between two distributions over the same k tokens and one tail bucket.

    Args:
        student: As ``bucketed_logprobs`` returns it.
        teacher_logprobs: float [n, k]; -inf for a token that the teacher excludes, and in an unused slot.
        tail_logprob: float [n]; -inf where there is no tail.
        divergence: One of ``proxykd.divergences.outcomes``, its parameters bound.

    Returns:
        float [n], not reduced. Where the teacher has a tail, a student's tail below exp(-70) counts as exp(-70).

    Raises:
        ShapeError: if the teacher's shapes are not the student's.
    """
    if teacher_logprobs.shape != student.token_logprobs.shape or tail_logprob.shape != student.tail_logprob.shape:
        raise ShapeError(
            f"expected teacher_logprobs {tuple(student.token_logprobs.shape)} and tail_logprob "
            f"{tuple(student.tail_logprob.shape)}, got {tuple(teacher_logprobs.shape)} and {tuple(tail_logprob.shape)}"
        )
    dtype = student.token_logprobs.dtype
    has_no_tail = tail_logprob == -torch.inf
    student_tail = torch.where(has_no_tail, student.tail_logprob, student.tail_logprob.clamp_min(_MIN_TAIL_LOGPROB))
    return divergence(
        torch.cat([student.token_logprobs, student_tail[:, None]], dim=-1),
        torch.cat([teacher_logprobs.to(dtype), tail_logprob.to(dtype)[:, None]], dim=-1),
    )


def bucketed_forward_kl(student: BucketedLogprobs, teacher_logprobs: Tensor, tail_logprob: Tensor) -> Tensor:
    """KL(teacher || student) between two distributions over the same k tokens and one tail bucket, in nats.

    Args:
        student: As ``bucketed_logprobs`` returns it.
        teacher_logprobs: float [n, k]; -inf allowed (contributes 0).
        tail_logprob: float [n]; -inf where there is no tail.

    Returns:
        float [n], >= 0. A student's tail below exp(-70) counts as exp(-70).

    Raises:
        ShapeError: if the teacher's shapes are not the student's.
    """
    return bucketed_divergence(student, teacher_logprobs, tail_logprob, outcomes.forward_kl)


def sparse_forward_kl(
    student_logits: Tensor, token_ids: Tensor, teacher_logprobs: Tensor, tail_logprob: Tensor
) -> Tensor:
    """KL(teacher || student) per position over k tokens and one tail bucket, in nats.

    Args:
        student_logits: Unnormalised scores, float [n, vocab], one of them finite in each row.
        token_ids: The k tokens, int64 [n, k], distinct within a row; -1 marks an unused slot.
        teacher_logprobs: Their log-probabilities, float [n, k]; -inf allowed (contributes 0).
        tail_logprob: Log of the teacher's mass outside them, float [n]; -inf where there is none.

    Returns:
        float32 [n], >= 0; 0 where the bucketed distributions coincide. Its gradient is finite for every mass of
        either tail, 0 included. Not reduced.

    Raises:
        ShapeError: if the shapes do not fit each other.
    """
    unused_labels = token_ids.new_zeros(token_ids.shape[0])
    student = bucketed_logprobs(student_logits, token_ids, unused_labels)
    return bucketed_forward_kl(student, teacher_logprobs, tail_logprob)
