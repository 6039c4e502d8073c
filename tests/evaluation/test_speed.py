"""Speed and size, measured in a process of its own."""

import json
from pathlib import Path

import pytest

from proxykd.config.evaluation import SpeedSpec
from proxykd.evaluation.speed import measure_speed, size_gb
from proxykd.exceptions import ModelError

pytestmark = pytest.mark.integration


def test_model_is_measured(arms: dict[str, list[Path]]) -> None:
    folder = arms["sft"][0]
    found = measure_speed(
        folder, SpeedSpec(num_prompts=8, prompt_tokens=8, new_tokens=8, repeats=1), precision="float32"
    )
    assert found["size_gb"] == pytest.approx(sum(file.stat().st_size for file in folder.iterdir()) / 1e9)
    assert found["size_gb"] == size_gb(folder)
    # float32 weights fill most of the folder, and torch alone takes more than the tiny model.
    assert found["num_parameters"] * 4e-9 == pytest.approx(found["size_gb"], rel=0.3)
    assert found["memory_gb"] > found["size_gb"]
    assert found["tokens_per_s"] > found["tokens_per_s_single"] > 0
    json.dumps(found)


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"evaluation.speed=null"):
        measure_speed(tmp_path, SpeedSpec(), precision="float32")
