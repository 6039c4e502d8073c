"""What the living proxy adds to the student's loss at each position, from both models' scores.

    gkd        D(p, q), any divergence, times T^2
    minillm    -coef log q(y_t) [+ KL(q || p)], the policy gradient of the reverse KL between whole texts
    okd        KL(p || q), of which the proxy's adapters take their part of the gradient

p is the proxy's distribution, q the student's, both over the tokens that the two share, so that rows of a head which
pad its vocabulary have no say.
"""

from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from proxykd.config.living import GkdSpec, LivingTeacherSpec, MiniLlmSpec, OkdSpec
from proxykd.divergences import dense_divergence, outcomes
from proxykd.logprobs import token_logprobs
from proxykd.policy_gradient import policy_losses
from proxykd.student.objective import build_divergence


class LivingTerm(NamedTuple):
    """The term at each position.

    Attributes:
        loss: float [n], carries the gradient.
        value: What it is worth where its gradient comes from a surrogate, float [n], detached.
        divergence: Its divergence, without T^2, float [n], detached.
        kl: KL(p || q), nats, float [n], detached.
    """

    loss: Tensor
    value: Tensor
    divergence: Tensor
    kl: Tensor


def living_term(
    spec: LivingTeacherSpec,
    student: Tensor,
    proxy: Tensor,
    *,
    labels: Tensor,
    is_own: bool = False,
    coefs: Tensor | None = None,
) -> LivingTerm:
    """The term of a specification.

    Args:
        spec: Which one.
        student: Scores, float [n, vocab].
        proxy: Scores over the same tokens, float [n, vocab]; gradients reach them too, where they carry any.
        labels: The tokens that stand there, long [n].
        is_own: Whether the student wrote the texts; ``gkd`` may have another divergence there.
        coefs: What multiplies each token's ``-grad log q``, float [n]; ``minillm`` alone reads it.
    """
    logprobs = proxy.to(torch.promote_types(proxy.dtype, torch.float32)).log_softmax(dim=-1)
    with torch.no_grad():
        kl = dense_divergence(student, logprobs, outcomes.forward_kl)
    match spec:
        case GkdSpec():
            chosen = spec.own_divergence if is_own and spec.own_divergence is not None else spec.divergence
            divergence = build_divergence(chosen, has_tail_bucket=False)
            values = dense_divergence(student, logprobs, divergence, temperature=spec.temperature)
            loss = values * spec.temperature ** (1 if chosen.kind == "total_variation" else 2)
            return LivingTerm(loss, loss.detach(), values.detach(), kl)
        case MiniLlmSpec():
            assert coefs is not None
            with torch.set_grad_enabled(spec.single_step):
                reverse = dense_divergence(student, logprobs, outcomes.reverse_kl)
            loss = policy_losses(token_logprobs(student, labels), coefs)
            loss = loss + reverse if spec.single_step else loss
            return LivingTerm(loss, reverse.detach(), reverse.detach(), kl)
        case OkdSpec():
            loss = dense_divergence(student, logprobs, outcomes.forward_kl)
            return LivingTerm(loss, loss.detach(), loss.detach(), kl)
        case _:
            assert_never(spec)
