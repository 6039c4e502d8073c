"""The preference term of Proxy-KD: the teacher's text is preferred to the proxy's own (arXiv:2401.07013, Eq. 4-5).

Pure functions of sequence log-probabilities, float32, un-reduced. Training itself is TRL's; these are the numbers that
it is held against and that the fidelity report shows.
"""

import torch
from torch import Tensor

from proxykd.exceptions import ShapeError


def reward_margins(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """How much more the proxy has moved towards the chosen than towards the rejected completion.

    beta * [(log p(y+|x) - log p_ref(y+|x)) - (log p(y-|x) - log p_ref(y-|x))], with log p summed over tokens.

    Args:
        chosen_logprobs: log p(y+|x) of the proxy, float [batch], nats.
        rejected_logprobs: log p(y-|x) of the proxy, float [batch].
        reference_chosen_logprobs: The same under the previous round's proxy, float [batch].
        reference_rejected_logprobs: The same under the previous round's proxy, float [batch].
        beta: > 0; how strongly the proxy is tied to the reference.

    Returns:
        float32 [batch]; 0 where the proxy is the reference, and where chosen and rejected are the same text.

    Raises:
        ShapeError: if the shapes differ.
    """
    inputs = chosen_logprobs, rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs
    if len({tuple(value.shape) for value in inputs}) > 1:
        raise ShapeError(f"expected four equal shapes, got {[tuple(value.shape) for value in inputs]}")
    chosen, rejected, reference_chosen, reference_rejected = (value.float() for value in inputs)
    return beta * ((chosen - reference_chosen) - (rejected - reference_rejected))


def preference_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """-log sigmoid(margin) of each pair, Eq. 4.

    Args:
        chosen_logprobs: As in ``reward_margins``.
        rejected_logprobs: As in ``reward_margins``.
        reference_chosen_logprobs: As in ``reward_margins``.
        reference_rejected_logprobs: As in ``reward_margins``.
        beta: > 0.

    Returns:
        float32 [batch], >= 0; log 2 where the margin is 0. Finite for every finite margin, not reduced.

    Raises:
        ShapeError: if the shapes differ.

    References: Rafailov et al., Direct Preference Optimization, arXiv:2305.18290, Eq. 7.
    """
    margins = reward_margins(
        chosen_logprobs, rejected_logprobs, reference_chosen_logprobs, reference_rejected_logprobs, beta=beta
    )
    return -torch.nn.functional.logsigmoid(margins)
