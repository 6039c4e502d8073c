"""The stage that has a model judge answers: pairs in both orders, or each answer alone (Lion, arXiv 2305.12870, 3.2).

The judge is asked through the teacher's engine: every reply is journaled, paid once, and under the caps of
``evaluation.judge.teacher.budget``. A reply without readable scores is asked again in the same conversation, a bounded
number of times, and then counts as unparsable; a call that the API refuses or filters counts as unanswered. Neither
is a win, a loss or a tie.

Differs from the paper: there, an unparsable reply is drawn anew until the number of such replies stops shrinking;
here the judge sees its own explanation and is asked for the scores alone, so the journal needs no second key.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Template
from typing import NamedTuple

from proxykd.config.judge import JudgeSpec
from proxykd.evaluation.rating import Pair, Scores, read_scores
from proxykd.exceptions import ConfigError
from proxykd.records import Message, Outcome, Prompt
from proxykd.teacher.follow_up import FollowUp
from proxykd.teacher.wordings import question_text, read_template

SOURCE = "judge"
_PLACES = {"pairwise": ("question", "answer_1", "answer_2"), "graded": ("question", "answer_1")}
_REMINDERS = {
    "pairwise": 'Give the scores alone, in exactly two lines: "Score 1: <number>" and "Score 2: <number>", 1 to 10.',
    "graded": 'Give the score alone, in exactly one line: "Score 1: <number>", 1 to 10.',
}
_USABLE = {Outcome.OK, Outcome.TRUNCATED}


class Duel(NamedTuple):
    """Two answers to one prompt.

    Attributes:
        prompt_id: The prompt.
        messages: Its chat turns.
        answer: The arm's.
        against: The other's.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    answer: str
    against: str


class Grade(NamedTuple):
    """What the judge made of one answer alone.

    Attributes:
        prompt_id: The prompt.
        score: 1 to 10; None = never readable.
    """

    prompt_id: str
    score: float | None


