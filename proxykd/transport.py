"""Distance between two distributions whose tokens cannot be named in common: their sorted probabilities compared.

Universal logit distillation takes the Wasserstein distance under a uniform cost, which has a closed form: sort both
lists of probabilities, fill the shorter one with zeros, and add up the absolute differences:

    ULD(p, q) = sum_k | p_(k) - q_(k) |

Of a teacher known at its r likeliest tokens only, the first r terms are known exactly, and the remaining ones are at
least the difference of the two remaining masses:

    ULD_r(p, q) = sum_(k <= r) | p_(k) - q_(k) |  +  | sum_(k > r) p_(k) - sum_(k > r) q_(k) |  <=  ULD(p, q)

Both lists may be parts of distributions (the tokens that have no twin), so that their masses need not be 1 or equal.

References:
    Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs,
    arXiv:2402.12030.
"""

import torch
from torch import Tensor

from proxykd.exceptions import ShapeError


def sorted_transport(teacher_probs: Tensor, student_probs: Tensor, *, teacher_rest: Tensor | None = None) -> Tensor:
    """Sum of absolute differences of sorted probabilities, per position.

    Args:
        teacher_probs: Probabilities of the teacher's r likeliest tokens, in any order, float [n, r]; 0 = unused slot.
        student_probs: Probabilities of all of the student's tokens, in any order, float [n, m]; carries the gradient.
        teacher_rest: Mass of the teacher's other tokens, float [n]; None = unknown, and what the student has beyond
            its r likeliest tokens is not compared. Zeros = there are none.

    Returns:
        float32 [n] (float64 for a float64 student), in [0, 2]; 0 where the sorted lists are equal. Never above the
        same sum over whole lists, and equal to it where r covers both. Not reduced. Where a difference is exactly 0
        its gradient is 0.

    Raises:
        ShapeError: if the shapes do not fit each other.

    Example:
        >>> teacher, student = torch.tensor([[0.5, 0.2]]), torch.tensor([[0.1, 0.4, 0.1]])
        >>> round(sorted_transport(teacher, student, teacher_rest=torch.zeros(1)).item(), 4)  # .1 + .1 + .1
        0.3
    """
    _check(teacher_probs, student_probs, teacher_rest)
    student = student_probs.to(torch.float64 if student_probs.dtype == torch.float64 else torch.float32)
    teacher = teacher_probs.to(student.dtype).sort(dim=-1, descending=True).values
    width = min(teacher.shape[1], student.shape[1])
    top = student.topk(width, dim=-1).values
    distance = (teacher[:, :width] - top).abs().sum(dim=-1) + teacher[:, width:].sum(dim=-1)
    if teacher_rest is None:
        return distance
    return distance + (teacher_rest.to(student.dtype) - (student.sum(dim=-1) - top.sum(dim=-1))).abs()


def _check(teacher_probs: Tensor, student_probs: Tensor, teacher_rest: Tensor | None) -> None:
    rows = teacher_probs.shape[:1]
    fits = teacher_probs.ndim == student_probs.ndim == 2 and student_probs.shape[:1] == rows
    if not fits or (teacher_rest is not None and teacher_rest.shape != rows):
        raise ShapeError(
            f"expected teacher_probs [n, r], student_probs [n, m] and teacher_rest [n], got "
            f"{tuple(teacher_probs.shape)}, {tuple(student_probs.shape)} and "
            f"{None if teacher_rest is None else tuple(teacher_rest.shape)}"
        )
