"""A model in several processes answers as one process does, however unevenly they ask it."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.models.sharded_passes import KINDS, answers, build, train, weights

pytestmark = pytest.mark.integration
LIMIT_S = 120


@pytest.fixture(
    scope="module", params=[pytest.param((3, 1), marks=pytest.mark.long), (4, 2)], ids=["one machine", "two machines"]
)
def told(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, int, int]:
    num_processes, num_machines = request.param
    folder = tmp_path_factory.mktemp("told")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    script = ["-m", "tests.models.sharded_passes", str(folder), str(num_machines)]
    subprocess.run([*command, *script], check=True, timeout=LIMIT_S)
    return folder, num_processes, num_machines


@pytest.mark.parametrize("kind", KINDS)
def test_one_asks_and_the_others_take_part(told: tuple[Path, int, int], kind: str, tmp_path: Path) -> None:
    folder, num_processes, num_machines = told
    expected = answers(build(kind), kind)
    processes = [json.loads((folder / f"{kind}-{rank}.json").read_text()) for rank in range(num_processes)]
    first, *others = processes
    for found in (first, first["again"]):
        assert found["sampled"] == expected["sampled"]
        for ours, alone in zip(found["scores"], expected["scores"], strict=True):
            assert ours == pytest.approx(alone, abs=1e-5)
    assert all(one["scores"] == one["sampled"] == [] and one["trained"] is None for one in others)
    untrained, alone = build(kind), build(kind)
    train(alone, kind, tmp_path / "scratch")
    assert first["trained"] == pytest.approx(weights(alone), abs=1e-3)
    assert first["trained"] != pytest.approx(weights(untrained), abs=5e-3)
    shares = [one["share"] for one in processes]
    assert sum(shares) == pytest.approx(num_machines)
    assert max(shares) < 1.5 * num_machines / num_processes


def test_a_machines_processes_load_one_after_another(told: tuple[Path, int, int]) -> None:
    folder, num_processes, num_machines = told
    turns = [json.loads((folder / f"plain-{rank}.json").read_text())["turns"] for rank in range(num_processes)]
    num_own = num_processes // num_machines
    for machine in range(num_machines):
        own = turns[machine * num_own : (machine + 1) * num_own]
        assert all(before[1] <= after[0] for before, after in pairwise(own))
