"""A pod's exit status tells its Job whether another try is due, and whether it counts."""

import pytest
import torch.distributed as dist

from proxykd.launching.node import exit_status
from proxykd.launching.worker import LOST, TOLD, is_lost_peer

KILLED, ABORTED, STOPPED = -9, -6, -15


@pytest.mark.parametrize(
    ("of_processes", "nodes", "expected"),
    [
        ([TOLD, STOPPED], 1, TOLD),
        ([TOLD, LOST], 2, TOLD),
        ([LOST, STOPPED], 2, LOST),
        ([STOPPED], 1, LOST),
        ([ABORTED, LOST], 2, LOST),
        ([ABORTED], 1, 1),
        ([KILLED, LOST], 2, 1),
        ([1, STOPPED], 1, 1),
    ],
)
def test_work_that_is_wrong_and_work_that_was_cut_short_end_differently(
    of_processes: list[int], nodes: int, expected: int
) -> None:
    assert exit_status(of_processes, {"PET_NNODES": str(nodes)}) == expected


def test_a_lost_process_is_not_an_error_of_ones_own() -> None:
    assert is_lost_peer(dist.DistNetworkError("broken"))
    assert is_lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer"))
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
