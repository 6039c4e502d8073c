"""What a step's process imports before the step: in a process of its own, as ZenML's registry is one for all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytestmark = pytest.mark.integration

HEAVY = ("mlflow", "pandas", "sklearn", "torch", "transformers")
PROGRAM = """
import json, sys
from cluster.step_entry import leave_out_libraries
from zenml.integrations.registry import integration_registry

before = {name: [one.__name__ for one in found.flavors()] for name, found in integration_registry.integrations.items()}
if sys.argv[1] == "lean":
    leave_out_libraries()
integration_registry.activate_integrations()
after = integration_registry.integrations
from zenml.materializers.materializer_registry import materializer_registry

print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "flavors": {name: [one.__name__ for one in found.flavors()] for name, found in after.items()} == before,
    "types": sorted(one.__name__ for one in materializer_registry.materializer_types),
}))
"""
SUBMITTING = """
import json, sys
from pathlib import Path
from zenml.utils import source_utils

source_utils.set_custom_source_root(str(Path.cwd()))
__import__(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
ENTRY = """
import json, sys
from cluster.step_entry import use_step_entry
from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.step_operators.step_operator_entrypoint_configuration import StepOperatorEntrypointConfiguration

ask = lambda: StepEntrypointConfiguration.get_entrypoint_arguments(step_name="split", snapshot_id=sys.argv[1])
before = ask()
use_step_entry()
use_step_entry()
other = StepOperatorEntrypointConfiguration.get_entrypoint_arguments(
    step_name="split", snapshot_id=sys.argv[1], step_run_id=sys.argv[1]
)
print(json.dumps([before, ask(), other]))
"""


def answer(program: str, word: str) -> Any:
    checkout = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", program, word], cwd=checkout, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_step_imports_no_library_that_none_of_ours_is_given_by_zenml() -> None:
    zenml, ours = answer(PROGRAM, "zenml"), answer(PROGRAM, "lean")
    assert {"mlflow", "sklearn", "torch"} <= set(zenml["modules"])  # or there would be nothing to leave out
    assert not set(HEAVY) & set(ours["modules"])
    assert ours["flavors"]  # what a stack may have is as ZenML has it
    assert {"str", "int", "float", "dict", "list", "UUID"} <= set(ours["types"]) < set(zenml["types"])


@pytest.mark.parametrize("module", ["pipelines.submitting", "pipelines.scheduling"])
def test_whoever_submits_imports_nothing_that_only_steps_need(module: str) -> None:
    found = answer(SUBMITTING, module)
    assert {"steps", "zenml"} <= set(found)
    assert not set(HEAVY) & set(found)


def test_pods_are_told_our_entry_point_and_otherwise_what_zenml_tells_them() -> None:
    zenml, ours, other = answer(ENTRY, str(uuid4()))
    assert ours[1] == "cluster.step_entry.StepEntry"
    assert (ours[0], ours[2:]) == (zenml[0], zenml[2:])
    assert len(ours) == 6
    assert zenml[1] != ours[1] != other[1]
    assert other[1].endswith("StepOperatorEntrypointConfiguration")
