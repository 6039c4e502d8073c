"""Feedback and improved attempts on the student's own wrong answers, as trajectories (TriPosT, arXiv 2310.13522).

    attempt -> [wrong] -> feedback -> update -> [wrong] -> feedback -> update -> ... -> [right]

A verifier says what is wrong; the teacher gives feedback on it, then an improved attempt. All calls go through the
stage that asks the teacher, so that they are journaled, never paid twice, and counted under the caps of
``teacher.budget``.

Differs from the paper: there, an LLM or a script judges the attempts; here, a verifier does, mostly by a known answer.
There, the rest of a trajectory weighs 1 in the loss; here, what is wrong is read and not learnt, unless
``wrong_weight`` says otherwise.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from string import Template
from typing import Any

from proxykd.artifacts import PromptSet, TrajectorySet, seal, write_json
from proxykd.config.corrections import CorrectionsSpec
from proxykd.config.specification import RunSpec
from proxykd.config.teacher import ApiTeacherSpec
from proxykd.data.scratch import scratch_database
from proxykd.data.verifiers import Verifier, build_verifier, verify_many
from proxykd.exceptions import ConfigError, InputError
from proxykd.progress import track
from proxykd.records import Message, Outcome, Prompt, hash_json
from proxykd.teacher.follow_up import FollowUp
from proxykd.teacher.trajectory_store import Item, TrajectoryStore
from proxykd.teacher.wordings import question_text, read_template
from proxykd.trajectories import Segment, SegmentKind, Trajectory, TrajectoryEnd

SUMMARY = "summary.json"
SOURCE = "corrections"
_MUST_HAVE = {"feedback": {"question", "attempt"}, "update": {"question", "attempt", "feedback"}}


def build_trajectories(
    prompts: PromptSet,
    attempts: Iterable[tuple[str, str]],
    run: RunSpec,
    *,
    journal_path: Path,
    output: Path,
) -> TrajectorySet:
    """Correct the student's wrong attempts and write all trajectories.

    Args:
        prompts: The questions, with references.
        attempts: (prompt id, text) of the student, in any order, several a prompt if wanted; equal ones count once.
        run: The teacher, its budget, the seed, the verifier and the corrections are read.
        journal_path: The SQLite file that remembers every answer; the run's own, so that nothing is paid twice.
        output: Folder of the new artifact.

    Returns:
        One trajectory an attempt, in the order of ``prompts``; ``summary.json`` beside them counts ends and costs.

    Raises:
        ConfigError: if the run has no corrections or no verifier, its teacher cannot be asked freely, or a template
            lacks a part.
        InputError: if there is an attempt at a prompt that is not among ``prompts``.
        TeacherError, BudgetError, StorageError: as ``query_teacher``; the same call goes on from there.
        SandboxError: if the verifier runs programs and this machine cannot hold them in.
    """
    spec, teacher = _parts_of(run)
    templates = _Templates.read(spec)
    assert run.verifier is not None  # _parts_of has looked
    verifier = build_verifier(run.verifier)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_database() as database, tempfile.TemporaryDirectory(dir=output.parent, prefix=".rounds-") as folder:
        store = TrajectoryStore(database)
        hash_of_attempts = store.add_attempts(islice(attempts, spec.limit))
        _judge_attempts(store, prompts, verifier, spec.workers)
        asking = FollowUp(teacher, run.seed, journal_path, Path(folder))
        work = _Rounds(store, asking, templates)
        for number in range(spec.rounds):
            if not work.correct(number, verifier, spec.workers):
                break
        for item in store.open_items():
            store.end(item.number, TrajectoryEnd.WRONG)
        store.balance(spec.improve_ratio)
        trajectories = TrajectorySet(output)
        summary = _write(trajectories, store, spec)
    write_json(output / SUMMARY, {**summary, **asking.costs})
    made_from = {"prompts": prompts.hash, "attempts": hash_of_attempts, "corrections": _hash_of(spec, templates, run)}
    seal(trajectories, made_from)
    return trajectories


def read_attempts(path: Path) -> Iterator[tuple[str, str]]:
    """The student's attempts in a JSONL file: one object a line with the texts ``prompt_id`` and ``text``.

    Raises:
        InputError: if the file or a line is not that, naming the line.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _attempt(line, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"expected a file of attempts at {path}: {error.strerror}") from None


def _attempt(line: bytes, where: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected a JSON object, {error}") from None
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("prompt_id", "text")):
        raise InputError(f"{where}: expected an object with the texts prompt_id and text")
    return value["prompt_id"], value["text"]


@dataclass(frozen=True, slots=True)
class _Templates:
    """The two requests to the teacher."""

    feedback: Template
    update: Template

    @classmethod
    def read(cls, spec: CorrectionsSpec) -> "_Templates":
        """The user's or the package's.

        Raises:
            ConfigError: if a file cannot be read, lacks a part or has one that is not known.
        """
        return cls(_template("feedback", spec.feedback_template), _template("update", spec.update_template))


def _template(name: str, path: Path | None) -> Template:
    key = f"corrections.{name}_template"
    return read_template("proxykd.teacher", name, path, key=key, needs=_MUST_HAVE[name], allows={"reference"})


