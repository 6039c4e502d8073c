"""The alignment as work for a launcher: what its processes are told, and the artifact of what they bring back.

Nothing here loads a model, so that the step that only follows an alignment needs no room for one.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from proxykd.artifacts import ProxyModel, SplitSet, ValidatedSet, link_file, seal
from proxykd.config import RunSpec
from proxykd.exceptions import ConfigError
from proxykd.launching.choice import choose_launcher
from proxykd.launching.work import Launcher, Work
from proxykd.records import hash_json

ALIGNED = "aligned"
_SHARED_OUT = {"processes", "fsdp", "gradient_checkpointing"}
"""Settings of who does it and where, which leave the proxy as it is."""


def told_settings(run: RunSpec) -> dict[str, Any]:
    """The settings that make the proxy what it is, in JSON types."""
    return {"seed": run.seed, "proxy": run.proxy.model_dump(mode="json", exclude=_SHARED_OUT)}


def align_proxy(
    validated: ValidatedSet,
    splits: SplitSet,
    run: RunSpec,
    *,
    output: Path,
    scratch: Path,
    checkpoints: Path | None = None,
    launcher: Launcher | None = None,
) -> ProxyModel:
    """Align the proxy of ``run`` to the teacher's text and write it with its fidelity.

    Args:
        validated: The teacher's texts.
        splits: Which stage sees which prompts.
        run: The specification, ablations applied. Without warm-up and preference rounds the proxy stays as it is.
        output: Folder of the artifact.
        scratch: Folder for tokenised texts.
        checkpoints: Folder that outlives a kill: the same call goes on after the last stage that was finished, and
            removes what it left there at the end; None = a killed call begins anew.
        launcher: Who does it; None = as ``proxy.processes`` or the environment says.

    Raises:
        ConfigError: if both terms of the loss are switched off.
        GateError: if a stage finds no text on its side.
        ModelError: if the model cannot be loaded.
    """
    spec = run.proxy
    if spec.preference is not None and spec.preference.nll_coef == spec.preference.preference_coef == 0.0:
        raise ConfigError("proxy.preference: nll_coef and preference_coef are both 0; set one, or preference: null")
    made_from = {"validated": validated.hash, "splits": splits.hash, "settings": hash_json(told_settings(run))}
    checkpoint = None if checkpoints is None else checkpoints / f"alignment-{hash_json(made_from)}.safetensors"

    def here() -> None:
        # A step whose alignment is done elsewhere has no room for what trains.
        from proxykd.proxy.alignment import align_here

        align_here(validated, splits, run, output=output, scratch=scratch, checkpoint=checkpoint)

    work = Work(
        name="proxy",
        module="proxykd.proxy.worker",
        job={
            "validated": str(validated.path),
            "splits": str(splits.path),
            "run": run.model_dump(mode="json", include={"seed", "split", "proxy", "staging"}),
            "checkpoint": None if checkpoint is None else str(checkpoint),
        },
        inputs=("validated", "splits"),
        identity="" if checkpoint is None else str(checkpoint),
        folder=scratch,
        advice="proxy.processes, or batch_size in proxy.warmup.optimizer and proxy.preference.optimizer",
        here=here,
        collect=partial(_collect, output),
    )
    (launcher or choose_launcher(spec.processes)).launch(work)
    artifact = ProxyModel(output)
    seal(artifact, made_from)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return artifact


def _collect(output: Path, made: Path) -> None:
    shutil.copytree(made / ALIGNED, output, copy_function=link_file, dirs_exist_ok=True)
