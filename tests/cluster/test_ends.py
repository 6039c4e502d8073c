"""Reasons of failed Jobs out of the orchestrator's log."""

from cluster.ends import parse


def test_the_last_reason_of_each_step_is_found_among_other_lines_and_colours() -> None:
    log = (
        "2026-01-01T00:00:00Z Orchestrator pod started.\n"
        "2026-01-01T00:00:01Z \x1b[31mJob for step \x1b[0m\x1b[38;5;105msplit\x1b[31m failed: Unknown\x1b[0m\n"
        "Job for step `split` failed: Detected container in state `ErrImagePull` (pod `a`: reason)\n"
        "\x1b[31mJob for step \x1b[0m\x1b[38;5;105mquery_teacher\x1b[31m failed: limit (container failure reason: OOMKilled, exit_code=137)\n"
        "Node `split` failed.\n"
    )

    assert parse(log) == {
        "split": "Detected container in state `ErrImagePull` (pod `a`: reason)",
        "query_teacher": "limit (container failure reason: OOMKilled, exit_code=137)",
    }
