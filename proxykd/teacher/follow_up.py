"""Questions that a stage asks beside the corpus, in rounds: corrections and verdicts.

They go through the stage that asks the teacher, so that they are journaled and never paid twice. The caps of
``teacher.budget`` hold for all rounds together.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from proxykd.artifacts import CompletionSet, PromptSet, seal
from proxykd.config.specification import QuerySpec
from proxykd.config.teacher import ApiTeacherSpec
from proxykd.progress import report
from proxykd.records import Prompt
from proxykd.teacher.query import query_teacher


@dataclass(slots=True)
class FollowUp:
    """Asks an API in rounds and adds up what that costs.

    Attributes:
        teacher: The API that is asked.
        seed: Of the run.
        journal_path: The journal; the run's own, so that nothing is paid twice.
        folder: Folder for temporary files.
        costs: ``requests``, ``prompt_tokens``, ``completion_tokens`` and ``cost_usd`` so far; the same request again
            is in the journal and costs nothing.
        counted: Hashes of the requests whose cost is counted, here or elsewhere.
    """

    teacher: ApiTeacherSpec
    seed: int
    journal_path: Path
    folder: Path
    costs: dict[str, float] = field(
        default_factory=lambda: {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0}
    )
    counted: set[str] = field(default_factory=set)

    def ask(self, name: str, questions: Iterable[Prompt], what: str) -> CompletionSet:
        """The answers to the questions of one round, in their order.

        Args:
            name: Of the round, unlike that of any other: names its files.
            questions: No two with the same messages.
            what: What is asked for, in words; their number is added.

        Raises:
            TeacherError, BudgetError, StorageError: as ``query_teacher``; the same call goes on from there.
        """
        asked = PromptSet(self.folder / f"{name}-prompts")
        asked.write(questions)
        seal(asked)
        report(f"{what} ({asked.num_rows})")
        answers = query_teacher(asked, self._within_budget(), journal_path=self.journal_path, output=self.folder / name)
        for answer in answers.rows():
            if answer.request_hash in self.counted:
                continue
            self.counted.add(answer.request_hash)
            self.costs["requests"] += 1
            self.costs["prompt_tokens"] += answer.prompt_tokens
            self.costs["completion_tokens"] += answer.completion_tokens
            self.costs["cost_usd"] += answer.cost_usd
        return answers

    def _within_budget(self) -> QuerySpec:
        """This teacher alone with what is left of its caps: each query counts its own calls alone."""
        spent = {
            "usd": self.costs["cost_usd"],
            "tokens": self.costs["prompt_tokens"] + self.costs["completion_tokens"],
            "requests": self.costs["requests"],
        }
        caps = {name: cap for name, cap in self.teacher.budget if cap is not None}
        left = self.teacher.budget.model_copy(update={name: max(0, cap - spent[name]) for name, cap in caps.items()})
        return QuerySpec.model_construct(seed=self.seed, teacher=self.teacher.model_copy(update={"budget": left}))
