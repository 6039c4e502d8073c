"""Prompts and completions -> rows with a verdict each, in one pass over both.

The verdict is "keep" or the first broken rule, in the order of ``Verdict``: what happened at the teacher (failed,
filtered, refused, truncated), then the text by itself (empty, too short, too long), then the text among the others
(duplicate, near duplicate, overlap). A text that opens as refusals do is refused even where the API said nothing.
Measures among the others are taken for every row that passed the first two groups, and reported even where the
specification does not drop for them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from proxykd.artifacts import CompletionSet, PromptSet
from proxykd.config.specification import DataSplitSpec
from proxykd.config.validation import ValidationSpec
from proxykd.data.duplicates import CorpusIndex
from proxykd.data.quality import Verdict, is_refusal
from proxykd.data.scratch import scratch_database
from proxykd.data.splits import TRAINING_SIDES, side_of
from proxykd.exceptions import ArtifactError
from proxykd.records import Completion, Message, Outcome, Prompt, Side, ValidatedRow

_BY_OUTCOME = {
    Outcome.FAILED: Verdict.FAILED,
    Outcome.FILTERED: Verdict.FILTERED,
    Outcome.REFUSED: Verdict.REFUSED,
}


class Measures(NamedTuple):
    """What a row is among the others.

    Attributes:
        is_duplicate: Prompt and completion both occurred before.
        is_near_duplicate: The prompt nearly equals an earlier one.
        has_overlap: A training row, and it shares a run of words with a held-out prompt.
    """

    is_duplicate: bool
    is_near_duplicate: bool
    has_overlap: bool


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A validated row and what the gate needs beside it.

    Attributes:
        row: The row with its verdict.
        side: The side on which its prompt falls.
        finish_reason: As the API said it; "" if it never did.
        reason: Why the teacher's outcome is not ok; "" for ok.
        measures: What the row is among the others.
    """

    row: ValidatedRow
    side: Side
    finish_reason: str
    reason: str
    measures: Measures


def judge_rows(
    prompts: PromptSet, completions: CompletionSet, spec: ValidationSpec, split: DataSplitSpec, *, scratch: Path
) -> Iterator[ValidatedRow]:
    """Every completion with its prompt and a verdict, in order.

    Args:
        prompts: The questions, distinct.
        completions: At least one for each prompt, in the order of ``prompts``.
        spec: The rules.
        split: Says which prompts are held out.
        scratch: Folder for a temporary database of hashes.

    Raises:
        ArtifactError: if ``completions`` do not belong to ``prompts``.
    """
    return (judged.row for judged in judge(prompts, completions, spec, split, scratch=scratch))


def judge(
    prompts: PromptSet, completions: CompletionSet, spec: ValidationSpec, split: DataSplitSpec, *, scratch: Path
) -> Iterator[JudgedRow]:
    """As ``judge_rows``, with what the gate needs beside each row."""
    hashes = scratch / "hashes.sqlite"
    with scratch_database(hashes) as database:
        index = CorpusIndex(
            database, near_duplicate_threshold=spec.near_duplicate_threshold, overlap_ngram=spec.overlap_ngram
        )
        for prompt in prompts.rows():
            if side_of(prompt.split_key, split) is Side.HELDOUT:
                index.add_evaluation(question_of(prompt.taught_messages))
        questions = groupby(_pair_up(prompts, completions), key=lambda pair: pair[0].split_key)
        for split_key, pairs in questions:
            yield from _judge_question(pairs, spec, side_of(split_key, split), index)
    hashes.unlink()


def question_of(messages: tuple[Message, ...]) -> str:
    """The text of a prompt without its system message, which all prompts of a corpus may share."""
    return "\n".join(message.content for message in messages if message.role != "system")


def judge_text(completion: Completion, spec: ValidationSpec) -> Verdict:
    """The verdict on a completion by itself: ``Verdict.KEEP`` or the first broken rule."""
    if completion.outcome in _BY_OUTCOME:
        return _BY_OUTCOME[completion.outcome]
    if is_refusal(completion.text):
        return Verdict.REFUSED
    if completion.outcome is Outcome.TRUNCATED and spec.drop_truncated:
        return Verdict.TRUNCATED
    if not completion.text.strip():
        return Verdict.EMPTY
    if len(completion.text) < spec.min_chars:
        return Verdict.TOO_SHORT
    return Verdict.TOO_LONG if len(completion.text) > spec.max_chars else Verdict.KEEP


def judge_measures(measures: Measures, spec: ValidationSpec) -> Verdict:
    """The verdict on a row among the others: ``Verdict.KEEP`` or the first rule that drops it."""
    if measures.is_duplicate and spec.drop_duplicates:
        return Verdict.DUPLICATE
    if measures.is_near_duplicate and spec.drop_near_duplicates:
        return Verdict.NEAR_DUPLICATE
    return Verdict.OVERLAP if measures.has_overlap and spec.drop_overlap else Verdict.KEEP


def _pair_up(prompts: PromptSet, completions: CompletionSet) -> Iterator[tuple[Prompt, Iterator[Completion]]]:
    groups = groupby(completions.rows(), key=lambda completion: completion.prompt_id)
    for prompt in prompts.rows():
        prompt_id, samples = next(groups, (None, iter(())))
        if prompt_id != prompt.prompt_id:
            raise ArtifactError(
                f"expected completions of prompt {prompt.prompt_id} in {completions.path}, found "
                f"{'the end' if prompt_id is None else f'prompt {prompt_id}'}; query the teacher again"
            )
        yield prompt, samples
    if (extra := next(groups, None)) is not None:
        raise ArtifactError(f"{completions.path} goes on with prompt {extra[0]}, which {prompts.path} does not hold")


def _judge_question(
    pairs: Iterator[tuple[Prompt, Iterator[Completion]]], spec: ValidationSpec, side: Side, index: CorpusIndex
) -> Iterator[JudgedRow]:
    """The rows of one question, which may have been asked under several system messages."""
    of_question: tuple[bool, bool] | None = None  # near duplicate and overlap, once for all its rows
    for prompt, completion in ((prompt, completion) for prompt, samples in pairs for completion in samples):
        question = question_of(prompt.taught_messages)
        verdict, measures = judge_text(completion, spec), Measures(False, False, False)
        if verdict is Verdict.KEEP:
            if of_question is None:
                of_question = index.add_question(question), side in TRAINING_SIDES and index.overlaps(question)
            is_near, overlaps = of_question
            overlaps = overlaps or (side in TRAINING_SIDES and index.overlaps(completion.text))
            measures = Measures(index.add_pair(question, completion.text), is_near, overlaps)
            verdict = judge_measures(measures, spec)
        yield JudgedRow(
            _validated(prompt, completion, verdict), side, completion.finish_reason, completion.reason, measures
        )


def _validated(prompt: Prompt, completion: Completion, verdict: Verdict) -> ValidatedRow:
    return ValidatedRow(
        prompt.prompt_id,
        completion.sample_idx,
        prompt.taught_messages,
        completion.text,
        prompt.task,
        prompt.reference,
        completion.outcome,
        verdict.value,
        completion.request_hash,
        prompt.group,
    )
