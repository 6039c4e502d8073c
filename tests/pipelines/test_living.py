"""A living teacher through the pipeline: who learns again when the targets or the proxy change."""

from pathlib import Path

import pytest

from tests.support.program import Home

pytestmark = pytest.mark.integration

LIVING = ("--set", "student.living_teacher={kind: gkd, max_new_tokens: 8}")
ALWAYS = {"check_drift", "promote_model"}


def redone(home: Home, *arguments: str) -> set[str]:
    finished = home.run(*LIVING, *arguments)
    assert finished.status == 0, finished.stderr
    return {step for step, status in home.statuses().items() if status == "completed"} - ALWAYS


def test_the_distilled_arm_depends_on_the_proxy_and_the_baseline_on_neither(tmp_path: Path) -> None:
    home = Home.create(tmp_path)
    assert {"distill_student_sft", "distill_student_proxy_kd"} <= redone(home)
    fewer = ("--set", "targets.reduction={kind: top_k, k: 5}")
    assert redone(home, *fewer) == {"estimate_distributions", "evaluate_student"}
    other_proxy = ("--set", "proxy.warmup.epochs=0.5")
    assert redone(home, *other_proxy) == {
        "align_proxy",
        "estimate_distributions",
        "distill_student_proxy_kd",
        "evaluate_student",
    }
