"""The doctor refuses a run on a shipped placement whose asking step lacks the key or the way outside."""

import pytest

from cluster import doctor
from cluster.needs import needs_of
from proxykd.config.asking import Asking
from tests.cluster.conftest import CHECKOUT
from tests.cluster.test_doctor import stack


def asked(*steps: str, placement: str = "gpu") -> list[tuple[str, str]]:
    """What is told of steps that ask with OPENAI_API_KEY on a shipped placement."""
    path = CHECKOUT / "k8s" / "placements" / f"{placement}.yaml"
    needs = needs_of(stack(placement=str(path), secrets={"proxykd-teacher": ["OPENAI_API_KEY"]}))
    askings = [Asking(step, "OPENAI_API_KEY", True) for step in steps]
    return [(one.what, one.remedy) for one in doctor.check_askings(needs, askings) if one.state == "missing"]


@pytest.mark.parametrize("placement", ["cpu", "gpu", "large", "pools"])
def test_a_judge_needs_the_key_and_the_way_outside_in_the_step_that_asks_it(placement: str) -> None:
    assert not asked("query_teacher", placement=placement)
    assert asked("query_teacher", "evaluate_student", placement=placement) == [
        ("variable OPENAI_API_KEY of evaluate_student",
         "add `secrets: [proxykd-teacher]` to `steps.evaluate_student` of the placement"),
        ("way outside of evaluate_student", "add `role: teacher-query` to `steps.evaluate_student` of the placement"),
    ]  # fmt: skip


def test_a_variable_that_no_secret_of_the_stack_holds_is_named() -> None:
    needs = needs_of(stack(placement=str(CHECKOUT / "k8s" / "placements" / "cpu.yaml")))
    (finding,) = doctor.check_askings(needs, [Asking("query_teacher", "GEMINI_API_KEY", True)])
    assert (finding.state, finding.found) == ("missing", "no secret of the stack holds it")
