"""A model in several processes answers as one process does, however unevenly they ask it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.sharded_passes import answers, build

pytestmark = pytest.mark.integration
LIMIT_S = 120


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    subprocess.run([*command, "-m", "tests.models.sharded_passes", str(folder)], check=True, timeout=LIMIT_S)
    return folder


@pytest.mark.parametrize("name", ["plain", "adapters"])
def test_one_asks_and_the_others_take_part(told: Path, name: str) -> None:
    expected = answers(build(has_adapters=name == "adapters"))
    first, *others = (json.loads((told / f"{name}-{rank}.json").read_text()) for rank in range(3))
    for found in (first, first["again"]):
        assert found["sampled"] == expected["sampled"]
        for ours, alone in zip(found["scores"], expected["scores"], strict=True):
            assert ours == pytest.approx(alone, abs=1e-5)
    assert first["is_whole"]
    assert all(one["scores"] == one["sampled"] == [] and not one["is_whole"] for one in others)
    assert sum(one["share"] for one in (first, *others)) == pytest.approx(1.0)
    assert max(one["share"] for one in (first, *others)) < 0.5
