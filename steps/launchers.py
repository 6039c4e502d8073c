"""Launchers that the library does not know, for the steps that train."""

from proxykd.config.launcher import LauncherSpec
from proxykd.launching.choice import Builders
from proxykd.launching.work import Launcher


def _train_job(spec: LauncherSpec) -> Launcher:
    from cluster.train_job import build_launcher

    return build_launcher(spec)


LAUNCHERS: Builders = {"trainjob": _train_job}
"""Makers of launchers, by the kind that a placement names."""
