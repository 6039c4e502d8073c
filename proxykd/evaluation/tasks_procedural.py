"""Procedural problems of reasoning-gym: made from a seed, checked by the generator's own rule.

So nobody can have learnt the answers by heart (Stojanovski et al. 2025, arXiv:2505.24760). The package is the extra
``reasoning`` and is imported when such a task runs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from proxykd.artifacts import batched
from proxykd.config.evaluation import ReasoningGymTaskSpec
from proxykd.data.answers import find_answer
from proxykd.evaluation.generation import Generation, Respondent
from proxykd.evaluation.task_answers import ASKED_AT_ONCE, TaskAnswer
from proxykd.exceptions import InputError, ModelError
from proxykd.records import Message, prompt_id_of


def run_reasoning_gym(spec: ReasoningGymTaskSpec, respondent: Respondent) -> Iterator[TaskAnswer]:
    """Ask generated problems; ``score`` is the generator's verdict from 0 to 1, ``accuracy`` the share of ones.

    Args:
        spec: The task.
        respondent: The model.

    Raises:
        ModelError: if reasoning-gym is not installed.
        InputError: if there is no such generator, or it refuses its settings.
    """
    problems = _problems(spec)
    entries = (problems[place] for place in range(spec.size))
    for chunk in batched(entries, ASKED_AT_ONCE):
        yield from _ask(spec, respondent, problems, chunk)


def _ask(
    spec: ReasoningGymTaskSpec, respondent: Respondent, problems: Any, entries: Sequence[dict[str, Any]]
) -> Iterator[TaskAnswer]:
    asked = [(Message("user", str(entry["question"])),) for entry in entries]
    token_ids = [respondent.encode_messages(messages) for messages in asked]
    completions = respondent.generate(token_ids, Generation(spec.max_new_tokens), description=spec.name)
    for entry, messages, completion in zip(entries, asked, completions, strict=True):
        text = respondent.decode(completion)
        answer = text.strip() if spec.answer_pattern is None else find_answer(spec.answer_pattern, text)
        score = float(problems.score_answer(answer=answer, entry=entry))
        yield TaskAnswer(
            task=spec.name,
            prompt_id=prompt_id_of(messages),
            text=text,
            answer=answer,
            is_correct=score >= 1.0,
            sums={f"accuracy/{spec.name}": (float(score >= 1.0), 1.0), f"score/{spec.name}": (score, 1.0)},
            question=messages[-1].content,
            reference=str(entry["answer"]),
        )


def _problems(spec: ReasoningGymTaskSpec) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ModelError(
            f"task {spec.name!r} (kind: reasoning_gym) needs reasoning-gym: pip install 'proxykd[reasoning]'"
        ) from error
    if spec.dataset not in DATASETS:
        raise InputError(
            f"task {spec.name!r}: expected a data set of reasoning-gym, got {spec.dataset!r}; it has "
            f"{', '.join(sorted(DATASETS))}"
        )
    try:
        return reasoning_gym.create_dataset(spec.dataset, size=spec.size, seed=spec.seed, **spec.config)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"task {spec.name!r}: reasoning-gym's {spec.dataset} refuses its settings: {error}; mend "
            "evaluation.tasks[].config"
        ) from error
