"""The stage that asks the teacher: prompts in, one completion with exactly one outcome for every prompt and sample.

Calls are made in any order and journaled; the artifact is then written from the journal in the order of the prompts,
so that it is the same however often the run was killed on the way. ``summary.json`` beside the rows counts outcomes,
tokens and money.
"""

import errno
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from proxykd.artifacts import CompletionSet, PromptSet, seal, write_json
from proxykd.config.prompts import EmbeddedPromptsSpec, FilePromptsSpec, PromptsSpec
from proxykd.config.specification import QuerySpec
from proxykd.config.teacher import EmbeddedTeacherSpec, RecordedTeacherSpec
from proxykd.data.prompts import load_prompts
from proxykd.exceptions import ArtifactError, BudgetError, InputError, StorageError
from proxykd.records import Completion, Message, Outcome, Prompt, hash_json
from proxykd.teacher.asking import ask_all
from proxykd.teacher.budget import NOTHING, Cost
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacher, LiveTeacherSpec, provider_of
from proxykd.teacher.problems import generate_prompts
from proxykd.teacher.recorded import recorded_completions
from proxykd.teacher.replies import Reply, load_logprobs, token_logprobs

SUMMARY = "summary.json"
_UNSETTLED = Reply(error="never settled")


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
    seal(prompts, {"prompts": hash_json({**spec.model_dump(mode="json"), "seed": seed})})
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
    prompts: PromptSet, run: QuerySpec, *, journal_path: Path, output: Path, asks: bool = True
) -> CompletionSet:
    """Ask the teacher everything that the journal has no answer to, and write all answers.

    Args:
        prompts: The questions.
        run: The teacher, its sampling and the seed are read.
        journal_path: The SQLite file that remembers every answer; shared by reruns.
        output: Folder of the new artifact.
        asks: False = write what the journal has and ask nothing; what it lacks counts as failed.

    Raises:
        TeacherUnreachableError, TeacherAuthError, TeacherError: after one probe call, if the endpoint is unusable;
            later, if it refuses the key, has no credit for us or leaves calls unanswered (unless
            ``teacher.on_unanswered`` is fail_rows, which counts their rows as failed).
        StorageError: if the journal or the artifact cannot be written.
        KeyboardInterrupt: passed on after the journal is committed; the same call goes on from there.
    """
    completions = CompletionSet(output)
    num_samples = 1
    if isinstance(run.teacher, RecordedTeacherSpec):
        assert isinstance(run.prompts, FilePromptsSpec)  # the specification allows no other
        summary = _write(completions, recorded_completions(prompts, run.prompts, run.teacher))
    else:
        num_samples = run.teacher.sampling.num_samples
        with Journal(journal_path) as journal:
            teacher = LiveTeacher.of(run, run.teacher)
            if asks:
                ask_all(teacher, prompts, journal)
            summary = _write(completions, _read_answers(teacher, prompts, journal))
    _check_sum(summary["outcomes"], prompts.num_rows * num_samples)
    write_json(output / SUMMARY, {"num_prompts": prompts.num_rows, "num_samples": num_samples, **summary})
    seal(completions, {"prompts": prompts.hash, "teacher": _teacher_hash(run)})
    return completions


class Outlook(NamedTuple):
    """What of a run is answered already.

    Attributes:
        spent: What its calls have cost so far; nothing where no cap is set.
        num_requests: Calls that the run makes on an empty journal.
        num_known: Answers in the journal.
        first_unknown: The first prompt and sample index without an answer; None = nothing is left to ask.
    """

    num_requests: int
    num_known: int
    first_unknown: tuple[Prompt, int] | None
    spent: Cost = NOTHING


def look_ahead(prompts: PromptSet, run: QuerySpec, *, journal_path: Path) -> Outlook:
    """Count the calls of a run that the journal has answers to; asks nothing and creates no journal.

    Args:
        prompts: The questions.
        run: The teacher, its sampling and the seed are read.
        journal_path: The journal; need not exist.

    Raises:
        ConfigError: if the environment variable of the teacher's key is unset.
        StorageError: if the journal cannot be read.
    """
    if isinstance(run.teacher, RecordedTeacherSpec):
        return Outlook(0, 0, None)
    teacher, num_requests = LiveTeacher.of(run, run.teacher), prompts.num_rows * run.teacher.sampling.num_samples
    if not journal_path.exists():
        return Outlook(num_requests, 0, next((prompt, 0) for prompt in prompts.rows()))
    num_known, first_unknown = 0, None
    with Journal(journal_path) as journal:
        for prompt, sample_idx, request in teacher.requests(prompts):
            if journal.has_final(request.key):
                num_known += 1
            elif first_unknown is None:
                first_unknown = prompt, sample_idx
        return Outlook(num_requests, num_known, first_unknown, teacher.spent(prompts, journal))


