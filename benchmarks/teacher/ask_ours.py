"""This project: the stage that asks the teacher, from a prompts artifact to a completions artifact, as a run has it.

The journal, the caps of the budget and the rate limits are on.
"""

from asker import Task, asking, parse_task

from proxykd.artifacts import PromptSet, seal
from proxykd.config.specification import RunSpec
from proxykd.records import Message, Outcome, Prompt
from proxykd.teacher.query import query_teacher

BUDGET = {"usd": 1e6, "tokens": 10**12, "requests": 10**9}
LIMITS = {"requests_per_minute": 1e7, "tokens_per_minute": 1e10}


def specification(task: Task) -> RunSpec:
    """A run that asks the stub."""
    teacher = {
        "kind": "openai",
        "base_url": task.base_url,
        "model": "stub",
        "concurrency": task.concurrency,
        "max_attempts": 10,
        "retry_wait_s": 0.01,  # the floor tries again at once
        "price": {"input_usd_per_million": 0.15, "output_usd_per_million": 0.60},
        "budget": BUDGET,
        "limits": LIMITS,
    }
    unused = {
        "proxy": {"model": {"source": "embedded:proxy"}},
        "student": {"model": {"source": "embedded:student"}},
        "registry": {"model_name": "unused"},
    }
    return RunSpec.model_validate(
        {"name": "benchmark", "prompts": {"kind": "jsonl", "path": "-"}, "teacher": teacher, **unused}
    )


def write_prompts(task: Task) -> PromptSet:
    """The questions as an artifact; one that a killed run left is written again, the same."""
    prompts = PromptSet(task.folder / "prompts")
    prompts.write(Prompt.build([Message("user", question)]) for question in task.questions())
    seal(prompts)
    return prompts


def ask_all(task: Task, prompts: PromptSet) -> int:
    """Ask what the journal lacks; returns the number of rows with an answer."""
    completions = query_teacher(
        prompts,
        specification(task),
        journal_path=task.folder / "journal.sqlite",
        output=task.folder / "completions",
    )
    return sum(batch["outcome"].to_pylist().count(Outcome.OK) for batch in completions.batches(columns=["outcome"]))


if __name__ == "__main__":
    given = parse_task()
    questions = write_prompts(given)
    with asking(
        given,
        packages=["proxykd", "aiohttp"],
        settings="journal, three caps and two rate limits on; tries again after 10 ms at most, then 20, and so on",
    ) as result:
        result["delivered"] = ask_all(given, questions)
