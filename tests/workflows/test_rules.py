"""Workflows: pinned, least rights, nothing of a user's in shell, no secret for outsiders; each rule finds its fault."""

from pathlib import Path

import pytest

from tests.support.program import CHECKOUT
from tests.workflows.rules import RULES, faults, load

WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
SOUND = (CHECKOUT / ".github" / "workflows" / "distill.yml").read_text(encoding="utf-8")
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
    assert {file.stem for file in WORKFLOWS} == {"ci", "distill", "promote", "release", "retrain", "rollback"}


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
    spending = [step for step in workflow["jobs"]["distill"]["steps"] if "proxykd run" in step.get("run", "")]
    assert [step["if"] for step in spending] == ["${{ !inputs.dry_run }}"]
