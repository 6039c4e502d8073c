"""One model folder -> its sums for each held-out prompt: what every statistic and every table is made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from proxykd.config import RunSpec
from proxykd.data.splits import select_rows
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.evaluation.exact_kl import TrueCorpus, entropy_by_prompt, kl_by_prompt, true_corpus
from proxykd.evaluation.heldout import HeldoutScores, PromptIndex, index_prompts, score_heldout
from proxykd.evaluation.statistics import Arm
from proxykd.evaluation.tasks import TaskAnswer, TaskPrompt, run_task
from proxykd.exceptions import GateError
from proxykd.models.loading import load_saved
from proxykd.models.sampling import TransformersSampler
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.records import Side

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from proxykd.artifacts import SplitSet, ValidatedSet

PREDICTIONS = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("prompt_id", pa.string()),
        ("nll_sum", pa.float64()),
        ("num_tokens", pa.int64()),
        ("num_top1", pa.int64()),
        ("kl_sum", pa.float64()),
        (
            "answers",
            pa.list_(
                pa.struct(
                    [("task", pa.string()), ("text", pa.string()), ("answer", pa.string()), ("is_correct", pa.bool_())]
                )
            ),
        ),
    ]
)
"""One row an arm, seed and prompt; ``kl_sum`` is null and ``answers`` is empty where they were not measured."""


@dataclass(frozen=True, slots=True)
class HeldoutSet:
    """The held-out prompts in the tokens of one tokenizer.

    Attributes:
        corpus: The teacher's text.
        index: Which prompt each example belongs to.
        truth: The embedded teacher's odds; None unless the run asks for the exact KL.
        task_prompts: Prompts with a reference answer.
        tokenizer: Fingerprint of the tokenizer.
    """

    corpus: TokenizedCorpus
    index: PromptIndex
    truth: TrueCorpus | None
    task_prompts: tuple[TaskPrompt, ...]
    tokenizer: str

    def describe(self) -> dict[str, Any]:
        """``tokenizer``, ``num_texts``, ``num_cut`` (scored without their end) and ``num_skipped`` (no room)."""
        return {
            "tokenizer": self.tokenizer,
            "num_texts": len(self.corpus),
            "num_cut": self.corpus.num_cut,
            "num_skipped": self.corpus.num_skipped,
        }


@dataclass(frozen=True, slots=True)
class ModelScores:
    """What one model makes of the held-out prompts.

    Attributes:
        prompt_ids: The prompts; every vector below has one entry for each.
        heldout: NLL, tokens and top-1 agreement.
        kl_sum: KL(teacher || model), nats, NaN where it was not computed; None if it was computed nowhere.
        answers: Task name -> answers of the prompts that were asked.
        texts: What ``HeldoutSet.describe`` says of the texts that were scored.
    """

    prompt_ids: tuple[str, ...]
    heldout: HeldoutScores
    kl_sum: NDArray[np.float64] | None
    answers: Mapping[str, Sequence[TaskAnswer]] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)

    def sums(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Metric -> prompt id -> (numerator, denominator); prompts that were not measured are absent."""
        nll, tokens, top1 = self.heldout
        found = {
            "heldout_nll": dict(zip(self.prompt_ids, zip(nll, tokens, strict=True), strict=True)),
            "top1_agreement": dict(zip(self.prompt_ids, zip(top1, tokens, strict=True), strict=True)),
        }
        if self.kl_sum is not None:
            triples = zip(self.prompt_ids, self.kl_sum, tokens, strict=True)
            found["exact_kl"] = {name: (kl, count) for name, kl, count in triples if not np.isnan(kl)}
        for task, answers in self.answers.items():
            found[f"accuracy/{task}"] = {answer.prompt_id: (float(answer.is_correct), 1.0) for answer in answers}
        return found

    def rows(self, arm: str, seed: int) -> Iterator[dict[str, Any]]:
        """Rows of ``PREDICTIONS``."""
        answers: dict[str, list[dict[str, Any]]] = {}
        for task, given in self.answers.items():
            for one in given:
                row = {"task": task, "text": one.text, "answer": one.answer, "is_correct": one.is_correct}
                answers.setdefault(one.prompt_id, []).append(row)
        for position, prompt_id in enumerate(self.prompt_ids):
            kl = None if self.kl_sum is None or np.isnan(self.kl_sum[position]) else float(self.kl_sum[position])
            yield {
                "arm": arm,
                "seed": seed,
                "prompt_id": prompt_id,
                "nll_sum": float(self.heldout.nll_sum[position]),
                "num_tokens": int(self.heldout.num_tokens[position]),
                "num_top1": int(self.heldout.num_top1[position]),
                "kl_sum": kl,
                "answers": answers.get(prompt_id, []),
            }