@dataclass(slots=True)
class Judge:
    """A judge and what asking it has cost.

    Attributes:
        spec: How it judges.
        asking: Who is asked; ``asking.costs`` adds up.
        template: The request.
        fates: Requests by how they ended: ``scored``, ``unparsable``, or the API's outcome where it gave no text.
    """

    spec: JudgeSpec
    asking: FollowUp
    template: Template
    fates: Counter[str]

    @classmethod
    def of(cls, spec: JudgeSpec, *, seed: int, journal_path: Path, folder: Path) -> "Judge":
        """A judge for a run.

        Args:
            spec: How it judges.
            seed: Of the run.
            journal_path: Remembers every reply; the run's own journal.
            folder: Folder for temporary files.

        Raises:
            ConfigError: if the user's template cannot be read or lacks a place.
        """
        template = read_template(
            "proxykd.evaluation",
            spec.kind,
            spec.template,
            key="evaluation.judge.template",
            needs=_PLACES[spec.kind],
        )
        sampling = spec.sampling.model_copy(update={"num_samples": 1})
        teacher = spec.teacher.model_copy(update={"sampling": sampling})
        return cls(spec, FollowUp(teacher, seed, journal_path, folder), template, Counter())

    def compare(self, duels: Sequence[Duel], *, name: str) -> list[Pair]:
        """The pairs' scores in both orders, in the order of the duels.

        Args:
            duels: One a prompt.
            name: Of this comparison, unlike that of any other: names its files.

        Raises:
            ConfigError: if the judge grades.
            TeacherError, BudgetError, StorageError: as the teacher's stage; the same call goes on from there.
        """
        if self.spec.kind != "pairwise":
            raise ConfigError("expected evaluation.judge.kind=pairwise to compare answers, got graded")
        forward = [self._request(one.messages, one.answer, one.against) for one in duels]
        backward = [self._request(one.messages, one.against, one.answer) for one in duels]
        found = self._scores([*forward, *backward], name, count=2)
        return [
            Pair(duel.prompt_id, found.get(one.prompt_id), found.get(other.prompt_id))
            for duel, one, other in zip(duels, forward, backward, strict=True)
        ]

    def grade(self, answers: Iterable[tuple[str, tuple[Message, ...], str]], *, name: str) -> list[Grade]:
        """The answers' scores, in their order.

        Args:
            answers: (prompt id, the prompt's chat turns, answer).
            name: Of this grading, unlike that of any other: names its files.

        Raises:
            ConfigError: if the judge compares.
            TeacherError, BudgetError, StorageError: as the teacher's stage; the same call goes on from there.
        """
        if self.spec.kind != "graded":
            raise ConfigError("expected evaluation.judge.kind=graded to grade answers, got pairwise")
        asked = [(prompt_id, self._request(messages, answer)) for prompt_id, messages, answer in answers]
        found = self._scores([request for _, request in asked], name, count=1)
        graded = ((prompt_id, found.get(request.prompt_id)) for prompt_id, request in asked)
        return [Grade(prompt_id, None if scores is None else scores.first) for prompt_id, scores in graded]

    def _request(self, messages: tuple[Message, ...], *answers: str) -> Prompt:
        places = {f"answer_{place}": answer for place, answer in enumerate(answers, 1)}
        text = self.template.substitute(question=question_text(messages), **places)
        return Prompt.build([Message("user", text)], source=SOURCE)

    def _scores(self, requests: Sequence[Prompt], name: str, *, count: int) -> dict[str, Scores]:
        """Request id -> scores; equal requests are asked once, and what has no readable scores is absent."""
        found: dict[str, Scores] = {}
        # Id of the conversation that is asked now -> id of the request with which it began.
        open_requests = {request.prompt_id: request for request in requests}
        origins = {prompt_id: prompt_id for prompt_id in open_requests}
        for number in range(self.spec.reasks + 1):
            if not open_requests:
                break
            what = "Asking the judge" if number == 0 else "Asking the judge again for its scores"
            replies = self.asking.ask(f"{name}-{number}", open_requests.values(), what)
            unread: dict[str, str] = {}
            for reply in replies.rows():
                if reply.outcome not in _USABLE:
                    self.fates[reply.outcome.value] += 1
                elif (scores := read_scores(reply.text, count)) is not None:
                    self.fates["scored"] += 1
                    found[origins[reply.prompt_id]] = scores
                else:
                    unread[reply.prompt_id] = reply.text
            if number == self.spec.reasks:
                self.fates["unparsable"] += len(unread)
            open_requests, origins = self._reminded(open_requests, origins, unread)
        return found

    def _reminded(
        self, asked: Mapping[str, Prompt], origins: Mapping[str, str], unread: Mapping[str, str]
    ) -> tuple[dict[str, Prompt], dict[str, str]]:
        """The conversations whose last reply had no scores, each with that reply and a reminder at its end."""
        reminder = Message("user", _REMINDERS[self.spec.kind])
        further: dict[str, Prompt] = {}
        began: dict[str, str] = {}
        for prompt_id, reply in unread.items():
            turns = [*asked[prompt_id].messages, Message("assistant", reply), reminder]
            again = Prompt.build(turns, source=SOURCE)
            further[again.prompt_id], began[again.prompt_id] = again, origins[prompt_id]
        return further, began


def duels_of(
    messages: Mapping[str, tuple[Message, ...]],
    answers: Mapping[str, str],
    against: Mapping[str, str],
    limit: int | None,
) -> Iterator[Duel]:
    """The duels of two sets of answers on the prompts that both answered, in the order of ``messages``.

    Args:
        messages: Prompt id -> its chat turns.
        answers: Prompt id -> the arm's answer.
        against: Prompt id -> the other's answer.
        limit: Take only the first so many of those prompts; None = all.
    """
    both = (prompt_id for prompt_id in messages if prompt_id in answers and prompt_id in against)
    for prompt_id in islice(both, limit):
        yield Duel(prompt_id, messages[prompt_id], answers[prompt_id], against[prompt_id])
