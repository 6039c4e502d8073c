"""The stage that asks the teacher: prompts in, one completion with exactly one outcome for every prompt and sample.

Calls are made in any order and journaled; the artifact is then written from the journal in the order of the prompts,
so that it is the same however often the run was killed on the way. ``summary.json`` beside the rows counts outcomes,
tokens and money. A staged run asks several teachers, each its share of the prompts, one after the other; the rows of
a prompt stand together, those of the earlier teachers first.
"""

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from proxykd.artifacts import CompletionSet, PromptSet, seal, write_json
from proxykd.config.prompts import EmbeddedPromptsSpec, FilePromptsSpec, PromptsSpec
from proxykd.config.specification import QuerySpec, RunSpec
from proxykd.config.teacher import EmbeddedTeacherSpec, RecordedTeacherSpec, TeacherSpec
from proxykd.data.prompts import load_prompts
from proxykd.exceptions import ArtifactError, InputError, StorageError
from proxykd.records import Completion, Message, Outcome, Prompt, hash_json
from proxykd.teacher.asking import ask_all
from proxykd.teacher.budget import NOTHING, Cost
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacherSpec, provider_of
from proxykd.teacher.other_journals import PORTIONS, bring
from proxykd.teacher.problems import generate_prompts
from proxykd.teacher.recorded import recorded_completions
from proxykd.teacher.replies import Reply, load_logprobs, token_logprobs
from proxykd.teacher.stages import TeacherStage, blamed, stages_of
from proxykd.teacher.truncation import is_truncated

SUMMARY = "summary.json"
_UNSETTLED = Reply(error="not asked: the run ended before its turn")


def collect_prompts(spec: PromptsSpec, *, seed: int, output: Path) -> PromptSet:
    """The prompts of a run, from the user's data or from the embedded generator.

    Args:
        spec: Where they come from.
        seed: Seed of the embedded generator, and of drawing system messages.
        output: Folder of the new artifact.

    Raises:
        InputError: if the data cannot be used, naming the place.
    """
    if not isinstance(spec, EmbeddedPromptsSpec):
        return load_prompts(spec, seed=seed, output=output)
    prompts = PromptSet(output)
    prompts.write(generate_prompts(spec.count, seed))
    seal(prompts, {"prompts": hash_json({**spec.model_dump(mode="json", exclude={"terms"}), "seed": seed})})
    return prompts


def inputs_of(prompts: PromptSet) -> str:
    """Hash of what the prompts came from (a file's bytes, say), or of the prompts themselves where there is no data."""
    return str(prompts.manifest["made_from"].get("file", prompts.hash))


def check_inputs(prompts: PromptSet, inputs: str) -> None:
    """Check that the prompts are the ones that a run was planned with.

    Args:
        prompts: As they were read now.
        inputs: ``inputs_of`` the prompts that were planned with.

    Raises:
        InputError: if the file, or what the generator makes, has changed since.
    """
    if (found := inputs_of(prompts)) != inputs:
        raise InputError(
            f"expected the prompts that the run was planned with (hash {inputs:.12}), read others (hash {found:.12}): "
            "the data changed meanwhile; run the same command again to plan with what it holds now"
        )


def query_teacher(
    prompts: PromptSet,
    run: QuerySpec,
    *,
    journal_path: Path,
    output: Path,
    asks: bool = True,
    portions: Path | None = None,
) -> CompletionSet:
    """Ask the teachers everything that the journal has no answer to, and write all answers.

    Args:
        prompts: The questions.
        run: The teacher, its sampling and the seed are read; of a whole run, staging and split too.
        journal_path: The SQLite file that remembers every answer; shared by reruns.
        output: Folder of the new artifact.
        asks: False = write what the journal has and ask nothing; what it lacks counts as failed.
        portions: Folder of the journals of portions, whose answers are taken over before anything is asked; None = of
            none.

    Raises:
        TeacherUnreachableError, TeacherAuthError, TeacherError: after one probe call, if the endpoint is unusable;
            later, if it refuses the key, has no credit for us or leaves calls unanswered (unless
            ``teacher.on_unanswered`` is fail_rows, which counts their rows as failed).
        StorageError: if the journal or the artifact cannot be written.
        KeyboardInterrupt: passed on after the journal is committed; the same call goes on from there.
    """
    completions, stages = CompletionSet(output), stages_of(run)
    if isinstance(run.teacher, RecordedTeacherSpec):
        assert isinstance(run.prompts, FilePromptsSpec)  # the specification allows no other
        (summary,) = _write(completions, recorded_completions(prompts, run.prompts, run.teacher), num_stages=1)
        summaries = [_Summary(run.teacher.model, prompts.num_rows, 1, summary)]
    else:
        with Journal(journal_path) as journal:
            for stage in stages if asks else ():
                with blamed(stage):
                    for other in sorted(portions.glob(PORTIONS)) if portions else ():
                        bring(stage.teacher, prompts, journal, other, may_settle=True)
                    ask_all(stage.teacher, prompts, journal, title=stage.title)
            found = _write(completions, _read_answers(stages, prompts, journal), num_stages=len(stages))
        summaries = [
            _Summary(
                one.teacher.model, one.teacher.num_prompts(prompts), one.teacher.spec.sampling.num_samples, summary
            )
            for one, summary in zip(stages, found, strict=True)
        ]
    for one in summaries:
        _check_sum(one.told["outcomes"], one.num_prompts * one.num_samples)
    write_json(output / SUMMARY, _describe(summaries, prompts))
    seal(completions, {"prompts": prompts.hash, "teacher": _teacher_hash(run)})
    return completions


