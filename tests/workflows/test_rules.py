"""Workflows: pinned, least rights, nothing of a user's in shell, no secret for outsiders; each rule finds its fault."""

import re
from pathlib import Path

import pytest
import yaml

from tests.k8s.network import Pod, reaches
from tests.support.program import CHECKOUT
from tests.workflows.rules import RULES, faults, load

WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
SOUND = (CHECKOUT / ".github" / "workflows" / "distill.yml").read_text(encoding="utf-8")
PAGE = (CHECKOUT / "docs" / "ci.md").read_text(encoding="utf-8")
SHA = "08c6903cd8c0fde910a37f88322edcfb5dd907a8"
MUTANTS = {
    "actions_are_pinned": [(f"@{SHA} # v5.0.0", "@v5"), (f"{SHA} # v5.0.0", SHA), (SHA, SHA[:39])],
    "rights_are_least": [
        ("permissions:\n  contents: read\n", ""),
        ("permissions:\n  contents: read", "permissions: write-all"),
        ("permissions:\n  contents: read", "permissions:\n  contents: write"),
        ("    environment: cluster\n", "    environment: cluster\n    permissions:\n      id-token: write\n"),
        ("    environment: cluster\n", "    environment: cluster\n    permissions: write-all\n"),
    ],
    "no_credentials_stay": [
        ("persist-credentials: false", "persist-credentials: true"),
        ("          persist-credentials: false\n", "          fetch-depth: 1\n"),
    ],
    "nothing_is_written_into_shell": [
        ('-- "$SPECIFICATION" >>', "-- ${{ inputs.specification }} >>"),
        ("run: make install", "run: make ${{ github.event.inputs.stack }}"),
        ('--stack "$STACK"', "--stack $STACK"),
    ],
    "secrets_stay_inside": [
        ("on:\n  workflow_dispatch:", "on:\n  pull_request:\n  workflow_dispatch:"),
        ("on:\n  workflow_dispatch:", "on:\n  pull_request_target:\n  workflow_dispatch:"),
    ],
    "shell_is_ours": [
        ("run: make install", "run: curl -sSf https://example.invalid/install.sh"),
        ("run: make install", "run: make install && make test"),
        ("run: make install", "run: make $(cat target)"),
    ],
    "nothing_under_way_is_cancelled": [("cancel-in-progress: false", "cancel-in-progress: true")],
    "jobs_end": [("    timeout-minutes: 350\n", ""), ("timeout-minutes: 350", "timeout-minutes: 3500")],
}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflow_keeps_to_the_rules(file: Path) -> None:
    assert not faults(file.read_text(encoding="utf-8"))


def test_the_workflows_are_there() -> None:
    assert {file.stem for file in WORKFLOWS} == {"ci", "distill", "long", "promote", "release", "retrain", "rollback"}


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [(rule, old, new) for rule, pairs in MUTANTS.items() for old, new in pairs],
)
def test_the_rule_finds_its_fault(rule: str, old: str, new: str) -> None:
    assert old in SOUND
    mutant = SOUND.replace(old, new)
    found = {one.__name__ for one in RULES if list(one(mutant, load(mutant)))}
    assert rule in found


def test_every_rule_has_a_mutant() -> None:
    assert set(MUTANTS) == {rule.__name__ for rule in RULES}


def test_champions_change_only_behind_a_reviewed_environment() -> None:
    for name in ("promote", "rollback"):
        (job,) = load((CHECKOUT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))["jobs"].values()
        assert job["environment"] == "production"


def test_a_dispatch_is_dry_unless_it_is_told_otherwise() -> None:
    workflow = load(SOUND)
    assert workflow["on"]["workflow_dispatch"]["inputs"] == workflow["on"]["workflow_call"]["inputs"]
    assert workflow["on"]["workflow_dispatch"]["inputs"]["dry_run"]["default"] is True
    steps = [step for step in workflow["jobs"]["distill"]["steps"] if "proxykd" in step.get("run", "")]
    words = [step["run"].split()[1] for step in steps]
    assert words == ["plan", "stack", "run", "report"]  # the plan is there whatever is missing
    assert [step.get("if") for step in steps] == [None, *["${{ !inputs.dry_run }}"] * 3]


def test_a_job_may_log_in_to_the_bucket_by_its_identity() -> None:
    granted = "    environment: cluster\n    permissions: {contents: read, id-token: write}\n"
    step = f"      - uses: aws-actions/configure-aws-credentials@{SHA} # v5.0.0\n      - run: make install\n"
    own = SOUND.replace("    environment: cluster\n", granted).replace("      - run: make install\n", step)
    assert own.count("id-token") == own.count("configure-aws") == 1
    assert not faults(own)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_every_secret_and_variable_is_on_the_page_and_reaches_the_workflow_that_is_called(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    used = set(re.findall(r"\b(?:secrets|vars)\.(\w+)", text)) - {"GITHUB_TOKEN"}
    assert {name for name in used if f"`{name}`" not in PAGE} == set()
    workflow = load(text)
    if called := dict(workflow["on"]).get("workflow_call") if isinstance(workflow["on"], dict) else None:
        assert set(re.findall(r"\bsecrets\.(\w+)", text)) == set(called["secrets"])
    for job in workflow["jobs"].values():
        if "uses" in job:
            other = load((CHECKOUT / job["uses"]).read_text(encoding="utf-8"))
            assert set(job["secrets"]) == set(other["on"]["workflow_call"]["secrets"])


def test_whoever_examines_a_stack_has_the_buckets_credentials() -> None:
    for file in WORKFLOWS:
        for job in load(file.read_text(encoding="utf-8"))["jobs"].values():
            if any("--stack" in step.get("run", "") for step in job.get("steps", ())):
                for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
                    assert job["env"][name] == f"${{{{ secrets.{name} }}}}"


def test_the_pages_rule_lets_the_runner_reach_mlflow_and_nothing_else() -> None:
    (rule,) = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    base = CHECKOUT / "k8s" / "base" / "network"
    own = [one for file in base.glob("*.yaml") for one in yaml.safe_load_all(file.read_text(encoding="utf-8"))]
    name = "kubernetes.io/metadata.name"
    runner = Pod({name: "runners"}, {})
    mlflow, step = (Pod({name: "proxykd"}, {"proxykd.dev/role": role}) for role in ("mlflow", "step"))
    assert not reaches(own, runner, mlflow, 5000)
    assert reaches([*own, rule], runner, mlflow, 5000)
    assert not reaches([*own, rule], runner, mlflow, 5001)
    assert not reaches([*own, rule], runner, step, 5000)
    assert not reaches([*own, rule], Pod({name: "default"}, {}), mlflow, 5000)
