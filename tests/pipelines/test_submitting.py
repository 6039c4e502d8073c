"""What a pod is told of files: paths of the checkout become the image's, and files of this machine are refused.

And how a run is followed while nobody answers.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipelines.running import run_distillation
from pipelines.submitting import AWAY_S, Submitted, cluster_options, follow, relocated, started, until_it_ends
from proxykd.config import RunSpec
from proxykd.config.stack import STACKS, ClusterStackSpec, KubeflowStackSpec, KubernetesStackSpec, load_stack
from proxykd.exceptions import ClusterAuthError, ClusterError, ClusterUnreachableError, ConfigError
from tests.support.program import CHECKOUT


@pytest.fixture
def stack() -> ClusterStackSpec:
    found = load_stack("kubernetes")
    assert isinstance(found, KubernetesStackSpec)
    return found


def reading(make_run: Callable[..., RunSpec], path: Path) -> RunSpec:
    prompts = {"kind": "jsonl", "path": str(path)}
    return make_run(prompts=prompts, teacher={"kind": "recorded"})


def test_a_file_of_the_checkout_is_named_as_in_the_image(make_run: Any, stack: ClusterStackSpec) -> None:
    told = relocated(reading(make_run, CHECKOUT / "README.md"), stack)
    assert told["prompts"]["path"] == "/app/README.md"


def test_a_file_of_this_machine_is_refused_with_what_to_do(
    make_run: Any, stack: ClusterStackSpec, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").touch()
    told = r"which no pod sees; put it on a volume .*/models.* by a path that this machine has, too, as the plan reads"
    with pytest.raises(ConfigError, match=rf"prompts\.path=.* {told}"):
        relocated(reading(make_run, tmp_path / "prompts.jsonl"), stack)


@pytest.mark.parametrize("entry", ["default", "evaluate_student"])
def test_a_file_on_a_volume_of_the_pods_stays(
    make_run: Any, stack: ClusterStackSpec, tmp_path: Path, entry: str
) -> None:
    (tmp_path / "prompts.jsonl").touch()
    placement = yaml.safe_load((STACKS.parent / "placements" / "cpu.yaml").read_text(encoding="utf-8"))
    placement["steps"].setdefault(entry, {})["volumes"] = {"corpus": str(tmp_path)}
    (tmp_path / "placement.yaml").write_text(yaml.safe_dump(placement), encoding="utf-8")
    there = stack.model_copy(update={"placement": tmp_path / "placement.yaml"})
    run = reading(make_run, tmp_path / "prompts.jsonl")
    assert relocated(run, there) == run.model_dump(mode="json")


def test_nothing_waits_inside_zenml(stack: ClusterStackSpec) -> None:
    settings = cluster_options(stack)["settings"]
    assert settings["orchestrator"].synchronous is False
    assert settings["docker"].parent_image == stack.image


def test_a_divided_step_is_done_again_in_all_its_portions(
    make_run: Any, stack: ClusterStackSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, by a schedule too, and on this machine."""
    asked: list[dict[str, Any]] = []

    def with_options(**options: Any) -> Callable[..., Any]:
        asked.append(options)
        return lambda **_: SimpleNamespace(id="")

    monkeypatch.setattr("pipelines.running.distill", SimpleNamespace(with_options=with_options))
    monkeypatch.setattr("pipelines.running._execution_mode", lambda: None)
    monkeypatch.setattr("pipelines.running.leave_out_libraries", lambda: None)
    monkeypatch.setattr("pipelines.running.collect", lambda *_: None)
    monkeypatch.setattr("pipelines.running.arguments", lambda *_, **__: {})
    monkeypatch.setattr("pipelines.submitting.arguments", lambda *_, **__: {})
    run = make_run(prompts={"kind": "embedded", "count": 100}, teacher={"kind": "embedded"})
    shards = {"query_teacher": 2, "estimate_distributions": 2}
    wish: dict[str, Any] = {"inputs": "", "models": {}, "anew": ["estimate_distributions"], "shards": shards}
    started(run, stack, **wish)
    run_distillation(run, **wish)

    portions = [f"estimate_distributions_{number}-of-2" for number in (1, 2)]
    for options in asked:
        steps = options["step_configurations"]
        again = {name for name, own in steps.items() if own.get("enable_cache") is False}
        assert again == {"estimate_distributions", *portions}
    assert len(asked) == 2
    assert "settings" in asked[0]["step_configurations"][portions[0]], "it still has its place"


