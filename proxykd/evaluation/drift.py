"""Free answers to held-out prompts beside the teacher's: how long, how often refused, how often the same.

    length_ratio   = sum of the characters of the answers / sum of the mean characters of the teacher's
    refusal_rate   = share of answers that are refusals
    refusal_drift  = refusal_rate minus the teacher's on the same prompts; above 0 = the model refuses more
    cut_rate       = share of answers that reach the longest length without an end
    answer_agreement = share of the teacher's samples with the same extracted answer

Characters, unlike tokens, are the same for every tokenizer. All are ratios of sums over prompts, so they are compared
with the champion's as every other metric is.
"""

from collections.abc import Iterator, Sequence

from proxykd.artifacts import batched
from proxykd.config.evaluation import DriftSpec
from proxykd.data.answers import find_answer
from proxykd.data.refusals import is_refusal
from proxykd.evaluation.generation import Generation, Respondent
from proxykd.evaluation.task_answers import ASKED_AT_ONCE, TaskAnswer, TaskPrompt, agreement

FREE_ANSWERS = "free-answers"
"""Name of the answers in ``predictions.parquet``."""


def run_drift(spec: DriftSpec, respondent: Respondent, prompts: Sequence[TaskPrompt]) -> Iterator[TaskAnswer]:
    """Answer the first ``spec.num_prompts`` prompts greedily and compare the answers with the teacher's.

    Args:
        spec: How many, how long.
        respondent: The model.
        prompts: Held-out prompts, those that the teacher refused among them.
    """
    how = Generation(spec.max_new_tokens)
    for chunk in batched(prompts[: spec.num_prompts], ASKED_AT_ONCE):
        token_ids = [respondent.encode_messages(prompt.messages) for prompt in chunk]
        completions = respondent.generate(token_ids, how, description="answering freely")
        for prompt, completion in zip(chunk, completions, strict=True):
            text = respondent.decode(completion)
            answer = None if spec.answer_pattern is None else find_answer(spec.answer_pattern, text)
            yield TaskAnswer(
                task=FREE_ANSWERS,
                prompt_id=prompt.prompt_id,
                text=text,
                answer=answer,
                is_correct=None,
                sums=_sums(spec, prompt, text, answer, is_cut=not respondent.ended(completion)),
                slices=prompt.slices,
                question=prompt.question,
            )


def _sums(
    spec: DriftSpec, prompt: TaskPrompt, text: str, answer: str | None, *, is_cut: bool
) -> dict[str, tuple[float, float]]:
    refused = float(is_refusal(text))
    sums = {"refusal_rate": (refused, 1.0), "cut_rate": (float(is_cut), 1.0)}
    if prompt.teacher_texts:
        sums["length_ratio"] = (float(len(text)), sum(map(len, prompt.teacher_texts)) / len(prompt.teacher_texts))
        sums["refusal_drift"] = (refused - prompt.teacher_refusals, 1.0)
    if spec.answer_pattern is not None:
        teacher_answers = [find_answer(spec.answer_pattern, one) for one in prompt.teacher_texts]
        if (found := agreement(answer, teacher_answers)) is not None:
            sums[f"answer_agreement/{FREE_ANSWERS}"] = found
    return sums