@dataclass(slots=True)
class _Rounds:
    """Asks the teacher, round by round."""

    store: TrajectoryStore
    teacher: FollowUp
    templates: _Templates

    def correct(self, number: int, verifier: Verifier, workers: int) -> bool:
        """One round over all items that go on; whether there was any."""
        if next(self.store.open_items(), None) is None:
            return False
        self._ask(f"{number}-feedback", SegmentKind.FEEDBACK, self.templates.feedback)
        self._ask(f"{number}-update", SegmentKind.UPDATE, self.templates.update)
        open_items, again = tee(self.store.open_items())
        pairs = ((item.prompt, item.answer) for item in open_items)
        for item, check in zip(again, verify_many(pairs, verifier, workers=workers), strict=True):
            if check.passed:
                self.store.end(item.number, TrajectoryEnd.IMPROVED)
        return True

    def _ask(self, name: str, kind: SegmentKind, template: Template) -> None:
        answers = self.teacher.ask(name, self._questions(template), f"Asking the teacher for {kind} on wrong answers")
        for answer in answers.rows():
            self.store.answer(answer.prompt_id, kind, answer.text if answer.outcome is Outcome.OK else None)

    def _questions(self, template: Template) -> Iterator[Prompt]:
        for item in self.store.open_items():
            question = Prompt.build([Message("user", _render(template, item))], source=SOURCE)
            if self.store.ask(item, question):
                yield question


def _parts_of(run: RunSpec) -> tuple[CorrectionsSpec, ApiTeacherSpec]:
    """How to correct, and the teacher as it is asked for that: one sample."""
    if run.corrections is None or run.verifier is None or not isinstance(run.teacher, ApiTeacherSpec):
        raise ConfigError(
            "expected a specification with the sections corrections and verifier and with teacher.kind=openai, found "
            f"corrections={'set' if run.corrections else None}, verifier={run.verifier and run.verifier.kind}, "
            f"teacher.kind={run.teacher.kind}; see docs/strategies.md"
        )
    sampling = (run.corrections.sampling or run.teacher.sampling).model_copy(update={"num_samples": 1})
    return run.corrections, run.teacher.model_copy(update={"sampling": sampling})


def _judge_attempts(store: TrajectoryStore, prompts: PromptSet, verifier: Verifier, workers: int) -> None:
    attempts, again = tee(store.attempts_at(prompts.rows()))
    checks = verify_many(((prompt, text) for prompt, _, text in attempts), verifier, workers=workers)
    judged = zip(again, checks, strict=True)
    for (prompt, attempt_idx, text), check in track(judged, "Checking the student's attempts", unit="attempt"):
        store.add(prompt, attempt_idx, text, is_right=check.passed)


def _render(template: Template, item: Item) -> str:
    """A request to the teacher; what it quotes is not read for placeholders."""
    return template.substitute(
        question=question_text(item.prompt.messages),
        attempt=item.answer,
        feedback=item.feedback,
        reference=item.prompt.reference or "",
    )


def _write(trajectories: TrajectorySet, store: TrajectoryStore, spec: CorrectionsSpec) -> dict[str, Any]:
    ends: Counter[str] = Counter()
    updates: Counter[int] = Counter()
    num_kept = 0

    def rows() -> Iterator[Trajectory]:
        nonlocal num_kept
        for item in store.items():
            row = _trajectory(item, spec)
            ends[row.end] += 1
            num_kept += row.is_kept
            if row.end is TrajectoryEnd.IMPROVED:
                updates[len(row.segments) // 2] += 1
            yield row

    trajectories.write(rows())
    return {
        "attempts": ends.total(),
        "ends": {end.value: ends[end] for end in TrajectoryEnd},
        "improved_after_updates": {str(count): updates[count] for count in range(1, spec.rounds + 1)},
        "kept": num_kept,
    }


def _trajectory(item: Item, spec: CorrectionsSpec) -> Trajectory:
    assert item.end is not None  # all have been ended
    last = len(item.segments) - 1
    segments = tuple(
        Segment(kind, text, _weight(kind, position == last, item.end, spec))
        for position, (kind, text) in enumerate(item.segments)
    )
    prompt = item.prompt
    return Trajectory(
        prompt.prompt_id,
        item.attempt_idx,
        prompt.taught_messages,
        prompt.task,
        prompt.reference,
        segments,
        item.end,
        item.is_kept,
    )


def _weight(kind: SegmentKind, is_last: bool, end: TrajectoryEnd, spec: CorrectionsSpec) -> float:
    if kind is SegmentKind.FEEDBACK:
        return spec.feedback_weight
    if end is TrajectoryEnd.RIGHT:
        return spec.right_weight
    is_right = is_last and end is TrajectoryEnd.IMPROVED
    return spec.update_weight if is_right else spec.wrong_weight


def _hash_of(spec: CorrectionsSpec, templates: _Templates, run: RunSpec) -> str:
    """Hash of what decides the trajectories beside prompts and attempts."""
    settings = spec.model_dump(mode="json", exclude={"workers", "feedback_template", "update_template"})
    texts = [templates.feedback.template, templates.update.template]
    patience = {"api_key", "base_url", "budget", "concurrency", "max_attempts", "on_unanswered", "timeout_s"}
    assert run.verifier is not None  # _parts_of has looked
    judged = run.verifier.model_dump(mode="json")
    return hash_json([settings, texts, judged, run.teacher.model_dump(mode="json", exclude=patience), run.seed])
