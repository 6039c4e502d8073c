"""Settings that need student and teacher in one process bind the distilled arm alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.exceptions import ConfigError
from proxykd.launching.work import Work
from proxykd.student.training import Arm, distill_student

ALONE = [("cross_tokenizer", {}), ("living_teacher", {"kind": "gkd"})]


class LaunchedError(Exception):
    """The work reached the launcher."""


class Elsewhere:
    """A launcher of other processes, which takes the work and says so."""

    def launch(self, work: Work[Any]) -> Any:
        raise LaunchedError(work.job["targets"])


@pytest.mark.parametrize(("setting", "value"), ALONE)
def test_the_baseline_is_launched_elsewhere_and_the_distilled_student_is_not(
    corpus: tuple[ValidatedSet, SplitSet],
    student_run: Callable[..., RunSpec],
    tmp_path: Path,
    setting: str,
    value: dict[str, Any],
) -> None:
    run = student_run(**{setting: value})

    def train(arm: Arm) -> None:
        scratch = tmp_path / "scratch"
        distill_student(*corpus, None, run, arm=arm, output=tmp_path / arm, scratch=scratch, launcher=Elsewhere())

    with pytest.raises(ConfigError, match=rf"student\.{setting} needs student and teacher in one process"):
        train("proxy_kd")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(LaunchedError, match="None"):
        train("sft")
