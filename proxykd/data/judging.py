"""Prompts and completions -> rows with every rule that they break and a verdict each, in one pass over both.

The verdict is "keep", or the first broken rule that drops, in the order of ``Verdict``: what happened at the teacher,
then the text by itself, then the text among the others. A row is looked up among the others whatever else is wrong
with it, but is itself remembered only if it may teach so far: a row that cannot teach is nothing that others could be
duplicates of. A person may release rows; they teach in spite of their findings.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby, tee
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa

from proxykd.artifacts import CompletionSet, PromptSet
from proxykd.config.specification import DataSplitSpec
from proxykd.config.validation import ValidationSpec
from proxykd.data.duplicates import CorpusIndex
from proxykd.data.evaluation_texts import iter_texts
from proxykd.data.measuring import (
    CountTokens,
    Measures,
    TextMeasures,
    Texts,
    choose_num_processes,
    measure_all,
)
from proxykd.data.quality import Verdict, hash_word_runs
from proxykd.data.release import Releases, read_releases
from proxykd.data.scratch import scratch_database
from proxykd.data.splits import TRAINING_SIDES, side_of
from proxykd.exceptions import ArtifactError
from proxykd.records import Completion, Finding, Message, Outcome, Prompt, Side, ValidatedRow

_TEXTLESS_OUTCOMES = {Outcome.FAILED: Verdict.FAILED, Outcome.FILTERED: Verdict.FILTERED}
_IN_ORDER = tuple(Verdict)  # an enumeration takes longer to run through
_AT_THE_TEACHER = frozenset({Verdict.FAILED, Verdict.FILTERED, Verdict.REFUSED, Verdict.TRUNCATED})
_CORPUS_RULES = frozenset({Verdict.DUPLICATE, Verdict.NEAR_DUPLICATE, Verdict.OVERLAP})


class Check(Protocol):
    """What a verifier says of a text."""

    @property
    def passed(self) -> bool:
        """Whether the text is right."""

    @property
    def reason(self) -> str:
        """Why it is not."""


Verify = Callable[[Prompt, str], Check | None]
"""A prompt and a completion of it -> the verifier's word; None = the prompt has no verifier."""


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A validated row and what the gate needs beside it.

    Attributes:
        row: The row with its findings and its verdict.
        side: The side on which its prompt falls.
        finish_reason: As the API said it; "" if it never did.
        reason: Why the teacher's outcome is not ok; "" for ok.
        measured: The rules that were looked at; the shares of broken rules are shares of these rows.
        num_tokens: Tokens in the text; None = not counted.
    """

    row: ValidatedRow
    side: Side
    finish_reason: str
    reason: str
    measured: frozenset[Verdict]
    num_tokens: int | None

    def breaks(self, rule: Verdict) -> bool | None:
        """Whether the row breaks ``rule``; None = it was not measured."""
        return any(found.rule == rule for found in self.row.findings) if rule in self.measured else None


class Environment(NamedTuple):
    """What judging needs beside the rows and the rules.

    Attributes:
        scratch: Folder for a temporary database of hashes.
        verify: Runs the verifiers of the prompts; None = they have none.
        load_counter: Loads the token counter, where lengths in tokens are bounded; picklable.
        num_processes: That measure texts; None = by the size of the corpus.
    """

    scratch: Path
    verify: Verify | None = None
    load_counter: Callable[[], CountTokens] | None = None
    num_processes: int | None = None


def judge(
    prompts: PromptSet, completions: CompletionSet, spec: ValidationSpec, split: DataSplitSpec, around: Environment
) -> Iterator[JudgedRow]:
    """Every completion with its prompt and a verdict, in order.

    Args:
        prompts: The questions, distinct.
        completions: At least one for each prompt, in the order of ``prompts``.
        spec: The rules.
        split: Says which prompts are held out.
        around: The rest.

    Raises:
        ArtifactError: if ``completions`` do not belong to ``prompts``.
        InputError: if the file of released rows or of evaluation texts cannot be used.
    """
    hashes = around.scratch / "hashes.sqlite"
    num_processes = around.num_processes or choose_num_processes(completions.num_rows)
    with scratch_database(hashes) as database:
        index = CorpusIndex(database, near_duplicate_threshold=spec.near_duplicate_threshold)
        _add_evaluation(index, prompts, spec, split)
        pairs, ahead = tee(_pair_up(prompts, completions))
        texts = (Texts(question_of(p.taught_messages), tuple(c.text for c in samples)) for p, samples in ahead)
        measured = measure_all(
            texts, spec, index.evaluation, load_counter=around.load_counter, num_processes=num_processes
        )
        judging = _Judging(spec, split, index, around.verify, read_releases(spec.release))
        for (prompt, samples), measures in zip(pairs, measured, strict=True):
            yield from judging.judge_prompt(prompt, samples, measures)
        judging.releases.require_all_used()
    hashes.unlink()


def question_of(messages: tuple[Message, ...]) -> str:
    """The text of a prompt without its system message, which all prompts of a corpus may share."""
    return "\n".join(message.content for message in messages if message.role != "system")


def judge_findings(broken: Mapping[Verdict, str], spec: ValidationSpec) -> tuple[Verdict, tuple[Finding, ...]]:
    """The verdict on a row and all its findings, in the order of the rules.

    Args:
        broken: Rule -> what was found.
        spec: Says which rules drop.
    """
    if not broken:
        return Verdict.KEEP, ()
    findings = tuple(
        Finding(rule.value, broken[rule], spec.rules[rule].rows == "drop") for rule in _IN_ORDER if rule in broken
    )
    return next((Verdict(found.rule) for found in findings if found.drops), Verdict.KEEP), findings


@dataclass(slots=True)
class _Judging:
    spec: ValidationSpec
    split: DataSplitSpec
    index: CorpusIndex
    verify: Verify | None
    releases: Releases
    question: str = ""
    among: "_Among | None" = None

    def judge_prompt(self, prompt: Prompt, samples: tuple[Completion, ...], measures: Measures) -> Iterator[JudgedRow]:
        side = side_of(prompt.split_key, self.split)
        if self.among is None or self.question != prompt.split_key:
            self.question, self.among = prompt.split_key, self._look_around(measures, side)
        for completion, text in zip(samples, measures.completions, strict=True):
            judged = self._judge(prompt, completion, text, self.among, side)
            if completion.outcome not in _TEXTLESS_OUTCOMES and self._may_teach_so_far(judged.row):
                self.index.add_pair(_key_of_pair(text, completion))
                if not self.among.is_remembered:
                    self.index.add_prompt(measures.prompt)
                self.among = self.among._replace(is_remembered=True)
            yield judged

    def _look_around(self, measures: Measures, side: Side) -> "_Among":
        is_near = self.index.has_near(measures.prompt)
        overlap = self.index.find_overlap(measures.prompt.runs) if side in TRAINING_SIDES else ""
        return _Among(is_near, overlap, is_training=side in TRAINING_SIDES, is_remembered=is_near)

    def _judge(
        self, prompt: Prompt, completion: Completion, text: TextMeasures, among: "_Among", side: Side
    ) -> JudgedRow:
        broken, measured = self._look(prompt, completion, text, among)
        verdict, findings = judge_findings(broken, self.spec)
        released = self.releases.find(prompt.prompt_id, completion.sample_idx, verdict)
        row = ValidatedRow(
            prompt.prompt_id,
            completion.sample_idx,
            prompt.taught_messages,
            completion.text,
            prompt.task,
            prompt.reference,
            completion.outcome,
            (Verdict.KEEP if released else verdict).value,
            completion.request_hash,
            prompt.group,
            findings,
            released,
            completion.stage,
            prompt.source,
        )
        return JudgedRow(row, side, completion.finish_reason, completion.reason, measured, text.num_tokens)

    def _look(
        self, prompt: Prompt, completion: Completion, text: TextMeasures, among: "_Among"
    ) -> tuple[dict[Verdict, str], frozenset[Verdict]]:
        """Every rule that a row breaks, with what was found, and every rule that was looked at."""
        broken = _at_the_teacher(completion)
        if completion.outcome in _TEXTLESS_OUTCOMES or (completion.outcome is Outcome.REFUSED and not completion.text):
            return broken, _AT_THE_TEACHER
        broken = {**text.broken, **broken}
        if Verdict.EMPTY in broken:
            return broken, _AT_THE_TEACHER | {Verdict.EMPTY}
        check = None if self.verify is None else self.verify(prompt, completion.text)
        if check is not None and not check.passed:
            broken[Verdict.UNVERIFIED] = check.reason
        in_text = self.index.find_overlap(text.runs) if among.is_training else ""
        if details := [f"{what}: {found}" for what, found in (("prompt", among.overlap), ("text", in_text)) if found]:
            broken[Verdict.OVERLAP] = "; ".join(details)
        if self.index.has_pair(_key_of_pair(text, completion)):
            broken[Verdict.DUPLICATE] = "prompt and completion occurred before"
        if among.is_near:
            broken[Verdict.NEAR_DUPLICATE] = "the prompt nearly equals an earlier one"
        return broken, _measured(text.is_language_known, check is not None, among.is_training)

    def _may_teach_so_far(self, row: ValidatedRow) -> bool:
        """Whether no rule about the row by itself drops it."""
        return bool(row.released) or not any(f.drops and f.rule not in _CORPUS_RULES for f in row.findings)


class _Among(NamedTuple):
    """A question among the others: whether it nearly equals one, where it overlaps, whether that counts.

    One question may be asked under several system messages, one after the other: it is no near duplicate of itself.
    """

    is_near: bool
    overlap: str
    is_training: bool
    is_remembered: bool


@cache
def _measured(is_language_known: bool, is_verified: bool, is_training: bool) -> frozenset[Verdict]:
    """The rules that are looked at on a row with a text."""
    where_possible = {
        Verdict.OTHER_LANGUAGE: is_language_known,
        Verdict.UNVERIFIED: is_verified,
        Verdict.OVERLAP: is_training,
    }
    return frozenset(rule for rule in Verdict if rule is not Verdict.KEEP and where_possible.get(rule, True))


def _key_of_pair(text: TextMeasures, completion: Completion) -> int:
    """Equal for rows with the same prompt and text of one teacher: what two teachers agree on, each of them taught."""
    return text.pair_key ^ completion.stage


def _at_the_teacher(completion: Completion) -> dict[Verdict, str]:
    if (rule := _TEXTLESS_OUTCOMES.get(completion.outcome)) is not None:
        return {rule: completion.reason or rule.value}
    if completion.outcome is Outcome.REFUSED:
        return {Verdict.REFUSED: completion.reason or "the teacher said so"}
    if completion.outcome is Outcome.TRUNCATED:
        return {Verdict.TRUNCATED: completion.reason or f"finish reason {completion.finish_reason!r}"}
    return {}


def _add_evaluation(index: CorpusIndex, prompts: PromptSet, spec: ValidationSpec, split: DataSplitSpec) -> None:
    """Remember held-out prompts, their reference answers, and the further evaluation files."""
    own = (
        (text, f"the {what} {prompt.prompt_id}")
        for prompt in _heldout(prompts, split)
        for what, text in (
            ("held-out prompt", question_of(prompt.taught_messages)),
            ("reference of held-out prompt", prompt.reference or ""),
        )
    )
    others = (item for file in spec.evaluation_files for item in iter_texts(file))
    for text, name in chain(own, others):
        index.add_evaluation(hash_word_runs(text, spec.overlap_ngram), name)


def _heldout(prompts: PromptSet, split: DataSplitSpec) -> Iterator[Prompt]:
    for batch in prompts.batches():
        keys = zip(batch["group"].to_pylist(), batch["prompt_id"].to_pylist(), strict=True)
        chosen = [side_of(group or prompt_id, split) is Side.HELDOUT for group, prompt_id in keys]
        yield from map(Prompt.from_row, batch.filter(pa.array(chosen, pa.bool_())).to_pylist())


def _pair_up(prompts: PromptSet, completions: CompletionSet) -> Iterator[tuple[Prompt, tuple[Completion, ...]]]:
    groups = groupby(completions.rows(), key=lambda completion: completion.prompt_id)
    for prompt in prompts.rows():
        prompt_id, samples = next(groups, (None, iter(())))
        if prompt_id != prompt.prompt_id:
            raise ArtifactError(
                f"expected completions of prompt {prompt.prompt_id} in {completions.path}, found "
                f"{'the end' if prompt_id is None else f'prompt {prompt_id}'}; query the teacher again"
            )
        yield prompt, tuple(samples)
    if (extra := next(groups, None)) is not None:
        raise ArtifactError(f"{completions.path} goes on with prompt {extra[0]}, which {prompts.path} does not hold")
