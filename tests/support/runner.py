"""A job of a workflow as its runner goes through it: a checkout, and line after line of shell."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from proxykd.workspace import Workspace
from tests.support.program import CHECKOUT, PROXYKD, SPECIFICATION
from tests.workflows.rules import load, shell_lines

LIMIT_S = 600
MODEL = SPECIFICATION["registry"]["model_name"]
HOSTILE = '"; touch pwned; echo "$(touch pwned)`touch pwned`'
"""What somebody may type, none of which may be run."""


@dataclass(frozen=True)
class Done:
    """How a line ended."""

    line: str
    status: int
    output: str


@dataclass(frozen=True)
class Checkout:
    """What a job finds after checking out, less what takes minutes to install."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> "Checkout":
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
            shutil.copy(CHECKOUT / name, folder / name)
        shutil.copytree(CHECKOUT / "proxykd", folder / "proxykd", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / ".venv" / "bin").mkdir(parents=True)
        for program in (PROXYKD, Path(sys.executable), PROXYKD.with_name("uv")):
            (folder / ".venv" / "bin" / program.name).symlink_to(program)
        (folder / ".venv" / ".installed").touch()
        (folder / "tiny.yaml").write_text(yaml.safe_dump(SPECIFICATION), encoding="utf-8")
        return cls(folder)

    @property
    def summary(self) -> str:
        file = self.folder / "summary.md"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def run(
        self,
        workflow: str,
        *,
        only: str = "",
        inputs: Mapping[str, Any],
        secrets: Mapping[str, str],
        variables: Mapping[str, str] = {},
    ) -> Iterator[Done]:
        """The lines of a workflow's job, one after the other, as a runner does; ``variables`` = the repository's."""
        told = load((CHECKOUT / ".github" / "workflows" / f"{workflow}.yml").read_text(encoding="utf-8"))
        (job,) = told["jobs"].values()
        context = {
            "inputs": inputs,
            "secrets": secrets,
            "vars": variables,
            "github": {"workspace": str(self.folder), "actor": "ci"},
        }
        for step, line in shell_lines(told):
            if only not in line or not _is_wanted(step.get("if", ""), context):
                continue
            own = {**told.get("env", {}), **job.get("env", {}), **step.get("env", {})}
            yield self.line(line, {name: _filled(value, context) for name, value in own.items()})

    def register_again(self, variables: Mapping[str, str]) -> None:
        """A second version of the student, with the files of the first; ``variables`` = where models are."""
        code = (
            "import sys; from mlflow import MlflowClient; client, name = MlflowClient(), sys.argv[1]; "
            "first = client.get_model_version(name, '1'); "
            "client.create_model_version(name, first.source, model_id=first.source.removeprefix('models:/'))"
        )
        subprocess.run(
            [sys.executable, "-c", code, MODEL], env={**self.environment, **variables}, check=True, timeout=LIMIT_S
        )

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.folder / "state")

    @property
    def environment(self) -> dict[str, str]:
        """This process's, but for what tells where runs and models are, and for keys: a runner has none of its own."""
        others = ("MLFLOW", "ZENML", "PROXYKD", "MAKE", "AWS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        no_keys = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(self.folder.parent)}
        return {**kept, **no_keys, **self.workspace.environment()}

    def line(self, line: str, variables: Mapping[str, str]) -> Done:
        """One line of shell."""
        environment = {**self.environment, **variables, "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md")}
        # A variable of the repository that is not set arrives empty, as on a runner.
        script = self.folder / "line.sh"
        script.write_text(line + "\n", encoding="utf-8")
        done = subprocess.run(
            ["bash", "-e", str(script)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        return Done(line, done.returncode, done.stdout + done.stderr)


def _filled(value: object, context: Mapping[str, Mapping[str, Any]]) -> str:
    def said(match: "re.Match[str]") -> str:
        found = context[match[1]].get(match[2], "")
        return str(found).lower() if isinstance(found, bool) else str(found)

    return re.sub(r"\$\{\{ (\w+)\.(\w+) \}\}", said, str(value))


def _is_wanted(condition: str, context: Mapping[str, Mapping[str, Any]]) -> bool:
    assert condition in ("", "${{ !inputs.dry_run }}"), f"expected a condition that this runner knows, got {condition}"
    return not condition or not context["inputs"]["dry_run"]