def probe_teacher(
    run: QuerySpec, *, journal_path: Path, prompt: Prompt | None = None, sample_idx: int = 0, spent: Cost = NOTHING
) -> None:
    """Make one call and return if the teacher can be used; a recorded teacher always can.

    Args:
        run: The teacher.
        journal_path: The answer is kept there, so that a later run need not pay for it again.
        prompt: What to ask; None = a short greeting (the embedded teacher is asked one of its own questions).
        sample_idx: Which of its samples.
        spent: What the run's calls have cost before.

    Raises:
        TeacherUnreachableError, TeacherAuthError, TeacherError: if it cannot be used.
        BudgetError: if a cap of ``teacher.budget`` allows no call and ``teacher.on_unanswered`` is stop.
    """
    if isinstance(run.teacher, RecordedTeacherSpec):
        return
    teacher = LiveTeacher.of(run, run.teacher)
    request = teacher.request(prompt or _greeting(run.teacher), sample_idx)
    with Journal(journal_path) as journal:
        if journal.has_final(request.key):
            return
        try:
            teacher.drive(journal, lambda engine: engine.probe(request), spent=lambda: spent)
        except BudgetError:
            if run.teacher.on_unanswered == "stop":
                raise


def _read_answers(teacher: LiveTeacher, prompts: PromptSet, journal: Journal) -> Iterator[Completion]:
    for prompt, sample_idx, request, found in teacher.replies(prompts, journal):
        reply = found or _UNSETTLED
        outcome, reason = teacher.outcome_of(reply)
        has_text = outcome in (Outcome.OK, Outcome.REFUSED, Outcome.TRUNCATED)
        yield Completion(
            prompt_id=prompt.prompt_id,
            sample_idx=sample_idx,
            outcome=outcome,
            reason=reason,
            text=(reply.text or reply.refusal) if has_text else "",
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cost_usd=teacher.tariff.of_reply(reply).usd,
            model=reply.model or teacher.model,
            request_hash=request.key,
            cached_tokens=reply.cached_tokens,
            reasoning_tokens=reply.reasoning_tokens,
            logprobs=[token_logprobs(position) for position in load_logprobs(reply.logprobs)] or None,
        )


def _write(completions: CompletionSet, rows: Iterator[Completion]) -> dict[str, Any]:
    """Write the rows as they come and return what they add up to."""
    outcomes: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    cost_usd = 0.0

    def counted() -> Iterator[Completion]:
        nonlocal cost_usd
        for row in rows:
            outcomes[row.outcome] += 1
            totals.update(prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens)
            cost_usd += row.cost_usd
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
    counts = {outcome.value: outcomes[outcome] for outcome in Outcome}
    return {
        "outcomes": counts,
        "prompt_tokens": totals["prompt_tokens"],
        "completion_tokens": totals["completion_tokens"],
        "cost_usd": cost_usd,
    }


def _check_sum(outcomes: dict[str, int], expected: int) -> None:
    if (found := sum(outcomes.values())) != expected:
        raise ArtifactError(f"expected {expected} rows with an outcome each, found {found}: {outcomes}; report this")


def _teacher_hash(run: QuerySpec) -> str:
    """Hash of what decides the answers; patience and concurrency do not."""
    patience = {"api_key", "api_key_file", "base_url", "batch", "budget", "concurrency"}
    patience |= {"limits", "max_attempts", "on_unanswered", "retry_wait_s", "timeout_s"}
    spec = run.teacher.model_dump(mode="json", exclude=patience)
    return hash_json({**spec, "provider": provider_of(run.teacher), "seed": run.seed})


def _greeting(spec: LiveTeacherSpec) -> Prompt:
    if isinstance(spec, EmbeddedTeacherSpec):
        return next(generate_prompts(1, seed=0))
    return Prompt.build([Message("user", "Say hello.")], source="probe")