class Outlook(NamedTuple):
    """What a teacher of a run has answered already.

    Attributes:
        num_requests: Calls that the run makes to it on an empty journal.
        num_known: Answers in the journal.
        first_unknown: The first prompt and sample index without an answer; None = nothing is left to ask.
        spent: What its calls have cost so far by the run's own journal; nothing where no cap is set.
    """

    num_requests: int
    num_known: int
    first_unknown: tuple[Prompt, int] | None
    spent: Cost = NOTHING


def look_ahead_all(
    prompts: PromptSet, run: QuerySpec, *, journal_path: Path, portions: Path | None = None
) -> tuple[Outlook, ...]:
    """Count the calls of a run that the journals have answers to; asks nothing and creates no journal.

    Args:
        prompts: The questions.
        run: The teacher, its sampling and the seed are read; of a whole run, staging and split too.
        journal_path: The journal; need not exist.
        portions: Folder of the journals of portions, whose answers a run takes over; None = of none.

    Returns:
        One for each teacher, the main one last; none for recorded texts.

    Raises:
        ConfigError: if the environment variable of a teacher's key is unset.
        StorageError: if the journal cannot be read.
    """
    paths = [journal_path, *(sorted(portions.glob(PORTIONS)) if portions else ())]
    with ExitStack() as opened:
        journals = [opened.enter_context(Journal(path)) for path in paths if path.exists()]
        return tuple(_look_ahead(prompts, stage, journals, journal_path) for stage in stages_of(run))


def _look_ahead(prompts: PromptSet, stage: TeacherStage, journals: list[Journal], own: Path) -> Outlook:
    teacher, num_known, first_unknown, spent = stage.teacher, 0, None, NOTHING
    if not journals:
        first = next(((prompt, sample_idx) for prompt, sample_idx, _ in teacher.requests(prompts)), None)
        return Outlook(teacher.num_requests(prompts), 0, first)
    for calls in teacher.calls(prompts):
        missing = calls.without(set().union(*(journal.finals_among(calls.keys) for journal in journals)))
        num_known += len(calls.keys) - len(missing)
        if missing and first_unknown is None:
            ((prompt, sample_idx, _),) = calls.select(missing[:1])
            first_unknown = prompt, sample_idx
    for journal in journals:
        if journal.path == own:  # what portions know may stand in it too
            spent = teacher.spent(prompts, journal)
    return Outlook(teacher.num_requests(prompts), num_known, first_unknown, spent)


def probe_teacher(
    run: QuerySpec,
    *,
    journal_path: Path,
    prompt: Prompt | None = None,
    sample_idx: int = 0,
    stage: int = -1,
) -> None:
    """Make one call and return if the teacher can be used; a recorded one always can, one with a cap is not asked.

    Args:
        run: The teacher.
        journal_path: The answer is kept there, so that a later run need not pay for it again.
        prompt: What to ask; None = a short greeting (the embedded teacher is asked one of its own questions).
        sample_idx: Which of its samples.
        stage: Which teacher of the run; -1 = the main one.

    Raises:
        TeacherUnreachableError, TeacherAuthError, TeacherError: if it cannot be used.
    """
    if isinstance(run.teacher, RecordedTeacherSpec):
        return
    one = stages_of(run)[stage]
    if one.teacher.budget.is_set:  # what is spent is known only to who alone may spend
        return
    request = one.teacher.request(prompt or _greeting(one.teacher.spec), sample_idx)
    with Journal(journal_path) as journal, blamed(one):
        if journal.has_final(request.key):
            return
        one.teacher.drive(journal, lambda engine: engine.probe(request), spent=Cost)


def _read_answers(stages: tuple[TeacherStage, ...], prompts: PromptSet, journal: Journal) -> Iterator[Completion]:
    for batch in prompts.batches(batch_rows=min(stage.teacher.prompts_at_once for stage in stages)):
        ids = batch["prompt_id"].to_pylist()
        answers = [_answers_of(stage, batch, ids, journal) for stage in stages]
        yield from (completion for _, completion in merge(*answers, key=itemgetter(0)))


