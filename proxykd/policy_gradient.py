"""Reverse KL between whole texts, by policy gradient: rewards, returns, advantages, importance weights, the surrogate.

With q the student, p the proxy and y a text that was drawn from q:

    KL(q || p) = E_y sum_t [log q(y_t) - log p(y_t)]            r_t = log p(y_t) - log q(y_t)
    its gradient = -E_y sum_t R_t grad log q(y_t)               R_t = sum_{t' >= t} discount^(t' - t) r_t'

The token's own reward r_t may be taken out of R_t and replaced by what it stands for, the gradient of the reverse KL
at that position, computed over the whole vocabulary (``single_step``): the same gradient on average, with less noise.
A text drawn from the mixture (1 - a) q + a p in place of q weighs each token by q(y_t) / mixture(y_t).

Everything here is float [batch, length] with a mask; texts are padded on the right. This module knows tensors only.

References:
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, arXiv:2306.08543, section 2.2. Lu and Thinking
    Machines Lab, On-Policy Distillation (2025), for discount 0.
"""

import math

import torch
from torch import Tensor

from proxykd.exceptions import ConfigError, ShapeError

MAX_REWARD = 100.0
"""Rewards are kept within it: a token that one side all but excludes must not outweigh a whole batch."""


def token_rewards(student_logprobs: Tensor, proxy_logprobs: Tensor) -> Tensor:
    """``log p - log q`` of each token that was drawn, detached, within +-``MAX_REWARD``.

    Args:
        student_logprobs: float [...].
        proxy_logprobs: float [...]; -inf = the proxy excludes the token.

    Returns:
        float [...], nats.
    """
    return (proxy_logprobs - student_logprobs).detach().clamp(-MAX_REWARD, MAX_REWARD)


def discounted_returns(rewards: Tensor, mask: Tensor, *, discount: float) -> Tensor:
    """``R_t = r_t + discount R_{t+1}``, 0 at padding.

    Args:
        rewards: float [batch, length].
        mask: bool [batch, length], true at a text's tokens, which come before its padding.
        discount: In [0, 1].

    Raises:
        ShapeError: if the shapes differ.
        ConfigError: if the discount lies outside [0, 1].
    """
    if rewards.shape != mask.shape or rewards.ndim != 2:
        raise ShapeError(f"expected rewards and mask [batch, length], got {tuple(rewards.shape)}, {tuple(mask.shape)}")
    if not 0.0 <= discount <= 1.0:
        raise ConfigError(f"expected a discount in [0, 1], got {discount}; 1 counts every later token in full")
    returns = rewards.masked_fill(~mask, 0.0)
    for position in range(rewards.shape[1] - 2, -1, -1):
        returns[:, position] += discount * returns[:, position + 1]
    return returns


def advantages(rewards: Tensor, mask: Tensor, *, discount: float, single_step: bool, length_norm: bool) -> Tensor:
    """What multiplies each token's gradient: its return, perhaps without its own reward, perhaps a mean.

    Differs from the paper: advantages are neither whitened over the batch nor are rewards rescaled, which the authors'
    code does. Both would change what ``alpha`` weighs from step to step.

    Args:
        rewards: float [batch, length].
        mask: bool [batch, length], true at a text's tokens, which come before its padding.
        discount: In [0, 1].
        single_step: Leave out the token's own reward, whose part is computed exactly elsewhere.
        length_norm: Divide by the number of tokens that are summed over (none = the advantage is 0).

    Returns:
        float [batch, length], 0 at padding.

    Raises:
        ShapeError: if the shapes differ.
        ConfigError: if the discount lies outside [0, 1].
    """
    values = discounted_returns(rewards, mask, discount=discount)
    num_summed = mask.flip(1).cumsum(dim=1).flip(1)
    if single_step:
        values = values - rewards.masked_fill(~mask, 0.0)
        num_summed = num_summed - 1
    return values / num_summed.clamp_min(1) if length_norm else values


def mixture_logprobs(student_logprobs: Tensor, proxy_logprobs: Tensor, *, teacher_mix: float) -> Tensor:
    """Log of ``(1 - teacher_mix) q + teacher_mix p``, float [...], for log-probabilities of any tokens.

    Raises:
        ConfigError: if teacher_mix lies outside [0, 1).
    """
    if not 0.0 <= teacher_mix < 1.0:
        raise ConfigError(f"expected teacher_mix in [0, 1), got {teacher_mix}; at 1 the student would write nothing")
    if teacher_mix == 0.0:
        return student_logprobs
    return torch.logaddexp(student_logprobs + math.log1p(-teacher_mix), proxy_logprobs + math.log(teacher_mix))


def importance_weights(student_logprobs: Tensor, proxy_logprobs: Tensor, *, teacher_mix: float) -> Tensor:
    """``q(y_t) / mixture(y_t)`` of each token that was drawn from the mixture, detached.

    One factor a token, and not their product along the text, as in the paper: biased where ``teacher_mix`` is above 0
    and the text is longer than one token, but of bounded variance.

    Args:
        student_logprobs: float [...].
        proxy_logprobs: float [...].
        teacher_mix: In [0, 1).

    Returns:
        float [...], between 0 and 1 / (1 - teacher_mix); on average 1.

    Raises:
        ConfigError: if teacher_mix lies outside [0, 1).
    """
    mixture = mixture_logprobs(student_logprobs, proxy_logprobs, teacher_mix=teacher_mix)
    return (student_logprobs - mixture).exp().detach()


def token_coefs(
    student_logprobs: Tensor,
    proxy_logprobs: Tensor,
    mask: Tensor,
    *,
    discount: float,
    teacher_mix: float,
    single_step: bool,
    length_norm: bool,
) -> Tensor:
    """What ``-grad log q(y_t)`` is multiplied with: importance weight times advantage.

    Differs from the paper: each rollout serves one step, so that PPO's ratio of new to old student is 1 and its clip
    never acts. The exact single-step part does not depend on the token that was drawn, hence its weight is 1, the mean
    of the token's importance weight.

    Args:
        student_logprobs: Of the tokens that were drawn, float [batch, length].
        proxy_logprobs: Likewise.
        mask: bool [batch, length].
        discount: As in ``advantages``.
        teacher_mix: As in ``importance_weights``.
        single_step: As in ``advantages``.
        length_norm: As in ``advantages``.

    Returns:
        float [batch, length], detached, 0 at padding.
    """
    rewards = token_rewards(student_logprobs, proxy_logprobs)
    weights = importance_weights(student_logprobs, proxy_logprobs, teacher_mix=teacher_mix)
    values = advantages(rewards, mask, discount=discount, single_step=single_step, length_norm=length_norm)
    return (weights * values).masked_fill(~mask, 0.0)


def policy_losses(logprobs: Tensor, coefs: Tensor) -> Tensor:
    """The surrogate whose gradient is the policy gradient, ``-coef log q``; its value means nothing.

    Args:
        logprobs: The student's, of the tokens that were drawn, float [...].
        coefs: As ``token_coefs`` returns them.
    """
    return -coefs.detach() * logprobs