def test_kubeflow_is_told_each_steps_pod() -> None:
    found = load_stack("kubeflow")
    assert isinstance(found, KubeflowStackSpec)
    options = cluster_options(found)
    assert options["settings"]["orchestrator"].synchronous is False
    task = options["step_configurations"]["distill_student_sft"]["settings"]["orchestrator"]["task"]
    assert (task["gpus"], task["node_selectors"]) == (8, {"proxykd.dev/pool": "h100"})


@pytest.mark.parametrize(
    ("state", "reason", "failed", "told"),
    [
        ("stopped", "stopped by somebody", ["split: it left no message"], "stopped by somebody"),
        ("stopped", "", ["split: it left no message"], "split: it left no message"),
        ("failed", "a step failed", ["split: full", "align_proxy: full"], "split: full; align_proxy: full"),
        ("failed", "nobody carries it on", [], "nobody carries it on"),
        ("failed", "", [], "no step says why"),
    ],
)  # fmt: skip
def test_a_run_that_was_stopped_says_by_whom_and_any_other_why_its_steps_failed(
    stack: ClusterStackSpec, monkeypatch: pytest.MonkeyPatch, state: str, reason: str, failed: list[str], told: str
) -> None:
    run = Submitted("1", "tiny-1")
    ended = SimpleNamespace(
        state_of=lambda _: (state, True), steps_of=lambda _: {}, failures=lambda *_: failed,
        named=lambda _: SimpleNamespace(reason=reason),
    )  # fmt: skip
    monkeypatch.setattr("pipelines.submitting.runs", ended)
    with pytest.raises(ClusterError, match=re.escape(f"tiny-1 ended as {state}: {told}; `proxykd runs")):
        follow(run, stack, None, tell=lambda _: None)


class Following:
    """Looks at a run on a clock that looking and sleeping move; ``away`` = an error for a stretch of time."""

    def __init__(self, away: Exception, since_s: float, until_s: float, look_s: float, end_s: float) -> None:
        self.away, self.stretch, self.look_s, self.end_s, self.now = away, (since_s, until_s), look_s, end_s, 0.0

    def look(self) -> bool:
        if self.stretch[0] <= self.now < self.stretch[1]:
            self.now += self.look_s
            raise self.away
        return self.now >= self.end_s

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def follow(self) -> None:
        until_it_ends(self.look, "tiny-1", clock=lambda: self.now, sleep=self.sleep)


AWAY = [
    (ConnectionError("refused"), 0.0, "ZenML's server"),
    (RuntimeError("502"), 30.0, "ZenML's server"),
    (ClusterUnreachableError("no answer"), 120.0, "the API server"),  # what a call with all its tries takes
]


@pytest.mark.parametrize(("error", "look_s", "who"), AWAY)
def test_a_server_that_comes_back_is_waited_for(error: Exception, look_s: float, who: str) -> None:
    following = Following(error, 20.0, 80.0, look_s, 1000.0)
    following.follow()
    assert 1000.0 <= following.now < 1010.0


@pytest.mark.parametrize(("error", "look_s", "who"), AWAY)
def test_a_server_that_stays_away_ends_the_watching_and_not_the_run(error: Exception, look_s: float, who: str) -> None:
    following = Following(error, 20.0, 1e9, look_s, 1000.0)
    with pytest.raises(ClusterError, match=rf"{who} has not answered for 300 s.*tiny-1 goes on.*proxykd runs tiny-1"):
        following.follow()
    assert AWAY_S <= following.now - 20.0 <= AWAY_S + look_s + 10.0


def test_a_token_that_is_refused_ends_the_watching_at_once() -> None:
    following = Following(ClusterAuthError("log in again"), 20.0, 1e9, 0.0, 1000.0)
    with pytest.raises(ClusterAuthError, match="log in again"):
        following.follow()
    assert following.now == 20.0
