"""Questions -> prompts: which system message goes before a question, and examples before both are sent.

Orca (arXiv:2306.02707) elicits explanations with a list of system messages, a few of which apply to each task. Under
the policy ``one`` a question gets one of those that apply, drawn in proportion to their weights by the hash of the
run's seed and the question's id; under ``all`` it becomes one prompt for each.

All prompts of one question are one group: they fall on one side of the corpus (``proxykd.data.splits``), the side on
which the question falls without any of this, so that no training prompt is a held-out one in another dress.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from proxykd.config.elicitation import SystemMessageSpec
from proxykd.config.prompts import FilePromptsSpec
from proxykd.records import Message, Prompt, hash_json

_DRAW_BITS = 64


def expand(question: Prompt, spec: FilePromptsSpec, *, seed: int) -> Iterator[Prompt]:
    """The prompts that a question is asked as; itself alone where the specification puts nothing before it.

    Args:
        question: The prompt of the row; without a system message where ``spec`` lists some.
        spec: The system messages, the policy of each task and the examples.
        seed: Of the run.
    """
    if not spec.is_expanded:
        yield question
        return
    for system in _systems_for(question, spec, seed):
        head = [Message("system", system)] if system else []
        body = list(question.messages)
        if body[0].role == "system":
            head, body = [body[0]], body[1:]
        turns = [
            Message(role, text)
            for example in spec.examples
            for role, text in (("user", example.prompt), ("assistant", example.completion))
        ]
        yield Prompt.build(
            [*head, *turns, *body],
            task=question.task,
            reference=question.reference,
            source=question.source,
            group=question.prompt_id,
            num_example_messages=len(turns),
        )


def draw(messages: Sequence[SystemMessageSpec], question_id: str, *, seed: int) -> SystemMessageSpec:
    """One of ``messages`` in proportion to their weights; the same for ever for one seed and question.

    Args:
        messages: At least one.
        question_id: Id of the question before anything is put before it.
        seed: Of the run.
    """
    position = int(hash_json(["system message", seed, question_id], length=_DRAW_BITS // 4), 16) / 2**_DRAW_BITS
    edges = list(accumulate(message.weight for message in messages))
    return next(
        (message for message, edge in zip(messages, edges, strict=True) if position * edges[-1] < edge), messages[-1]
    )


def _systems_for(question: Prompt, spec: FilePromptsSpec, seed: int) -> list[str]:
    """The texts of the system messages under which a question is asked; "" = none."""
    applying = [message for message in spec.system_messages if message.applies_to(question.task)]
    if not applying:
        return [""]
    if spec.policy_for(question.task) == "all":
        return [message.text for message in applying]
    return [draw(applying, question.prompt_id, seed=seed).text]
