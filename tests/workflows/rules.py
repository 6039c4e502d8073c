"""What every workflow must keep to, as rules that find their faults in a workflow's text."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

PINNED = re.compile(r"^\s*(?:- )?uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
OWN = re.compile(r"^\s*(?:- )?uses: \./\.github/workflows/[\w-]+\.yml$")
COMMAND = re.compile(r"^(make|\.venv/bin/proxykd) [\w-]+")
IDENTIFIED = ("actions/attest-build-provenance@", "aws-actions/configure-aws-credentials@")
"""Actions that use the job's identity."""
GRANTS = {"contents": {"read"}, "id-token": {"write"}, "attestations": {"write"}}
OUTSIDERS = {"pull_request", "pull_request_target", "workflow_run", "issues", "issue_comment", "fork", "discussion"}
"""Events that somebody without rights in the repository can cause."""

Rule = Callable[[str, dict[Any, Any]], Iterator[str]]


def load(text: str) -> dict[Any, Any]:
    """The workflow; YAML reads its key ``on`` as a truth value."""
    found: dict[Any, Any] = yaml.safe_load(text)
    found["on"] = found.pop(True)
    return found


def faults(text: str) -> list[str]:
    """What the rules find."""
    return [fault for rule in RULES for fault in rule(text, load(text))]


def jobs(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return list(workflow["jobs"].values())


def steps(workflow: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    for job in jobs(workflow):
        yield from job.get("steps", ())


def shell_lines(workflow: dict[Any, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Step and line."""
    for step in steps(workflow):
        for line in step.get("run", "").splitlines():
            yield step, line


def events(workflow: dict[Any, Any]) -> set[str]:
    on = workflow["on"]
    return {on} if isinstance(on, str) else set(on)


def actions_are_pinned(text: str, _: dict[Any, Any]) -> Iterator[str]:
    for line in text.splitlines():
        if re.match(r"\s*(- )?uses:", line) and not (PINNED.match(line) or OWN.match(line)):
            yield f"not pinned by commit with its version beside it: {line.strip()}"


def rights_are_least(_: str, workflow: dict[Any, Any]) -> Iterator[str]:
    if workflow.get("permissions") != {"contents": "read"}:
        yield f"permissions at the top: {workflow.get('permissions')}"
    for job in jobs(workflow):
        granted = job.get("permissions", {})
        if not isinstance(granted, dict) or any(value not in GRANTS.get(name, ()) for name, value in granted.items()):
            yield f"permissions of a job: {granted}"
            continue
        is_used = any(step.get("uses", "").startswith(IDENTIFIED) for step in job.get("steps", ()))
        if "write" in granted.values() and not is_used:
            yield f"identity granted and not used: {granted}"


def no_credentials_stay(_: str, workflow: dict[Any, Any]) -> Iterator[str]:
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@") and step.get("with", {}).get("persist-credentials"):
            yield "checkout keeps its token"
        if step.get("uses", "").startswith("actions/checkout@") and "persist-credentials" not in step.get("with", {}):
            yield "checkout keeps its token"


def nothing_is_written_into_shell(_: str, workflow: dict[Any, Any]) -> Iterator[str]:
    for _step, line in shell_lines(workflow):
        if "${{" in line:
            yield f"expression in a shell line: {line}"
        if re.search(r'(?<!")\$\w+(?!")', re.sub(r'"[^"]*"', "", line)):
            yield f"variable without quotes: {line}"


def secrets_stay_inside(text: str, workflow: dict[Any, Any]) -> Iterator[str]:
    if outside := events(workflow) & OUTSIDERS:
        if "secrets." in text or "inherit" in text:
            yield f"secrets in a workflow that {sorted(outside)} starts"
        if outside - {"pull_request"}:
            yield f"started with the repository's rights by {sorted(outside - {'pull_request'})}"


def shell_is_ours(_: str, workflow: dict[Any, Any]) -> Iterator[str]:
    for _step, line in shell_lines(workflow):
        if not COMMAND.match(line) and line != "bash .ci/run":
            yield f"neither make nor proxykd: {line}"
        if re.search(r"[;|&`]|\$\(", line):
            yield f"more than one command: {line}"


def nothing_under_way_is_cancelled(_: str, workflow: dict[Any, Any]) -> Iterator[str]:
    called = all("uses" in job for job in jobs(workflow))
    if called or events(workflow) & {"pull_request"}:
        return
    if workflow.get("concurrency", {}).get("cancel-in-progress") is not False:
        yield "a run under way may be cancelled, or two at once"


def jobs_end(_: str, workflow: dict[Any, Any]) -> Iterator[str]:
    if not all("uses" in job or 0 < job.get("timeout-minutes", 0) <= 360 for job in jobs(workflow)):
        yield "a job without timeout"


RULES: tuple[Rule, ...] = (
    actions_are_pinned,
    rights_are_least,
    no_credentials_stay,
    nothing_is_written_into_shell,
    secrets_stay_inside,
    shell_is_ours,
    nothing_under_way_is_cancelled,
    jobs_end,
)
