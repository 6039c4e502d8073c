"""``python -m tests.support.golden [FOLDER]``: the committed pipelines anew, one for each graph of steps that there is.

Everything else that a specification can ask for (several teachers, trajectories, another loss) changes what steps are
told, and no step.
"""

import shlex
import sys
from pathlib import Path

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
_OPTIONS = {
    "distill": "",
    "distill-in-shards": " ".join(f"--shards {step}={count}" for step, count in SHARDS.items()),
    "distill-without-targets": "--set 'student.living_teacher={kind: gkd}'",
}


def write(folder: Path) -> None:
    """What ``proxykd compile`` writes for each graph, in one process: most of its time goes into loading ZenML."""
    from proxykd.cli import app

    for name, options in _OPTIONS.items():
        command = f"compile configs/quickstart.yaml --stack kubeflow {options}"
        app([*shlex.split(command), "--output", str(folder / f"{name}.yaml")], standalone_mode=False)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
