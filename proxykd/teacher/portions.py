"""Asking in several places at once: each asks its portion of the prompts into a journal of its own, one gathers.

    prompts -> portion i of n -> its own journal -> answers i         (n processes, none knows the others)
    answers 0 .. n - 1 -> the journal of the run -> completions       (one process, asks nothing)

Rows travel with their checksums, so that the completions are the same to the last bit as those of a run that asked in
one place. A portion's journal stays where it is: the same portion, done again after its process died, asks only what it
lacks, and after a change of n, or in one place, the others are read first, so that nothing is paid twice. Of every cap
and every rate a portion has 1 / n, so that all together stay below it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from proxykd.artifacts import AnswerSet, PromptSet, seal
from proxykd.config.specification import RunSpec
from proxykd.config.teacher import ApiTeacherSpec, BudgetSpec, TeacherSpec
from proxykd.data.portions import Portion
from proxykd.exceptions import ConfigError
from proxykd.teacher.archive import import_rows, write_parquet
from proxykd.teacher.asking import ask_all
from proxykd.teacher.entries import Row
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.other_journals import PORTIONS, bring, keys_of
from proxykd.teacher.stages import blamed, stages_of

ANSWERS = "answers.parquet"


def ask_portion(
    prompts: PromptSet, run: RunSpec, portion: Portion, *, journal_path: Path, folder: Path, output: Path
) -> AnswerSet:
    """Ask the teachers what a portion of the prompts lacks.

    Args:
        prompts: The portion alone (``Portion.select``).
        run: The teacher, its sampling, the seed, staging and split are read.
        portion: Which one it is.
        journal_path: The journal of whole runs; read, never written.
        folder: Where the portions keep their journals; created.
        output: Folder of the new artifact.

    Raises:
        ConfigError: if a cap cannot be divided, or open batches of another division hold calls of this portion.
        ProxykdError: as ``proxykd.teacher.query.query_teacher``.
    """
    stages, rows = stages_of(narrowed(run, portion)), output / ANSWERS
    folder.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    own = folder / f"{portion}.sqlite"
    # The other portions of this division have other prompts, and may be writing: SQLite's files are for one machine.
    strange = (path for path in sorted(folder.glob(PORTIONS)) if not path.stem.endswith(f"-of-{portion.of}"))
    others = [path for path in (journal_path, *strange) if path.is_file()]
    with Journal(own) as journal:
        for stage in stages:
            for other in others:
                bring(stage.teacher, prompts, journal, other, may_settle=False)
            with blamed(stage):
                ask_all(stage.teacher, prompts, journal, title=f"{stage.title}, portion {portion}")
        write_parquet(rows, (row for stage in stages for row in _rows(stage.teacher, prompts, journal)))
    answers = AnswerSet(output)
    seal(answers, {"prompts": prompts.hash})
    return answers


def gather(answers: Iterable[AnswerSet], journal_path: Path) -> int:
    """Put the answers of all portions into the journal of the run; returns how many rows were new.

    Raises:
        InputError: if a row is not what its portion wrote.
        StorageError: if the journal cannot be written.
    """
    with Journal(journal_path) as journal:
        return sum(import_rows(journal, one.path / ANSWERS)[1] for one in answers)


def narrowed(run: RunSpec, portion: Portion) -> RunSpec:
    """The run as one portion of it may spend and ask.

    Raises:
        ConfigError: if a cap is too low to be divided.
    """
    changes: dict[str, Any] = {"teacher": _narrowed(run.teacher, portion.of)}
    if run.staging is not None:
        earlier = tuple(
            one.model_copy(update={"teacher": _narrowed(one.teacher, portion.of)}) for one in run.staging.earlier
        )
        changes["staging"] = run.staging.model_copy(update={"earlier": earlier})
    return run.model_copy(update=changes)


def _narrowed(teacher: TeacherSpec, of: int) -> TeacherSpec:
    if not isinstance(teacher, ApiTeacherSpec):
        return teacher
    limits = teacher.limits.model_copy(update={"share": teacher.limits.share / of})
    concurrency = max(1, teacher.concurrency // of)
    return teacher.model_copy(
        update={"limits": limits, "concurrency": concurrency, "budget": _divided(teacher.budget, of)}
    )


def _divided(budget: BudgetSpec, of: int) -> BudgetSpec:
    counts = {name: getattr(budget, name) for name in ("tokens", "requests")}
    if low := [f"{name}={cap}" for name, cap in counts.items() if cap is not None and cap < of]:
        raise ConfigError(f"expected a cap of at least 1 for each of {of} shards, got teacher.budget {low}; raise it")
    shares = {name: None if cap is None else cap // of for name, cap in counts.items()}
    return budget.model_copy(update={**shares, "usd": None if budget.usd is None else budget.usd / of})


def _rows(teacher: LiveTeacher, prompts: PromptSet, journal: Journal) -> Iterator[Row]:
    for keys in keys_of(teacher, prompts, journal):
        yield from journal.rows_among(keys).values()