class HeldoutSets:
    """The held-out side, tokenised once for each distinct tokenizer.

    Args:
        validated: The teacher's texts.
        splits: Which prompts are held out.
        run: Its evaluation section, teacher and longest sequence.
        scratch: Folder of the tokenised files.
        with_truth: Ask for the teacher's odds if the run wants the exact KL.
    """

    def __init__(
        self, validated: "ValidatedSet", splits: "SplitSet", run: RunSpec, scratch: Path, *, with_truth: bool = True
    ) -> None:
        self._validated, self._splits, self._run, self._scratch = validated, splits, run, scratch
        self._with_truth = with_truth and run.evaluation.exact_kl
        self._sets: dict[str, HeldoutSet] = {}

    def for_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> HeldoutSet:
        """The held-out set in the tokens of ``tokenizer``.

        Raises:
            GateError: if no held-out prompt has a usable text.
        """
        fingerprint = tokenizer_fingerprint(tokenizer)
        if fingerprint not in self._sets:
            self._sets[fingerprint] = self._build(tokenizer, fingerprint)
        return self._sets[fingerprint]

    def teacher_entropy(self) -> Arm | None:
        """The embedded teacher's own entropy for each prompt, nats over tokens; None unless its odds were asked for."""
        for heldout in self._sets.values():
            if heldout.truth is not None:
                return Arm(*entropy_by_prompt(heldout.truth, len(heldout.index.prompt_ids)))
        return None

    def _build(self, tokenizer: "PreTrainedTokenizerBase", fingerprint: str) -> HeldoutSet:
        path = self._scratch / f"heldout-{fingerprint[:16]}.arrow"
        rows = select_rows(self._validated, self._splits, {Side.HELDOUT})
        longest = self._run.student.model.max_seq_tokens
        corpus = TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=longest, path=path)
        index = index_prompts(corpus)
        if not index.prompt_ids:
            raise GateError("expected held-out prompts with a usable text, found none; raise split.heldout")
        questions, task_prompts = self._questions(frozenset(index.prompt_ids))
        truth = None
        if self._with_truth:
            count = self._run.evaluation.exact_kl_prompts
            truth = true_corpus(corpus, index, questions, tokenizer, num_prompts=count)
        return HeldoutSet(corpus, index, truth, task_prompts, fingerprint)

    def _questions(self, prompt_ids: frozenset[str]) -> tuple[dict[str, str], tuple[TaskPrompt, ...]]:
        questions: dict[str, str] = {}
        task_prompts: dict[str, TaskPrompt] = {}
        for row in select_rows(self._validated, self._splits, {Side.HELDOUT}):
            if row.prompt_id in prompt_ids:
                questions[row.prompt_id] = row.messages[-1].content
                if row.reference is not None:
                    task_prompts[row.prompt_id] = TaskPrompt(row.prompt_id, row.messages, row.reference)
        return questions, tuple(task_prompts.values())


def score_model(folder: Path, sets: HeldoutSets, run: RunSpec, *, heldout_only: bool = False) -> ModelScores:
    """Score the model in ``folder``.

    Args:
        folder: As ``save_model`` wrote it.
        sets: The held-out prompts.
        run: Tasks, and the student's precision: every arm is scored with the same.
        heldout_only: Leave out the exact KL and the tasks.

    Raises:
        ModelError: if the folder holds no model.
        GateError: if no held-out prompt has a usable text.
    """
    model, tokenizer = load_saved(folder)
    heldout = sets.for_tokenizer(tokenizer)
    settings: dict[str, Any] = {"pad_id": tokenizer.pad_token_id, "precision": run.student.model.precision}
    scores = score_heldout(model, heldout.corpus, heldout.index, **settings)
    if heldout_only:
        return ModelScores(heldout.index.prompt_ids, scores, None)
    kl_sum = None
    if heldout.truth is not None:
        kl_sum = kl_by_prompt(model, heldout.truth, len(heldout.index.prompt_ids), **settings)
        kl_sum[run.evaluation.exact_kl_prompts :] = np.nan
    sampler = TransformersSampler(model, tokenizer, precision=settings["precision"], description="generating answers")
    answers = {task.name: run_task(task, heldout.task_prompts, sampler, tokenizer) for task in run.evaluation.tasks}
    return ModelScores(heldout.index.prompt_ids, scores, kl_sum, answers, heldout.describe())
