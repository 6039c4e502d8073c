"""One question to a registered student."""

from proxykd.data.chat import render_prompt
from proxykd.models.loading import load_saved
from proxykd.models.sampling import TransformersSampler
from proxykd.records import Message
from steps.adapters.mlflow_registry import download_version, find_version
from steps.settings import scratch_folder


def ask(model: str, question: str, *, max_new_tokens: int) -> str:
    """The greedy answer of a registered student.

    Args:
        model: ``NAME`` (its champion, else its newest version), ``NAME@ALIAS`` or ``NAME/VERSION``.
        question: The user's message.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        ModelError: if there is no such model, alias or version.
        TrackingError: if MLflow does not answer.
    """
    with scratch_folder() as folder:
        loaded, tokenizer = load_saved(download_version(find_version(model), folder))
        prompt = tokenizer(render_prompt(tokenizer, [Message("user", question)]), add_special_tokens=False)["input_ids"]
        sampler = TransformersSampler(loaded, tokenizer)
        answer = sampler.sample([prompt], max_new_tokens=max_new_tokens, temperature=0.0, seed=0)[0]
    return str(tokenizer.decode(answer, skip_special_tokens=True))
