"""Reasons of failed Jobs out of the orchestrator's log."""

from cluster.ends import parse


def test_the_last_reason_of_each_step_is_found_among_other_lines_and_colours() -> None:
    red, blue, plain = "\x1b[31m", "\x1b[38;5;105m", "\x1b[0m"
    memory = "limit (container failure reason: OOMKilled, exit_code=137)"
    log = (
        "2026-01-01T00:00:00Z Orchestrator pod started.\n"
        f"2026-01-01T00:00:01Z {red}Job for step {plain}{blue}split{red} failed: Unknown{plain}\n"
        "Job for step `split` failed: Detected container in state `ErrImagePull` (pod `a`: reason)\n"
        f"{red}Job for step {plain}{blue}query_teacher{red} failed: {memory}{plain}\n"
        "Node `split` failed.\n"
    )

    assert parse(log) == {
        "split": "Detected container in state `ErrImagePull` (pod `a`: reason)",
        "query_teacher": memory,
    }
