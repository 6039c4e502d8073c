"""Which launcher the environment asks for."""

import os
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from proxykd.config.launcher import LAUNCHER_VARIABLE, LauncherSpec
from proxykd.exceptions import ConfigError
from proxykd.launching.torchrun import Torchrun
from proxykd.launching.work import InProcess, Launcher

Builders = Mapping[str, Callable[[LauncherSpec], Launcher]]


def choose_launcher(
    processes: int, *, others: Builders | None = None, environ: Mapping[str, str] = os.environ
) -> Launcher:
    """The launcher that ``PROXYKD_LAUNCHER`` names; where it is unset, one for so many processes of this machine.

    Args:
        processes: The specification's number.
        others: Makers of launchers that the library does not know, by the kind that they are for.
        environ: Where the variable is looked for.

    Raises:
        ConfigError: if the variable cannot be read, or names a launcher that is not there.
    """
    if not (text := environ.get(LAUNCHER_VARIABLE)):
        return Torchrun(processes) if processes > 1 else InProcess()
    try:
        spec = LauncherSpec.model_validate_json(text)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"expected a launcher in {LAUNCHER_VARIABLE}, found {told}; correct the placement") from error
    if spec.kind == "process":
        return InProcess()
    if spec.kind == "torchrun":
        return Torchrun(spec.processes_per_node)
    if (build := (others or {}).get(spec.kind)) is None:
        raise ConfigError(
            f"expected a launcher that is known here, found kind {spec.kind!r} in {LAUNCHER_VARIABLE}; the pipeline's "
            "steps know it, the library alone knows process and torchrun"
        )
    return build(spec)
