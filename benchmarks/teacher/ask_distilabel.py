"""distilabel, with its OpenAI client, in batches of a given size."""

import os

from asker import Task, asking, parse_task


def ask_all(task: Task) -> int:
    """Ask, with its cache in the task's folder; returns the number of rows with an answer."""
    from distilabel.models.llms import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="benchmark", cache_dir=task.folder / "cache") as pipeline:
        load = LoadDataFromDicts(
            data=[{"instruction": question} for question in task.questions()], batch_size=task.batch_size
        )
        generate = TextGeneration(
            llm=OpenAILLM(
                model="stub",
                base_url=task.base_url,
                api_key="none",
                max_retries=10,
                generation_kwargs={"max_new_tokens": 512},
            ),
            input_batch_size=task.batch_size,
        )
        load >> generate
    answers = pipeline.run(use_cache=True)
    return sum(bool(text) for text in answers["default"]["train"]["generation"])


if __name__ == "__main__":
    given = parse_task()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import distilabel.pipeline  # noqa: F401 - before the clock starts

    with asking(
        given, packages=["distilabel", "openai"], settings=f"batches of {given.batch_size}, 10 tries a call"
    ) as result:
        result["delivered"] = ask_all(given)
