"""The held-out side of the corpus: the teacher's texts in each tokenizer's tokens, and the prompts that are asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.config import RunSpec
from proxykd.data.refusals import is_refusal
from proxykd.data.splits import select_rows
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.evaluation.exact_kl import TrueCorpus, entropy_by_prompt, true_corpus
from proxykd.evaluation.heldout import PromptIndex, index_prompts
from proxykd.evaluation.statistics import Arm
from proxykd.evaluation.task_answers import TaskPrompt
from proxykd.exceptions import GateError
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.records import Outcome, Side, ValidatedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from proxykd.artifacts import SplitSet, ValidatedSet

_TAUGHT = frozenset({"keep"})


@dataclass(frozen=True, slots=True)
class HeldoutSet:
    """The held-out prompts in the tokens of one tokenizer.

    Attributes:
        corpus: The teacher's text.
        index: Which prompt each example belongs to.
        truth: The embedded teacher's odds; None unless the run asks for the exact KL.
        task_prompts: Prompts with a reference answer.
        drift_prompts: The first prompts, those that the teacher refused among them; () unless drift is asked for.
        tokenizer: Fingerprint of the tokenizer.
    """

    corpus: TokenizedCorpus
    index: PromptIndex
    truth: TrueCorpus | None
    task_prompts: tuple[TaskPrompt, ...]
    drift_prompts: tuple[TaskPrompt, ...]
    tokenizer: str

    def describe(self) -> dict[str, Any]:
        """``tokenizer``, ``num_texts``, ``num_cut`` (scored without their end) and ``num_skipped`` (no room)."""
        return {
            "tokenizer": self.tokenizer,
            "num_texts": len(self.corpus),
            "num_cut": self.corpus.num_cut,
            "num_skipped": self.corpus.num_skipped,
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
        return HeldoutSet(corpus, index, truth, task_prompts, self._drift_prompts(), fingerprint)

    def _questions(self, prompt_ids: frozenset[str]) -> tuple[dict[str, str], tuple[TaskPrompt, ...]]:
        questions: dict[str, str] = {}
        task_prompts: list[TaskPrompt] = []
        for prompt_id, rows in self._rows_by_prompt(_TAUGHT):
            if prompt_id in prompt_ids:
                questions[prompt_id] = rows[0].messages[-1].content
                if rows[0].reference is not None:
                    task_prompts.append(_task_prompt(rows))
        return questions, tuple(task_prompts)

    def _drift_prompts(self) -> tuple[TaskPrompt, ...]:
        spec = self._run.evaluation.drift
        if spec is None:
            return ()
        found = (_task_prompt(rows) for _, rows in self._rows_by_prompt(_TAUGHT | {"refused"}))
        return tuple(islice(found, spec.num_prompts))

    def _rows_by_prompt(self, verdicts: frozenset[str]) -> Iterator[tuple[str, list[ValidatedRow]]]:
        rows = select_rows(self._validated, self._splits, {Side.HELDOUT}, verdicts=verdicts)
        return ((prompt_id, list(of_prompt)) for prompt_id, of_prompt in groupby(rows, key=lambda row: row.prompt_id))


def _task_prompt(rows: Sequence[ValidatedRow]) -> TaskPrompt:
    first = rows[0]
    refusals = [row.outcome is Outcome.REFUSED or is_refusal(row.text) for row in rows]
    return TaskPrompt(
        prompt_id=first.prompt_id,
        messages=first.messages,
        reference=first.reference or "",
        teacher_texts=tuple(row.text for row in rows),
        teacher_refusals=sum(refusals) / len(refusals),
    )