def _answers_of(
    stage: TeacherStage, batch: pa.RecordBatch, ids: list[str], journal: Journal
) -> Iterator[tuple[int, Completion]]:
    """The row of the prompt in the batch and what one teacher answered, in the order of the rows."""
    calls = stage.teacher.calls_about(batch)
    for position, (key, entry) in enumerate(calls.entries(journal.get_many)):
        row, sample_idx = calls.place(position)
        reply = _UNSETTLED if entry is None else entry.reply
        if entry is not None and stage.teacher.asks_further and is_truncated(reply):
            ((prompt, _, request),) = calls.select([position])
            reply = stage.teacher.reply_to(prompt, request, entry, journal)
        yield row, _completion(stage, ids[row], sample_idx, key, reply)


def _completion(stage: TeacherStage, prompt_id: str, sample_idx: int, key: str, reply: Reply) -> Completion:
    teacher = stage.teacher
    outcome, reason = teacher.outcome_of(reply)
    has_text = outcome in (Outcome.OK, Outcome.REFUSED, Outcome.TRUNCATED)
    return Completion(
        prompt_id=prompt_id,
        sample_idx=stage.first_sample_idx + sample_idx,
        outcome=outcome,
        reason=reason,
        text=(reply.text or reply.refusal) if has_text else "",
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cost_usd=teacher.tariff.of_reply(reply).usd,
        model=reply.model or teacher.model,
        request_hash=key,
        cached_tokens=reply.cached_tokens,
        reasoning_tokens=reply.reasoning_tokens,
        logprobs=[token_logprobs(position) for position in load_logprobs(reply.logprobs)] or None,
        stage=stage.stage,
    )


def _write(completions: CompletionSet, rows: Iterator[Completion], *, num_stages: int) -> list[dict[str, Any]]:
    """Write the rows as they come and return what those of each teacher add up to."""
    tallies = [_Tally() for _ in range(num_stages)]

    def counted() -> Iterator[Completion]:
        for row in rows:
            tallies[row.stage].count(row)
            yield row

    try:
        completions.write(counted())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StorageError(
            f"the disk of {completions.path} is full; free space and run the same command again: "
            "every answer is in the journal and is not paid for twice"
        ) from error
    return [tally.told() for tally in tallies]


@dataclass(slots=True)
class _Tally:
    """What rows add up to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0

    def count(self, row: Completion) -> None:
        self.outcomes[row.outcome] += 1
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.cost_usd += row.cost_usd

    def told(self) -> dict[str, Any]:
        return {
            "outcomes": {outcome.value: self.outcomes[outcome] for outcome in Outcome},
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost_usd,
        }


class _Summary(NamedTuple):
    """What came of asking one teacher."""

    model: str
    num_prompts: int
    num_samples: int
    told: dict[str, Any]


def _describe(summaries: list[_Summary], prompts: PromptSet) -> dict[str, Any]:
    """The content of ``summary.json``: the sums, and where there are several teachers those of each."""
    total = _add_up([one.told for one in summaries])
    whole = {"num_prompts": prompts.num_rows, "num_samples": summaries[-1].num_samples, **total}
    if len(summaries) == 1:
        return whole
    about = ("model", "num_prompts", "num_samples")
    return {**whole, "stages": [{**{name: getattr(one, name) for name in about}, **one.told} for one in summaries]}


def _add_up(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sum of each entry over mappings with the same keys, which may hold mappings of numbers."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: _add_up([part[name] for part in parts]) if isinstance(value, dict) else sum(part[name] for part in parts)
        for name, value in parts[0].items()
    }


def _check_sum(outcomes: dict[str, int], expected: int) -> None:
    if (found := sum(outcomes.values())) != expected:
        raise ArtifactError(f"expected {expected} rows with an outcome each, found {found}: {outcomes}; report this")


def _teacher_hash(run: QuerySpec) -> str:
    """Hash of what decides the answers; patience, concurrency and terms do not."""
    patience = {"api_key", "api_key_file", "base_url", "batch", "budget", "concurrency"}
    patience |= {"limits", "max_attempts", "on_unanswered", "retry_wait_s", "terms", "timeout_s"}

    def described(teacher: TeacherSpec) -> dict[str, Any]:
        return {**teacher.model_dump(mode="json", exclude=patience), "provider": provider_of(teacher)}

    main = {**described(run.teacher), "seed": run.seed}
    if not isinstance(run, RunSpec) or run.staging is None:
        return hash_json(main)
    earlier = [{**described(one.teacher), "fraction": one.fraction} for one in run.staging.earlier]
    return hash_json({**main, "fraction": run.staging.fraction, "earlier": earlier})


def _greeting(spec: LiveTeacherSpec) -> Prompt:
    if isinstance(spec, EmbeddedTeacherSpec):
        return next(generate_prompts(1, seed=0))
    return Prompt.build([Message("user", "Say hello.")], source="probe")
