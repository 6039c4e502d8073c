"""Both models' scores over the whole vocabulary, a chunk of positions at a time: for what k tokens cannot tell.

The layers below the heads run once over a whole micro-batch; the heads, the loss and the gradient of both run chunk by
chunk and are dropped again, so that no [tokens, vocab] tensor is larger than one chunk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from proxykd.models.forward import Batch, completion_hidden, completion_labels
from proxykd.models.heads import apply_head
from proxykd.models.loading import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# 64 MiB in float32 for each side; a divergence takes about eight times that.
_CHUNK_SCORES = 2**24


class Scores(NamedTuple):
    """Scores of some positions.

    Attributes:
        student: float [rows, vocab], all that the student's head gives.
        proxy: float [rows, vocab], likewise.
        labels: The tokens that stand there, long [rows].
        rows: Which positions of the micro-batch they are.
    """

    student: Tensor
    proxy: Tensor
    labels: Tensor
    rows: slice


@dataclass(frozen=True, slots=True)
class ModelPair:
    """A student and the proxy that teaches it.

    Attributes:
        student: With gradients.
        proxy: In evaluation mode; its trainable weights, if any, get gradients too.
        precision: Arithmetic, as in ``ModelSpec.precision``.
    """

    student: "PreTrainedModel"
    proxy: "PreTrainedModel"
    precision: str

    def hidden(self, batch: Batch) -> "HiddenPair":
        """What both heads are applied to at the completions of a batch, which is on the models' device."""
        learns = any(parameter.requires_grad for parameter in self.proxy.parameters())
        with autocast(self.precision):
            student = completion_hidden(self.student, batch)
            with torch.set_grad_enabled(learns):
                proxy = completion_hidden(self.proxy, batch)
        return HiddenPair(self, student, proxy, completion_labels(batch))


@dataclass(frozen=True, slots=True)
class HiddenPair:
    """One micro-batch below the heads.

    Attributes:
        models: Whose they are.
        student: float [n, hidden].
        proxy: float [n, hidden of the proxy].
        labels: The completions' tokens, long [n].
    """

    models: ModelPair
    student: Tensor
    proxy: Tensor
    labels: Tensor

    def label_logprobs(self, vocab_size: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the labels under student and proxy, float32 [n] each, without gradients.

        Args:
            vocab_size: The first so many tokens share the probability.
        """
        parts: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for scores in self._chunks(self.student, self.proxy):
                both = (_log_softmax(side[:, :vocab_size]) for side in (scores.student, scores.proxy))
                parts.append(tuple(side.gather(1, scores.labels[:, None]).squeeze(1) for side in both))
        student, proxy = (torch.cat(side) for side in zip(*parts, strict=True))
        return student, proxy

    def backward(self, loss_of: Callable[[Scores], tuple[Tensor, Tensor]]) -> Tensor:
        """Add up a loss over all positions and leave its gradients at the models' weights.

        Args:
            loss_of: Loss of some positions, a scalar with gradients, and sums worth reporting, float [m].

        Returns:
            The sums over all positions, float [m], detached.
        """
        leaves = [side.detach().requires_grad_(side.requires_grad) for side in (self.student, self.proxy)]
        total: Tensor | None = None
        for scores in self._chunks(*leaves):
            loss, sums = loss_of(scores)
            torch.autograd.backward(loss)
            total = sums.detach() if total is None else total + sums.detach()
        assert total is not None, "an example has a completion of one token at least"
        for hidden, leaf in zip((self.student, self.proxy), leaves, strict=True):
            if leaf.grad is not None:
                torch.autograd.backward(hidden, leaf.grad)
        return total

    def _chunks(self, student: Tensor, proxy: Tensor) -> Iterator[Scores]:
        vocab_size = int(self.models.student.config.get_text_config().vocab_size)
        size = max(1, _CHUNK_SCORES // vocab_size)
        for start in range(0, len(self.labels), size):
            rows = slice(start, start + size)
            with autocast(self.models.precision):
                scores = apply_head(self.models.student, student[rows]), apply_head(self.models.proxy, proxy[rows])
            yield Scores(*scores, self.labels[rows], rows)


def _log_softmax(scores: Tensor) -> Tensor:
    return scores.float().log_softmax(dim=-1)
