"""The proxy as a living teacher: what a batch teaches when the proxy is asked while the student learns.

    L = 1/N sum_(x,y) sum_t -log q(y_t)  +  alpha 1/M sum_(x,y') sum_t D(p_t, q_t)  [+ anchor 1/N sum -log p(y_t)]

The NLL is always that of the teacher's texts y, N tokens of a batch. D is taken on texts y' of M tokens, with the same
prompts: the teacher's, or those that the student (``minillm``: the student and the proxy together) has just written.
Trajectories (``student.trajectories``) are among the y of the NLL, weighted as in ``student.objective``, and not among
the y' that the teacher wrote. The last term holds the proxy's adapters (``okd``) to the teacher's texts. Nothing is
stored, so that the whole vocabulary counts; every step costs a forward pass of the proxy, and an on-policy step a text
for each prompt as well.

All that is drawn (texts, and whether a step is on-policy) comes from torch's global generator, which the training loop
seeds for each step: a run that goes on draws what it would have drawn.

References:
    Agarwal et al., GKD, arXiv:2306.13649; Gu et al., MiniLLM, arXiv:2306.08543; Online Knowledge Distillation,
    arXiv:2409.12512; docs/methods/living-teacher.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from proxykd.artifacts import ProxyModel
from proxykd.config.living import GkdSpec, LivingTeacherSpec, MiniLlmSpec, OkdSpec
from proxykd.config.models import LoraSpec, StudentSpec
from proxykd.data.tokenizing import Example
from proxykd.exceptions import ArtifactError
from proxykd.logprobs import token_logprobs
from proxykd.models.forward import Batch, collate
from proxykd.models.loading import attach_lora, load_saved
from proxykd.models.sources import Source
from proxykd.models.tokenizers import load_tokenizer_from, tokenizer_fingerprint
from proxykd.policy_gradient import token_coefs
from proxykd.student.dense_pass import HiddenPair, ModelPair, Scores
from proxykd.student.living_terms import LivingTerm, living_term
from proxykd.student.module import StudentModule
from proxykd.student.optimizer import build_optimizer
from proxykd.student.order import micro_batches
from proxykd.student.rollouts import write_own_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MICRO_BATCH_TOKENS = 2**14
_NUM_SUMS = 5


@dataclass(frozen=True, slots=True)
class LivingProxy:
    """A proxy that can be loaded for each training run.

    Attributes:
        folder: Its weights and tokenizer.
        spec: What it teaches.
        tokenizer: The student's, which is the proxy's too.
    """

    folder: Path
    spec: LivingTeacherSpec
    tokenizer: "PreTrainedTokenizerBase"

    @classmethod
    def open(cls, proxy: ProxyModel, spec: LivingTeacherSpec, tokenizer: "PreTrainedTokenizerBase") -> "LivingProxy":
        """The proxy of an artifact.

        Raises:
            ArtifactError: if it has another tokenizer than the student.
            ModelError: if there is no model.
        """
        folder = proxy.path / "model"
        found = load_tokenizer_from(Source(str(folder)))
        if tokenizer_fingerprint(found) != tokenizer_fingerprint(tokenizer):
            raise ArtifactError(
                f"expected a proxy with the student's tokenizer, as student.living_teacher={spec.kind} compares them "
                f"token by token, found another in {folder}; choose two models of one family, or leave living_teacher "
                "out and set student.cross_tokenizer: {}"
            )
        return cls(folder, spec, tokenizer)

    def load(self, *, precision: str, seed: int) -> "PreTrainedModel":
        """The proxy in evaluation mode, frozen; with trainable adapters for ``okd``, drawn from ``seed``."""
        model, _ = load_saved(self.folder)
        model.requires_grad_(False)
        if isinstance(self.spec, OkdSpec):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                return attach_lora(model, LoraSpec(rank=self.spec.rank, lora_alpha=2.0 * self.spec.rank)).eval()
        return (model.to(torch.bfloat16) if precision == "bfloat16" else model).eval()


class LivingModule(nn.Module):
    """A student and the proxy that teaches it.

    Args:
        model: The student, adapters attached if any.
        teacher: The proxy.
        spec: The student's specification.
        alpha: Weight of the proxy's term, > 0.
        seed: Decides the start of the proxy's adapters, if it has any.
    """

    def __init__(
        self, model: "PreTrainedModel", teacher: LivingProxy, spec: StudentSpec, *, alpha: float, seed: int
    ) -> None:
        super().__init__()
        self.student = StudentModule(model, spec, alpha=0.0)
        self.proxy = teacher.load(precision=spec.model.precision, seed=seed)
        self._models = ModelPair(model, self.proxy, spec.model.precision)
        self._living, self._spec, self._alpha, self._tokenizer = teacher.spec, spec, alpha, teacher.tokenizer
        heads = (int(part.config.get_text_config().vocab_size) for part in (model, self.proxy))
        self._vocab_size = min(len(teacher.tokenizer), *heads)

    def train(self, mode: bool = True) -> "LivingModule":
        """The student alone is ever in training mode: the proxy has no dropout."""
        super().train(mode)
        self.proxy.eval()
        return self

    @property
    def models(self) -> list[nn.Module]:
        """The student, and the proxy, of which the adapters alone are trained: each has a gradient norm of its own."""
        return [self.student, self.proxy]

    def build_optimizer(self, *, learning_rate: float) -> torch.optim.AdamW:
        """The student's AdamW; the proxy's adapters, if any, at a rate of their own on the same schedule."""
        optimizer = build_optimizer(self.student, self._spec.optimizer, learning_rate=learning_rate)
        if isinstance(self._living, OkdSpec):
            adapters = [parameter for parameter in self.proxy.parameters() if parameter.requires_grad]
            factor = self._living.learning_rate / learning_rate
            optimizer.add_param_group({"params": adapters, "weight_decay": 0.0, "lr_factor": factor})
        return optimizer

    def accumulate(self, examples: Sequence[Example]) -> dict[str, float]:
        """Leave the gradients of one batch at the weights.

        Args:
            examples: The teacher's texts, and trajectories, which have an NLL alone.

        Returns:
            Means over tokens, before the step: ``loss``; ``nll`` of the teacher's texts and the trajectories; ``kl``,
            the proxy's forward KL on whatever texts the divergence was taken; ``divergence``, where it is another;
            ``proxy_nll`` of the proxy with its adapters; ``own_tokens``, how many tokens the student wrote.
        """
        own = self._own_texts(examples)
        scale = 1.0 / sum(map(_weight, examples))
        if own is None:
            taught = [example for example in examples if example.weights is None]
            sums = self._learn(taught, nll_scale=scale, is_own=False) if taught else torch.zeros(_NUM_SUMS)
            nll, num_tokens = float(sums[0]) * scale, _num_tokens(taught)
            nll += self._learn_nll([example for example in examples if example.weights is not None], scale=scale)
        else:
            nll, num_tokens = self._learn_nll(examples, scale=scale), _num_tokens(own)
            sums = self._learn(own, nll_scale=0.0, is_own=True)
        others = (sums[1:] / max(num_tokens, 1)).tolist()
        value, divergence, kl, proxy_nll = others
        anchor = self._living.anchor if isinstance(self._living, OkdSpec) else 0.0
        means = {"loss": nll + self._alpha * value + anchor * proxy_nll, "nll": nll, "kl": kl}
        if isinstance(self._living, OkdSpec):
            return {**means, "proxy_nll": proxy_nll}
        return {**means, "divergence": divergence, "own_tokens": float(0 if own is None else _num_tokens(own))}

    def _own_texts(self, examples: Sequence[Example]) -> list[Example] | None:
        """Texts that the student writes; None = this step is about the teacher's."""
        if isinstance(self._living, OkdSpec):
            return None
        seed, chance = int(torch.randint(2**62, ())), float(torch.rand(()))
        if isinstance(self._living, GkdSpec) and chance >= self._living.on_policy:
            return None
        return write_own_texts(
            self._models,
            self._tokenizer,
            self._living,
            examples,
            vocab_size=self._vocab_size,
            max_seq_tokens=self._spec.model.max_seq_tokens,
            seed=seed,
        )

    def _learn(self, texts: Sequence[Example], *, nll_scale: float, is_own: bool) -> Tensor:
        """Gradients of the proxy's term on some texts, and of their NLL; sums over tokens, float [_NUM_SUMS]."""
        scale = 1.0 / _num_tokens(texts)
        totals = torch.zeros(_NUM_SUMS, device=self.student.device)
        for part in _parts(texts):
            hidden = self._models.hidden(self._collate(part))
            term_of = partial(living_term, self._living, is_own=is_own)
            coefs = self._coefs_of(hidden, part)
            totals += hidden.backward(partial(self._loss_of, term_of, coefs=coefs, scale=scale, nll_scale=nll_scale))
        return totals

    def _loss_of(
        self,
        term_of: Callable[..., LivingTerm],
        scores: Scores,
        *,
        coefs: Tensor | None,
        scale: float,
        nll_scale: float,
    ) -> tuple[Tensor, Tensor]:
        student, proxy = (side[:, : self._vocab_size] for side in (scores.student, scores.proxy))
        rows = None if coefs is None else coefs[scores.rows]
        term = term_of(student, proxy, labels=scores.labels, coefs=rows)
        nll = -token_logprobs(scores.student, scores.labels).sum()
        proxy_nll = -token_logprobs(proxy, scores.labels).sum()
        loss = self._alpha * scale * term.loss.sum() + (nll_scale * nll if nll_scale > 0.0 else 0.0)
        if isinstance(self._living, OkdSpec):
            loss = loss + scale * self._living.anchor * proxy_nll
        sums = [nll, *(part.sum() for part in (term.value, term.divergence, term.kl)), proxy_nll]
        return loss, torch.stack([part.detach().float() for part in sums])

    def _coefs_of(self, hidden: HiddenPair, part: Sequence[Example]) -> Tensor | None:
        """What multiplies each token's gradient, float [n]; needs the whole text, hence before the pass over it."""
        spec = self._living
        if not isinstance(spec, MiniLlmSpec):
            return None
        lengths = [len(example.completion_ids) for example in part]
        student, proxy = (
            pad_sequence(list(torch.split_with_sizes(side, lengths)), batch_first=True)
            for side in hidden.label_logprobs(self._vocab_size)
        )
        sizes = torch.tensor(lengths, device=student.device)
        mask = torch.arange(student.shape[1], device=student.device) < sizes[:, None]
        chosen = spec.model_dump(include={"discount", "teacher_mix", "single_step", "length_norm"})
        return token_coefs(student, proxy, mask, **chosen)[mask]

    def _learn_nll(self, examples: Sequence[Example], *, scale: float) -> float:
        """Gradients of the NLL of teacher's texts and trajectories; its mean."""
        total = 0.0
        for part in _parts(examples):
            totals = self.student(self._collate(part), None, scale=scale)
            (totals.loss * scale).backward()
            total += float(totals.nll)
        return total * scale

    def _collate(self, part: Sequence[Example]) -> Batch:
        return collate(part, pad_id=self._tokenizer.pad_token_id).to(self.student.device)


def _weight(example: Example) -> float:
    return len(example.completion_ids) if example.weights is None else float(example.weights.sum(dtype=np.float64))


def _num_tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.completion_ids) for example in examples)


def _parts(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Micro-batches of similar length."""
    completions = np.array([len(example.completion_ids) for example in examples], np.int32)
    lengths = completions + np.array([len(example.prompt_ids) for example in examples], np.int32)
    parts = micro_batches(range(len(examples)), lengths, completions, max_completion_tokens=_MICRO_BATCH_TOKENS)
    return ([examples[index] for index in part] for part in parts)
