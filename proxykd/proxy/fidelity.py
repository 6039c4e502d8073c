"""How close the proxy is to the teacher, and how far a round has moved it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from proxykd.data.tokenizing import Example
from proxykd.models.forward import score_corpus
from proxykd.preferences import preference_loss, reward_margins
from proxykd.progress import track
from proxykd.proxy.rounds import PairSet
from proxykd.records import Side
from proxykd.world import exchange, own_share, put_together

FIDELITY_EXAMPLES = 200
"""Measured texts, and pairs of a round, that are scored for the report: the first ones, always the same."""


def measure_fidelity(
    model: PreTrainedModel, examples: Sequence[Example], *, side: Side, pad_id: int, precision: str
) -> dict[str, Any]:
    """Fit of the proxy to teacher's text that it does not train on.

    Args:
        model: The proxy.
        examples: Texts that the proxy does not train on.
        side: Where they are from: names the NLL.
        pad_id: Any token id.
        precision: Arithmetic, as in ``ModelSpec.precision``.

    Returns:
        ``num_examples``, ``num_tokens``, ``development_nll`` or ``heldout_nll`` (nats a token, ratio of sums over all
        tokens) and ``top1_agreement`` (share of the teacher's tokens that are the proxy's first choice); the last two
        None without text.
    """
    nll = num_agreed = num_tokens = 0.0
    own = [examples[idx] for idx in own_share(len(examples))]
    scores = score_corpus(model, own, pad_id=pad_id, precision=precision)
    for score in track(scores, "measuring the proxy", total=len(own), unit="text"):
        nll -= float(score.logprobs.sum(dtype=np.float64))
        num_agreed += int(score.is_top1.sum())
        num_tokens += len(score.logprobs)
    nll, num_agreed, num_tokens = map(sum, zip(*exchange([nll, num_agreed, num_tokens]), strict=True))
    return {
        f"{side.value}_nll": nll / num_tokens if num_tokens else None,
        "top1_agreement": num_agreed / num_tokens if num_tokens else None,
        "num_tokens": int(num_tokens),
        "num_examples": len(examples),
    }


def sequence_scores(
    model: PreTrainedModel, examples: Sequence[Example], *, pad_id: int, precision: str
) -> NDArray[np.float32]:
    """Log p(completion | prompt) of each example, summed over tokens, float32 [num_examples], nats."""
    own = [examples[idx] for idx in own_share(len(examples))]
    scores = [0.0] * len(own)
    found = score_corpus(model, own, pad_id=pad_id, precision=precision)
    for score in track(found, "scoring pairs", total=len(own), unit="text"):
        scores[score.example_idx] = float(score.logprobs.sum(dtype=np.float64))
    return np.asarray(put_together(scores, len(examples)), np.float32)


def measure_preference(
    model: PreTrainedModel, pairs: PairSet, *, beta: float, pad_id: int, precision: str
) -> dict[str, Any]:
    """What a round made of its own pairs.

    Args:
        model: The proxy after the round.
        pairs: The round's pairs, with their scores under the reference.
        beta: As in ``PreferenceSpec.beta``.
        pad_id: Any token id.
        precision: Arithmetic, as in ``ModelSpec.precision``.

    Returns:
        ``num_pairs``, ``num_ties`` (the sample equals the teacher's text, so the preference term has no gradient) and
        ``num_unfinished`` samples; over up to ``FIDELITY_EXAMPLES`` pairs without ties ``reward_margin``,
        ``reward_accuracy`` (share with a positive margin) and ``preference_loss`` (means, None without such pairs);
        ``mean_chosen_tokens`` and ``mean_rejected_tokens``.
    """
    kept = [idx for idx in range(len(pairs)) if not pairs.is_tie(idx)][:FIDELITY_EXAMPLES]
    facts = {**pairs.summary(), "reward_margin": None, "reward_accuracy": None, "preference_loss": None}
    if not kept:
        return facts
    chosen, rejected = (
        torch.from_numpy(sequence_scores(model, [side[idx] for idx in kept], pad_id=pad_id, precision=precision))
        for side in (pairs.chosen, pairs.rejected)
    )
    scores = chosen, rejected, *(torch.from_numpy(side[kept]) for side in pairs.reference_logprobs)
    margins = reward_margins(*scores, beta=beta)
    return {
        **facts,
        "reward_margin": float(margins.mean()),
        "reward_accuracy": float((margins > 0).float().mean()),
        "preference_loss": float(preference_loss(*scores, beta=beta).mean()),
    }
