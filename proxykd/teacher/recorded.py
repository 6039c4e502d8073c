"""The recorded teacher: texts that the user already has, in the same rows as the prompts. Makes no calls."""

from collections.abc import Iterator

from proxykd.artifacts import PromptSet
from proxykd.config.prompts import FilePromptsSpec, where_is
from proxykd.config.teacher import RecordedTeacherSpec
from proxykd.data.prompts import hash_inputs, iter_recorded
from proxykd.exceptions import InputError
from proxykd.records import Completion, hash_json
from proxykd.teacher.replies import Reply, outcome_of


def recorded_completions(
    prompts: PromptSet, spec: FilePromptsSpec, teacher: RecordedTeacherSpec
) -> Iterator[Completion]:
    """One completion a prompt, in the order of ``prompts``; an empty text counts as failed, as it does for an API.

    Args:
        prompts: The prompts that were read from the same data.
        spec: Where that is and how it reads.
        teacher: Which column holds the texts.

    Raises:
        InputError: if the data is no longer what the prompts were read from.
    """
    recorded = iter_recorded(spec, teacher.completion_field)
    for prompt in prompts.rows():
        found, text = next(recorded, (None, ""))
        if found is None or found.prompt_id != prompt.prompt_id:
            raise InputError(
                f"expected the prompts of {where_is(spec)} as they were first read, found another one in place of "
                f"{prompt.source} ({prompt.prompt_id}); the data has changed: start a new run from it"
            )
        yield _completion(prompt.prompt_id, text, teacher.model)
    # The prompts may be the same and the texts others.
    if prompts.manifest["made_from"].get("file") != hash_inputs(spec):
        raise InputError(
            f"expected {where_is(spec)} as it was when its prompts were read, found another content; the data "
            "has changed: start a new run from it"
        )


def _completion(prompt_id: str, text: str, model: str) -> Completion:
    outcome, reason = outcome_of(Reply(text=text))
    return Completion(
        prompt_id=prompt_id,
        sample_idx=0,
        outcome=outcome,
        reason=reason,
        text=text if not reason else "",
        finish_reason="",
        prompt_tokens=0,
        completion_tokens=0,
        cost_usd=0.0,
        model=model,
        request_hash=hash_json({"recorded": model, "prompt_id": prompt_id}),
    )
