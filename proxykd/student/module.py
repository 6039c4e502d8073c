"""The student with its loss: what one micro-batch is put through.

Loss and model are one module, so that whatever shards the model's weights gathers all of them, the head's too, for the
whole of a pass and takes their gradients afterwards.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from proxykd.config.models import StudentSpec
from proxykd.exceptions import ModelError
from proxykd.models.forward import Batch, completion_hidden, completion_labels, completion_weights
from proxykd.models.heads import apply_head, decoder_layers, factored_logits, is_factored, plain_model
from proxykd.models.loading import autocast
from proxykd.student.objective import ObjectiveTotals, TargetBatch, student_objective
from proxykd.student.unshared import UnsharedTerm, unshared_total

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TERMS = ("loss", "nll", "kl", "divergence", "prior_divergence")
"""The parts of ``ObjectiveTotals`` that a training curve may have."""

# Completion tokens of one micro-batch. Their scores are never in memory together.
_MICRO_BATCH_TOKENS = 2**14

# Scores of one micro-batch where the head can only be called as a module: 256 MiB in float32, whatever the vocabulary.
_MICRO_BATCH_SCORES = 2**26
_PROBE_TOKENS = 8


class StudentModule(nn.Module):
    """A model whose call returns the objective's totals.

    Args:
        model: The student, adapters attached if any.
        spec: Its precision and its objective are read.
        alpha: Weight of the weighted divergence; 0 = its targets are not needed.
        unshared: The term for tokens without a twin, weighed as the divergence is; None = there is none.
    """

    def __init__(
        self, model: "PreTrainedModel", spec: StudentSpec, *, alpha: float, unshared: UnsharedTerm | None = None
    ) -> None:
        super().__init__()
        self.model, self.alpha, self.objective, self._unshared = model, alpha, spec.objective, unshared
        self._precision = spec.model.precision

    def forward(
        self, batch: Batch, targets: TargetBatch | None, prior: TargetBatch | None = None, *, scale: float = 1.0
    ) -> ObjectiveTotals:
        """The totals over a micro-batch's completion tokens; ``loss`` carries the gradient.

        Args:
            batch: On the model's device.
            targets: Of its completion tokens; None = hard labels only.
            prior: The prior's, likewise; None = no such term.
            scale: What the caller will multiply ``loss`` with.
        """
        labels = completion_labels(batch)
        with autocast(self._precision):
            hidden = completion_hidden(self.model, batch)
            scores = factored_logits(self.model, hidden) if self._is_lazy else apply_head(self.model, hidden)
            totals = student_objective(
                scores,
                labels,
                targets,
                alpha=self.alpha,
                prior=prior,
                objective=self.objective,
                weights=completion_weights(batch),
                scale=scale,
            )
        if self._unshared is None or targets is None:
            return totals
        assert isinstance(scores, torch.Tensor)
        return totals._replace(loss=totals.loss + self.alpha * unshared_total(scores, targets, self._unshared))

    @property
    def _is_lazy(self) -> bool:
        """Whether the scores of all positions need not be in memory together."""
        return self._unshared is None and is_factored(self.model)

    @property
    def micro_batch_tokens(self) -> int:
        """Most completion tokens of one call that it has the memory for."""
        if self._is_lazy:
            return _MICRO_BATCH_TOKENS
        return _MICRO_BATCH_SCORES // int(self.model.config.get_text_config().vocab_size)

    @property
    def models(self) -> list[nn.Module]:
        """What is trained: each has a gradient norm of its own."""
        return [self]

    @property
    def device(self) -> torch.device:
        """Where batches belong."""
        return next(self.parameters()).device

    @property
    def layers(self) -> list[nn.Module]:
        """The model's decoder layers."""
        return decoder_layers(self.model)


def check_packing(model: "PreTrainedModel") -> None:
    """Make sure that texts packed into one row do not see each other in this model.

    Masks keep attention apart; what mixes neighbouring tokens otherwise (convolutions, recurrences) may know none.

    Raises:
        ModelError: if the second text of a row comes out otherwise than on its own.
    """
    vocab_size = model.config.get_text_config().vocab_size
    ids = torch.arange(2 * _PROBE_TOKENS, device=model.device)[None] % vocab_size
    positions = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    decoder, was_training = plain_model(model).get_decoder(), model.training
    model.eval()
    with torch.no_grad():
        packed = decoder(input_ids=ids, position_ids=positions.repeat(1, 2), use_cache=False).last_hidden_state
        alone = decoder(input_ids=ids[:, _PROBE_TOKENS:], position_ids=positions, use_cache=False).last_hidden_state
    model.train(was_training)
    if not torch.allclose(packed[:, _PROBE_TOKENS:], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise ModelError(
            f"packed texts see each other in a model of the type {model.config.model_type}; set student.packing=false"
        )
