"""``python -m tests.support.small_pipeline STACK WAIT_S [leave]``: two steps, under names of real ones, on a cluster.

The first notes each try in its workspace and waits until it is told to go on; the second doubles its number.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated

from zenml import pipeline, step
from zenml.utils import source_utils

STEPS = ("query_teacher", "split")
LONGEST_S = 120.0


@step(enable_cache=False, enable_step_logs=False)
def query_teacher(wait_s: float) -> Annotated[int, "number"]:
    """21, after ``wait_s`` seconds on the first try."""
    tries = Path(os.environ["PROXYKD_HOME"]) / "tries.txt"
    with tries.open("a", encoding="utf-8") as file:
        file.write("try\n")
    print("up", flush=True)
    if tries.read_text(encoding="utf-8").count("try") == 1:
        time.sleep(min(wait_s, LONGEST_S))
    return 21


@step(enable_cache=False, enable_step_logs=False)
def split(number: int) -> Annotated[int, "double"]:
    """Twice the number."""
    return 2 * number


@pipeline(enable_cache=False, enable_step_logs=False)
def small(wait_s: float) -> None:
    """The first step's number, doubled."""
    split(query_teacher(wait_s))


def main(stack_file: str, wait_s: float, *, leaves: bool) -> None:
    """Register the stack, run the pipeline there and follow it to its end, or print its name."""
    from cluster import stacks
    from cluster.api import ClusterApi
    from cluster.step_entry import leave_out_libraries
    from pipelines import submitting
    from pipelines.placement import run_options
    from pipelines.running import CHECKOUT
    from proxykd.config.placement import load_placement
    from proxykd.config.stack import KubernetesStackSpec, load_stack

    logging.getLogger("zenml").setLevel(logging.CRITICAL)
    source_utils.set_custom_source_root(str(CHECKOUT))
    leave_out_libraries()
    stack = load_stack(stack_file)
    assert isinstance(stack, KubernetesStackSpec)
    stacks.apply(stack)
    os.environ["ZENML_ACTIVE_STACK_ID"] = stacks.stack_id(stack)
    options = run_options(stack, load_placement(stack.placement), STEPS)
    response = submitting.submitted(small.with_options(**options), {"wait_s": wait_s})
    run = submitting.Submitted(str(response.id), response.name)
    if leaves:
        print(run.name)
        return
    api = ClusterApi.connect(stack.context, namespace=stack.namespace)
    submitting.follow(run, stack, api, tell=lambda line: print(line, flush=True))


if __name__ == "__main__":
    # By its module's name, so that a pod finds the steps there.
    from proxykd.exceptions import ProxykdError
    from tests.support import small_pipeline

    try:
        small_pipeline.main(sys.argv[1], float(sys.argv[2]), leaves="leave" in sys.argv[3:])
    except ProxykdError as error:
        sys.exit(f"error: {error}")
