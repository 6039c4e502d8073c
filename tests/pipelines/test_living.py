"""Runs that estimate nothing: a living teacher, and who learns again when the proxy changes; hard labels."""

import pytest

from tests.support.program import Home

pytestmark = pytest.mark.long

LIVING = ("--set", "student.living_teacher={kind: gkd, max_new_tokens: 8}")
ALWAYS = {"check_drift", "promote_model"}


def redone(home: Home, *arguments: str) -> set[str]:
    finished = home.run(*LIVING, *arguments)
    assert finished.status == 0, finished.stderr
    return {step for step, status in home.statuses().items() if status == "completed"} - ALWAYS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.create(tmp_path_factory.mktemp("living"))


def test_the_distilled_arm_depends_on_the_proxy_and_the_baseline_on_neither(home: Home) -> None:
    assert {"distill_student_sft", "distill_student_proxy_kd"} <= redone(home)
    assert "estimate_distributions" not in home.statuses()
    other_proxy = ("--set", "proxy.warmup.epochs=0.5")
    assert redone(home, *other_proxy) == {"align_proxy", "distill_student_proxy_kd", "evaluate_student"}


def test_hard_labels_need_no_estimate(home: Home) -> None:
    finished = home.run("--set", "ablations=[no_proxy]")
    assert finished.status == 0, finished.stderr
    assert "estimate_distributions" not in home.statuses()
    assert "targets" not in finished.report["facts"]
    assert "kl" not in finished.report["facts"]["curves"]["proxy_kd/seed-0"][0]
