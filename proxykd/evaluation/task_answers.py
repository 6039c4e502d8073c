"""What a task asks and what it gets back: the types that all kinds of tasks share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxykd.records import Message

ASKED_AT_ONCE = 2048
"""Questions of a task that are asked, and held in memory, at once."""


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A question with its reference answer.

    Attributes:
        prompt_id: Names it; questions with one id are one cluster.
        messages: Chat turns, the last one the user's.
        reference: The right answer.
        teacher_texts: What the teacher answered, one text a sample; () where it was not asked.
        teacher_refusals: Share of them that are refusals.
        slices: Names of the slices that it belongs to.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    reference: str
    teacher_texts: tuple[str, ...] = ()
    teacher_refusals: float = 0.0
    slices: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The last message's text."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class TaskAnswer:
    """What a model made of a question.

    Attributes:
        task: Name of the task.
        prompt_id: The question.
        text: The generated completion, special tokens left out, or the chosen choice; "" where a text was scored.
        answer: The extracted answer; None if there is none.
        is_correct: Whether it is right; None where nothing is right or wrong.
        confidence: The model's probability of its own answer, in [0, 1]; None where it has none.
        sums: Metric -> (numerator, denominator): what the answer adds to each metric.
        sample_idx: Which sample of the question.
        slices: Names of the slices that the question belongs to.
        question: The question, for readers.
        reference: The right answer, for readers; None if there is none.
    """

    task: str
    prompt_id: str
    text: str
    answer: str | None
    is_correct: bool | None
    confidence: float | None = None
    sums: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sample_idx: int = 0
    slices: tuple[str, ...] = ()
    question: str = ""
    reference: str | None = None


def judged(task: str, is_correct: bool, confidence: float | None) -> dict[str, tuple[float, float]]:
    """The sums of an answer that is right or wrong: accuracy and, with a confidence c, the Brier score (c - outcome)^2.

    Example:
        >>> judged("sums", True, 0.5)
        {'accuracy/sums': (1.0, 1.0), 'brier/sums': (0.25, 1.0)}
    """
    sums = {f"accuracy/{task}": (float(is_correct), 1.0)}
    if confidence is not None:
        sums[f"brier/{task}"] = ((confidence - is_correct) ** 2, 1.0)
    return sums


def agreement(answer: str | None, teacher_answers: Sequence[str | None]) -> tuple[float, float] | None:
    """With how many of the teacher's samples an answer agrees, over how many there are; None if none has an answer.

    Answers are compared as texts without white space at their ends; no answer agrees with nothing.

    Example:
        >>> agreement("7", ["7", "8", None])
        (1.0, 2.0)
    """
    given = [one.strip() for one in teacher_answers if one is not None]
    same = 0 if answer is None else sum(answer.strip() == one for one in given)
    return (float(same), float(len(given))) if given else None
