"""Policy gradients against a world small enough to list: three tokens, texts of up to three of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proxykd.divergences import outcomes
from proxykd.exceptions import ConfigError, ShapeError
from proxykd.policy_gradient import (
    MAX_REWARD,
    advantages,
    discounted_returns,
    importance_weights,
    mixture_logprobs,
    policy_losses,
    token_coefs,
    token_rewards,
)

VOCAB, END = 3, 0
PLAIN = {"discount": 1.0, "teacher_mix": 0.0, "single_step": False, "length_norm": False}


def texts(max_length: int, start: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """All texts that end with END or at the limit."""
    if start and (start[-1] == END or len(start) == max_length):
        yield start
        return
    for token in range(VOCAB):
        yield from texts(max_length, (*start, token))


class World(NamedTuple):
    """All texts, and both models as tables of scores, a row for each beginning of a text."""

    texts: list[tuple[int, ...]]
    student: Tensor
    proxy: Tensor
    rows: Tensor  # long [num_texts, length], which row of the tables each token is drawn from
    tokens: Tensor  # long [num_texts, length]
    mask: Tensor

    @classmethod
    def build(cls, max_length: int, seed: int = 0) -> "World":
        listed = list(texts(max_length))
        begins = sorted({text[:place] for text in listed for place in range(len(text))})
        rows, tokens = (torch.zeros(len(listed), max_length, dtype=torch.long) for _ in range(2))
        mask = torch.zeros(len(listed), max_length, dtype=torch.bool)
        for idx, text in enumerate(listed):
            for place, token in enumerate(text):
                rows[idx, place], tokens[idx, place] = begins.index(text[:place]), token
                mask[idx, place] = True
        generator = torch.Generator().manual_seed(seed)
        student, proxy = (torch.randn(len(begins), VOCAB, dtype=torch.float64, generator=generator) for _ in range(2))
        return cls(listed, student.requires_grad_(), proxy, rows, tokens, mask)

    def logprobs(self, scores: Tensor) -> Tensor:
        """Of each text's tokens, [num_texts, length]."""
        dense = scores.log_softmax(dim=-1)[self.rows]
        return dense.gather(2, self.tokens[..., None]).squeeze(2)

    def text_logprobs(self, token_logprobs: Tensor) -> Tensor:
        return token_logprobs.masked_fill(~self.mask, 0.0).sum(dim=1)

    def exact_gradient(self) -> Tensor:
        """Of KL(student || proxy) between the distributions over whole texts."""
        student, proxy = (self.text_logprobs(self.logprobs(side)) for side in (self.student, self.proxy))
        assert float(student.detach().exp().sum()) == pytest.approx(1.0)
        return gradient((student.exp() * (student - proxy)).sum(), self.student)

    def expected_gradient(self, **spec: float | bool) -> Tensor:
        """The mean of the estimator over all texts that the student (or the mixture) can write."""
        student, proxy = self.logprobs(self.student), self.logprobs(self.proxy)
        drawn = mixture_logprobs(student, proxy, teacher_mix=float(spec["teacher_mix"])).detach()
        coefs = token_coefs(student, proxy, self.mask, **spec)  # type: ignore[arg-type]
        losses = policy_losses(student, coefs)
        if spec["single_step"]:
            dense = self.student.log_softmax(dim=-1), self.proxy.log_softmax(dim=-1)
            losses = losses + outcomes.reverse_kl(*dense)[self.rows].masked_fill(~self.mask, 0.0)
        return gradient((self.text_logprobs(drawn).exp() * losses.sum(dim=1)).sum(), self.student)


def gradient(value: Tensor, at: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, at)
    return found


@pytest.mark.parametrize("max_length", [1, 2, 3])
@pytest.mark.parametrize("single_step", [False, True])
def test_the_estimates_mean_is_the_gradient_of_the_reverse_kl_between_texts(max_length: int, single_step: bool) -> None:
    world = World.build(max_length)
    found = world.expected_gradient(**{**PLAIN, "single_step": single_step})
    torch.testing.assert_close(found, world.exact_gradient(), rtol=1e-10, atol=1e-12)


def test_a_discount_or_means_over_lengths_are_another_gradient() -> None:
    world = World.build(3)
    exact = world.exact_gradient()
    for change in ({"discount": 0.5}, {"length_norm": True}):
        assert float((world.expected_gradient(**{**PLAIN, **change}) - exact).abs().max()) > 1e-3


