"""Sorted-probability transport: what makes it a distance, its bounds, its gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxykd.exceptions import ShapeError
from proxykd.transport import sorted_transport

ROWS = 5


def random_probs(seed: int, width: int, *, mass: float = 1.0) -> Tensor:
    logits = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    return logits.softmax(-1) * mass


def dense(teacher: Tensor, student: Tensor) -> Tensor:
    """The published form, over whole lists filled with zeros."""
    width = max(teacher.shape[1], student.shape[1])
    lists = [
        torch.nn.functional.pad(probs.sort(descending=True).values, (0, width - probs.shape[1]))
        for probs in (teacher, student)
    ]
    return (lists[0] - lists[1]).abs().sum(-1)


def kept(teacher: Tensor, count: int) -> tuple[Tensor, Tensor]:
    top = teacher.topk(count).values
    return top, teacher.sum(-1) - top.sum(-1)


@given(seed=st.integers(0, 10**6), widths=st.tuples(st.integers(1, 9), st.integers(1, 9)), mass=st.floats(0.0, 1.0))
@settings(max_examples=60)
def test_whole_lists_give_the_published_form(seed: int, widths: tuple[int, int], mass: float) -> None:
    teacher, student = random_probs(seed, widths[0], mass=mass), random_probs(seed + 1, widths[1])
    found = sorted_transport(teacher, student, teacher_rest=torch.zeros(ROWS))
    torch.testing.assert_close(found, dense(teacher, student))
    assert ((found >= 0) & (found <= 2 + 1e-12)).all()


@given(seed=st.integers(0, 10**6), count=st.integers(1, 8))
@settings(max_examples=60)
def test_a_kept_part_never_exceeds_the_whole(seed: int, count: int) -> None:
    teacher, student = random_probs(seed, 8), random_probs(seed + 1, 12)
    top, rest = kept(teacher, count)
    whole, bounded = dense(teacher, student), sorted_transport(top, student, teacher_rest=rest)
    assert (bounded <= whole + 1e-12).all()
    assert (sorted_transport(top, student) <= bounded + 1e-12).all()
    assert (sorted_transport(top, student) >= 0).all()


def test_equal_sorted_lists_are_at_distance_0_in_any_order() -> None:
    teacher = random_probs(0, 7)
    shuffled = teacher[:, torch.randperm(7, generator=torch.Generator().manual_seed(1))]
    zeros = torch.zeros(ROWS)
    torch.testing.assert_close(sorted_transport(teacher, shuffled, teacher_rest=zeros), zeros.double())
    student = random_probs(1, 9)
    one, other = sorted_transport(teacher, student), sorted_transport(shuffled, student.flip(-1))
    torch.testing.assert_close(one, other)


def test_unused_slots_and_missing_tokens_count_as_zeros() -> None:
    teacher, student = torch.tensor([[0.5, 0.2, 0.0]]), torch.tensor([[0.1, 0.4]])
    # sorted: .5 .2 0 against .4 .1: .1 + .1
    assert sorted_transport(teacher, student).item() == pytest.approx(0.2)
    # .5 .2 against .4 .1 .1 with nothing left of the teacher: .1 + .1 + .1
    student = torch.tensor([[0.1, 0.4, 0.1]])
    assert sorted_transport(teacher[:, :2], student, teacher_rest=torch.zeros(1)).item() == pytest.approx(0.3)
    # and with 0.1 left of the teacher the rest agrees
    assert sorted_transport(teacher[:, :2], student, teacher_rest=torch.tensor([0.1])).item() == pytest.approx(0.2)
    # nothing to compare with
    assert sorted_transport(teacher, torch.zeros(1, 0)).item() == pytest.approx(0.7)
    assert sorted_transport(torch.zeros(1, 0), student).item() == 0.0


def test_the_gradient_is_that_of_float64_and_of_differences() -> None:
    teacher = random_probs(0, 4)
    logits = torch.randn(ROWS, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()

    def total(scores: Tensor) -> Tensor:
        return sorted_transport(teacher[:, :3], scores.softmax(-1), teacher_rest=teacher[:, 3]).sum()

    assert torch.autograd.gradcheck(total, (logits,))
    total(logits).backward()
    low = logits.detach().float().requires_grad_()
    total(low).backward()
    assert low.grad is not None
    torch.testing.assert_close(low.grad.double(), logits.grad, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_finite_and_zero_at_equality() -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    probs = torch.full((2, 4), 0.25)
    sorted_transport(probs, logits.softmax(-1), teacher_rest=torch.zeros(2)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 4))


def test_no_rows_give_no_distances() -> None:
    assert sorted_transport(torch.zeros(0, 3), torch.zeros(0, 5)).shape == (0,)


@pytest.mark.parametrize(
    ("teacher", "student", "rest"),
    [((2, 3), (3, 3), None), ((2,), (2, 3), None), ((2, 3), (2, 3), (3,)), ((2, 3), (2, 3), (2, 1))],
)
def test_shapes_that_do_not_fit_are_refused(teacher, student, rest) -> None:
    with pytest.raises(ShapeError, match="expected teacher_probs"):
        sorted_transport(
            torch.zeros(teacher), torch.zeros(student), teacher_rest=None if rest is None else torch.zeros(rest)
        )
