"""The doctor refuses a run on a shipped placement whose asking step lacks the key or the way outside."""

import pytest

from cluster import doctor
from cluster.findings import Finding
from cluster.needs import needs_of
from proxykd.config.addresses import Way
from proxykd.config.asking import Asking
from tests.cluster.conftest import CHECKOUT
from tests.cluster.test_doctor import stack


def asked(*steps: str, placement: str = "gpu") -> list[tuple[str, str]]:
    """What is told of steps that ask with OPENAI_API_KEY on a shipped placement."""
    path = CHECKOUT / "k8s" / "placements" / f"{placement}.yaml"
    needs = needs_of(stack(placement=str(path), secrets={"proxykd-teacher": ["OPENAI_API_KEY"]}))
    askings = [Asking(step, "OPENAI_API_KEY", "api.openai.com:443", "internet") for step in steps]
    return [(one.what, one.remedy) for one in doctor.check_askings(needs, askings) if one.state == "missing"]


@pytest.mark.parametrize("placement", ["cpu", "gpu", "pools"])
def test_a_judge_needs_the_key_and_the_way_outside_in_the_step_that_asks_it(placement: str) -> None:
    assert not asked("query_teacher", placement=placement)
    assert asked("query_teacher", "evaluate_student", placement=placement) == [
        ("variable OPENAI_API_KEY of evaluate_student",
         "add `secrets: [proxykd-teacher]` to `steps.evaluate_student` of the placement"),
        ("way of evaluate_student to api.openai.com:443",
         "add `role: teacher-query` to `steps.evaluate_student` of the placement"),
    ]  # fmt: skip


def test_a_variable_that_no_secret_of_the_stack_holds_is_named() -> None:
    needs = needs_of(stack(placement=str(CHECKOUT / "k8s" / "placements" / "cpu.yaml")))
    (finding,) = doctor.check_askings(
        needs, [Asking("query_teacher", "GEMINI_API_KEY", "api.example.com:443", "internet")]
    )
    assert (finding.state, finding.found) == ("missing", "no secret of the stack holds it")


def way(address: str, way: Way, step: str = "query_teacher") -> list[Finding]:
    """What is told of one step that asks without a key on a shipped placement."""
    needs = needs_of(stack(placement=str(CHECKOUT / "k8s" / "placements" / "gpu.yaml")))
    return list(doctor.check_askings(needs, [Asking(step, None, address, way)]))


@pytest.mark.parametrize("step", ["query_teacher", "evaluate_student"])
def test_no_pod_finds_an_api_on_its_own_loopback(step: str) -> None:
    (finding,) = way("127.0.0.1:8000", "loopback", step)
    assert (finding.state, finding.what) == ("missing", f"way of {step} to 127.0.0.1:8000")
    assert "address of loopback" in finding.found
    assert "base_url" in finding.remedy


@pytest.mark.parametrize(("step", "role"), [("query_teacher", "teacher-query"), ("evaluate_student", "step")])
def test_whether_pods_reach_what_no_shipped_policy_opens_is_said_to_be_unchecked(step: str, role: str) -> None:
    (finding,) = way("api.example.com:8443", "elsewhere", step)
    assert (finding.state, finding.what) == ("unchecked", f"way of {step} to api.example.com:8443")
    assert "port 443 alone" in finding.found
    assert f"NetworkPolicy of your own that lets pods with the label `proxykd.dev/role: {role}`" in finding.remedy
    assert not way("api.example.com:443", "internet")