def test_without_discounted_tokens_the_samples_estimate_what_the_single_step_computes() -> None:
    world = World.build(3)
    sampled, exact = (
        world.expected_gradient(**{**PLAIN, "discount": 0.0, "single_step": single_step})
        for single_step in (False, True)
    )
    torch.testing.assert_close(sampled, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("single_step", [False, True])
def test_a_mixture_changes_nothing_on_average_where_texts_have_one_token(single_step: bool) -> None:
    world = World.build(1)
    found = world.expected_gradient(**{**PLAIN, "teacher_mix": 0.4, "single_step": single_step})
    torch.testing.assert_close(found, world.exact_gradient(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spec", [PLAIN, {**PLAIN, "single_step": True, "length_norm": True, "teacher_mix": 0.2}])
def test_equal_models_have_no_gradient(spec: dict[str, float | bool]) -> None:
    world = World.build(3)
    same = world._replace(proxy=world.student.detach().clone())
    assert float(same.expected_gradient(**spec).abs().max()) < 1e-15


def test_random_draws_agree_with_the_mean() -> None:
    world, count = World.build(2), 20_000
    student, proxy = world.logprobs(world.student), world.logprobs(world.proxy)
    probs = world.text_logprobs(student).exp().detach()
    drawn = torch.multinomial(probs, count, replacement=True, generator=torch.Generator().manual_seed(1))
    losses = policy_losses(student, token_coefs(student, proxy, world.mask, **PLAIN)).sum(dim=1)  # type: ignore[arg-type]
    one_by_one = [torch.autograd.grad(loss, world.student, retain_graph=True)[0] for loss in losses]
    sample = torch.stack(one_by_one)[drawn]
    error = (sample.mean(dim=0) - world.exact_gradient()).abs()
    assert (error <= 5.0 * sample.std(dim=0) / count**0.5 + 1e-12).all()


ragged = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def by_lengths(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    rewards = torch.randn(
        len(lengths), max(lengths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return rewards, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@given(ragged, st.floats(0.0, 1.0), st.integers(0, 99))
def test_returns_equal_a_slow_loop(lengths: list[int], discount: float, seed: int) -> None:
    rewards, mask = by_lengths(lengths, seed)
    returns = discounted_returns(rewards, mask, discount=discount)
    for row, length in enumerate(lengths):
        for place in range(max(lengths)):
            later = range(place, length)
            expected = sum(discount ** (other - place) * float(rewards[row, other]) for other in later)
            assert float(returns[row, place]) == pytest.approx(expected, abs=1e-9)


@given(ragged, st.booleans(), st.integers(0, 99))
def test_length_normalised_advantages_are_means(lengths: list[int], single_step: bool, seed: int) -> None:
    rewards, mask = by_lengths(lengths, seed)
    found = advantages(rewards, mask, discount=1.0, single_step=single_step, length_norm=True)
    for row, length in enumerate(lengths):
        for place in range(length):
            later = rewards[row, place + single_step : length]
            assert float(found[row, place]) == pytest.approx(float(later.mean()) if len(later) else 0.0, abs=1e-9)
        assert (found[row, length:] == 0.0).all()


@given(st.integers(0, 99), st.floats(0.0, 0.99))
def test_importance_weights_average_to_one_under_the_mixture(seed: int, teacher_mix: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, proxy = (3.0 * torch.randn(7, dtype=torch.float64, generator=generator) for _ in range(2))
    student, proxy = student.log_softmax(0), proxy.log_softmax(0)
    weights = importance_weights(student, proxy, teacher_mix=teacher_mix)
    mixture = mixture_logprobs(student, proxy, teacher_mix=teacher_mix).exp()
    assert float(mixture.sum()) == pytest.approx(1.0)
    assert float((mixture * weights).sum()) == pytest.approx(1.0)
    assert float(weights.max()) <= 1.0 / (1.0 - teacher_mix) + 1e-9


def test_a_hand_computed_text() -> None:
    # log q = -1, -2, -1 and log p = -2, -1, -1: rewards -1, 1, 0; with discount 1/2 the returns are
    # -1 + 1/2 (1 + 0) = -1/2, 1, 0, and without the token's own reward 1/2, 0, 0.
    student, proxy = torch.tensor([[-1.0, -2.0, -1.0]]), torch.tensor([[-2.0, -1.0, -1.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    spec = {**PLAIN, "discount": 0.5}
    assert token_coefs(student, proxy, mask, **spec).tolist() == [[-0.5, 1.0, 0.0]]  # type: ignore[arg-type]
    own = token_coefs(student, proxy, mask, **{**spec, "single_step": True})  # type: ignore[arg-type]
    assert own.tolist() == [[0.5, 0.0, 0.0]]


def test_a_token_that_the_proxy_excludes_is_bounded() -> None:
    excluded = torch.tensor([-torch.inf])
    assert token_rewards(torch.tensor([-1.0]), excluded).tolist() == [-MAX_REWARD]
    weights = importance_weights(torch.tensor([-1.0]), excluded, teacher_mix=0.2)
    assert weights.tolist() == pytest.approx([1.25])


def refused() -> list[Callable[[], Tensor]]:
    values, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    return [
        lambda: discounted_returns(values, mask, discount=1.1),
        lambda: importance_weights(values, values, teacher_mix=1.0),
    ]


@pytest.mark.parametrize("call", refused())
def test_parameters_outside_their_range_are_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(ConfigError):
        call()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError):
        discounted_returns(torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool), discount=1.0)
