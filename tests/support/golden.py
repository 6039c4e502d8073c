"""``python -m tests.support.golden [FOLDER]``: the committed pipelines anew, one for each graph of steps that there is.

Everything else that a specification can ask for (several teachers, trajectories, another loss) changes what steps are
told, and no step.
"""

import shlex
import sys
import tempfile
from pathlib import Path

import yaml

from proxykd.config.steps import STEPS, step_names
from tests.support.program import CHECKOUT

FOLDER = CHECKOUT / "tests" / "pipelines" / "golden"
SHARDS = {"query_teacher": 2, "estimate_distributions": 2}
STEPS_OF = {
    "distill": STEPS,
    "distill-in-shards": step_names(SHARDS),
    "distill-without-targets": tuple(step for step in STEPS if step != "estimate_distributions"),
}
"""Graph -> its steps."""


def commands(folder: Path) -> dict[str, str]:
    """Graph -> the command that writes its file, all but the file's name; ``folder`` gets a stack that divides steps.

    Its placement asks for as many parts as ``SHARDS`` of querying; of estimating it asks for more than the command.
    """
    stack = yaml.safe_load((CHECKOUT / "k8s" / "stacks" / "kubeflow.yaml").read_text(encoding="utf-8"))
    placement = yaml.safe_load((CHECKOUT / "k8s" / "placements" / "pools.yaml").read_text(encoding="utf-8"))
    for step, count in {"query_teacher": SHARDS["query_teacher"], "estimate_distributions": 4}.items():
        placement["steps"].setdefault(step, {})["shards"] = count
    for name, content in {"stack": {**stack, "placement": "placement.yaml"}, "placement": placement}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    main = "compile configs/quickstart.yaml --stack"
    divided = f"--shards estimate_distributions={SHARDS['estimate_distributions']}"
    return {
        "distill": f"{main} kubeflow",
        "distill-in-shards": f"{main} {folder / 'stack.yaml'} {divided}",
        "distill-without-targets": f"{main} kubeflow --set 'student.living_teacher={{kind: gkd}}'",
    }


def write(target: Path) -> None:
    """What ``proxykd compile`` writes for each graph, in one process: most of its time goes into loading ZenML."""
    from proxykd.cli import app

    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands(Path(folder)).items():
            app([*shlex.split(command), "--output", str(target / f"{name}.yaml")], standalone_mode=False)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
