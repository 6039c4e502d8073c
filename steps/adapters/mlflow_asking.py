"""One question to a registered student."""

from mlflow.exceptions import MlflowException

from proxykd.data.chat import render_prompt
from proxykd.exceptions import ModelError
from proxykd.models.loading import load_saved
from proxykd.models.sampling import TransformersSampler
from proxykd.records import Message
from steps.adapters.mlflow_registry import CHAMPION, UNKNOWN_NAME, RegisteredVersion, download_version
from steps.adapters.mlflow_tracking import connect, tracking_errors
from steps.adapters.tracking_server import without_userinfo
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
        loaded, tokenizer = load_saved(download_version(_find(model), folder))
        prompt = tokenizer(render_prompt(tokenizer, [Message("user", question)]), add_special_tokens=False)["input_ids"]
        sampler = TransformersSampler(loaded, tokenizer)
        answer = sampler.sample([prompt], max_new_tokens=max_new_tokens, temperature=0.0, seed=0)[0]
    return str(tokenizer.decode(answer, skip_special_tokens=True))


@tracking_errors()
def _find(model: str) -> RegisteredVersion:
    client = connect()
    name, _, alias = model.partition("@")
    name, _, version = name.partition("/")
    try:
        if version:
            found = client.get_model_version(name, version)
        elif alias:
            found = client.get_model_version_by_alias(name, alias)
        else:
            known = client.get_registered_model(name)
            newest = max((int(one.version) for one in client.search_model_versions(f"name = '{name}'")), default=0)
            found = client.get_model_version(name, known.aliases.get(CHAMPION, str(newest)))
    except MlflowException as error:
        if error.error_code not in UNKNOWN_NAME:
            raise
        raise ModelError(
            f"expected a registered model {model!r} in {without_userinfo(client.tracking_uri)}, found none "
            f"({error.error_code}); run a specification first, or give another NAME, NAME@ALIAS "
            "(challenger, champion) or NAME/VERSION"
        ) from error
    return RegisteredVersion(found.name, str(found.version), "", f"models:/{found.name}/{found.version}")
