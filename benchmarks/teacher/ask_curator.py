"""Bespoke Curator, through its own OpenAI client, with the settings that suit it best."""

import os
from importlib.util import find_spec
from pathlib import Path

from asker import Task, asking, parse_task

HIGH = 1_000_000_000


def prepare_offline() -> None:
    """No telemetry, and the tokenizer from the copy that litellm brings along instead of a download."""
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")
    os.environ.update({"TELEMETRY_ENABLED": "false", "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"})


def ask_all(task: Task) -> int:
    """Ask, with its cache in the task's folder; returns the number of rows with an answer."""
    from bespokelabs import curator

    llm = curator.LLM(
        model_name="stub",
        backend="openai",
        backend_params={
            "base_url": task.base_url,
            "max_concurrent_requests": task.concurrency,
            "max_requests_per_minute": HIGH,
            "max_tokens_per_minute": HIGH,
            "max_retries": 10,
            "seconds_to_pause_on_rate_limit": 1,
        },
    )
    answers = llm(list(task.questions()), working_dir=str(task.folder / "cache"))
    return sum(bool(text) for text in answers.dataset["response"])


if __name__ == "__main__":
    given = parse_task()
    prepare_offline()
    import bespokelabs.curator  # noqa: F401 - before the clock starts

    with asking(
        given,
        packages=["bespokelabs-curator", "litellm", "aiohttp"],
        settings="limits of requests and tokens a minute at 1e9, pause after a 429 at its least (1 s)",
    ) as result:
        result["delivered"] = ask_all(given)
