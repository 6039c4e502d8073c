"""How a real container is held, as the kernel tells it: user, capabilities, root, mounts and memory."""

from pathlib import Path
from typing import NamedTuple

from tests.k8s.runtimes import ACCOUNT
from tests.support.containers import Container

_TOKEN = (ACCOUNT, ACCOUNT.removeprefix("/var"))
"""Where the token is; in Debian the former's /var/run is a link."""


class Confines(NamedTuple):
    """What the kernel lets a container's first process do.

    Attributes:
        users: Real, effective, saved and file system user.
        capabilities: Those that it has or could get, as a mask.
        has_no_new_privileges: Whether a program that it starts can have no more.
        is_root_read_only: Whether the root of its file systems is.
        has_token: Whether a service account's token is mounted.
        memory: Limit in bytes.
    """

    users: tuple[int, ...]
    capabilities: int
    has_no_new_privileges: bool
    is_root_read_only: bool
    has_token: bool
    memory: int


def confines(container: Container) -> Confines | None:
    """As /proc tells them of a running container; None if it has not begun or has ended."""
    match container.inspect(".State.Status", ".State.Pid"):
        case ["running", pid]:
            process = Path("/proc") / pid
        case _:
            return None
    try:
        told = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
        memory = _memory(process)
    except OSError:
        return None
    (root,) = (options.split(",") for _, _, _, _, path, options, *_ in mounts if path == "/")
    return Confines(
        tuple(map(int, told["Uid"].split())),
        int(told["CapPrm"], 16) | int(told["CapBnd"], 16) | int(told["CapEff"], 16),
        told["NoNewPrivs"] == "1",
        "ro" in root,
        any(mount[4] in _TOKEN for mount in mounts),
        memory,
    )


def _memory(process: Path) -> int:
    """Limit of a process's control group, of either version."""
    groups = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
    for _, controllers, path in groups:
        if "memory" in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes").read_text())
    return int(Path(f"/sys/fs/cgroup{groups[0][2]}/memory.max").read_text())
