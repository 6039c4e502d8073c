"""Questions that a stage asks beside the corpus, in rounds: corrections and verdicts.

They go through the stage that asks the teacher, so that they are journaled and never paid twice. The caps of
``teacher.budget`` hold for all rounds together, those of an earlier step included.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proxykd.artifacts import CompletionSet, PromptSet, seal
from proxykd.config.specification import QuerySpec
from proxykd.config.teacher import ApiTeacherSpec
from proxykd.progress import report
from proxykd.records import Prompt
from proxykd.teacher.budget import Cost, spent_on
from proxykd.teacher.journal import Journal
from proxykd.teacher.query import query_teacher
from proxykd.teacher.stages import stages_of


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
        before: What those that are counted elsewhere cost, like ``costs``; the caps hold for both together.
    """

    teacher: ApiTeacherSpec
    seed: int
    journal_path: Path
    folder: Path
    costs: dict[str, float] = field(
        default_factory=lambda: {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0}
    )
    counted: set[str] = field(default_factory=set)
    before: Mapping[str, float] = field(default_factory=dict)

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
        answers = query_teacher(
            asked, self._within_budget(asked), journal_path=self.journal_path, output=self.folder / name
        )
        for answer in answers.rows():
            if answer.request_hash in self.counted:
                continue
            self.counted.add(answer.request_hash)
            self.costs["requests"] += 1
            self.costs["prompt_tokens"] += answer.prompt_tokens
            self.costs["completion_tokens"] += answer.completion_tokens
            self.costs["cost_usd"] += answer.cost_usd
        return answers

    def _within_budget(self, asked: PromptSet) -> QuerySpec:
        """This teacher alone with what is left of its caps: each query counts all calls that it asks for, and no other.

        Args:
            asked: The questions; what those of them cost that are counted already is not taken off the caps twice.
        """
        left = self.teacher
        if left.budget.is_set:
            costs = {name: cost + self.before.get(name, 0) for name, cost in self.costs.items()}
            tokens = int(costs["prompt_tokens"] + costs["completion_tokens"])
            spent = Cost(int(costs["requests"]), tokens, costs["cost_usd"]) - self._counted_again(asked)
            caps = {name: cap for name, cap in left.budget if cap is not None}
            rest = {name: max(0, cap - getattr(spent, name)) for name, cap in caps.items()}
            left = left.model_copy(update={"budget": left.budget.model_copy(update=rest)})
        return QuerySpec.model_construct(seed=self.seed, teacher=left)

    def _counted_again(self, asked: PromptSet) -> Cost:
        (stage,) = stages_of(QuerySpec.model_construct(seed=self.seed, teacher=self.teacher))
        teacher = stage.teacher
        keys = (key for calls in teacher.calls(asked) for key in calls.keys if key in self.counted)
        with Journal(self.journal_path) as journal:
            return spent_on(keys, tariff=teacher.tariff, get_many=journal.get_many, open_attempts=())
