"""A pod's exit status tells its Job whether another try is due, and whether it counts."""

import os
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from cluster import training_pods
from proxykd.launching.node import exit_status
from proxykd.launching.stepped import STEPPED_VARIABLE, note_step
from proxykd.launching.worker import LOST, TOLD, is_lost_peer

KILLED, ABORTED, STOPPED = -9, -6, -15


@pytest.mark.parametrize(
    ("of_processes", "nodes", "steps", "expected"),
    [
        ([TOLD, STOPPED], 1, 0, TOLD),
        ([TOLD, LOST], 2, 1, TOLD),
        ([LOST, STOPPED], 2, 1, LOST),
        ([LOST, STOPPED], 2, 0, 1),  # which the next try may well meet again
        ([LOST], 1, 1, 1),  # there is no other node
        ([STOPPED], 1, 0, LOST),
        ([ABORTED, LOST], 2, 1, LOST),
        ([ABORTED], 2, 0, 1),
        ([ABORTED], 1, 1, 1),
        ([KILLED, LOST], 2, 1, 1),
        ([1, STOPPED], 1, 1, 1),
    ],
)
def test_work_that_is_wrong_and_work_that_was_cut_short_end_differently(
    of_processes: list[int], nodes: int, steps: int, expected: int, tmp_path: Path
) -> None:
    environ = {"PET_NNODES": str(nodes), STEPPED_VARIABLE: str(tmp_path / "stepped")}
    with mock.patch.dict(os.environ, environ):
        for _ in range(steps):
            note_step()
    assert exit_status(of_processes, environ) == expected


def test_a_step_is_noted_where_nobody_asks_and_as_often_as_one_likes(tmp_path: Path) -> None:
    note_step()
    with mock.patch.dict(os.environ, {STEPPED_VARIABLE: str(tmp_path / "stepped")}):
        note_step()
        note_step()
    assert (tmp_path / "stepped").exists()


def test_the_cluster_knows_the_status_of_a_lost_node() -> None:
    assert training_pods.LOST == LOST


def test_a_lost_process_is_not_an_error_of_ones_own() -> None:
    assert is_lost_peer(dist.DistNetworkError("broken"))
    assert is_lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer"))
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
