"""Which runs a request can stop; tests/pipelines stop those of clusters."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cluster.runs import Run
from cluster.stopping import stop
from proxykd.exceptions import InputError

HERE = Run("id", "tiny-1", "running", False, "default", "local", "id", datetime(2026, 1, 1, tzinfo=UTC), None, "")


def test_a_run_of_this_machine_is_left_to_whoever_started_it() -> None:
    with pytest.raises(InputError, match=r"tiny-1 is one of .*Ctrl-C where it was started; .*proxykd gc --yes"):
        stop(HERE, "wanted")


def test_a_run_whose_stack_is_gone_is_closed_and_what_it_left_removed_otherwise() -> None:
    with pytest.raises(InputError, match=r"proxykd runs tiny-1 --close.*proxykd gc --stack STACK --yes"):
        stop(replace(HERE, stack="", orchestrator=""), "wanted")


@pytest.mark.parametrize("orchestrator", ["local", "proxykd-kubernetes", "proxykd-kubeflow"])
def test_a_run_that_has_ended_is_left_alone(orchestrator: str) -> None:
    assert not stop(replace(HERE, orchestrator=orchestrator, is_finished=True), "wanted")
