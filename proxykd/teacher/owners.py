"""Who is alive among the processes that share a file: each holds the lock of a file of its own while it lives.

The system gives a lock back when its process ends, however it ends. So a claim of a process that was killed is known to
be void at once, without a lease that a clock could shorten or lengthen. Locks reach as far as the disk's locks do: one
machine, or a network disk that knows them.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


class Owner:
    """This process among the others that use ``folder``.

    Args:
        folder: Holds a file for each process; made when the first one enters.

    Attributes:
        name: Unique.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid4().hex
        self._folder, self._descriptor = folder, -1

    def beside(self, ending: str) -> Path:
        """A file of this process's, beside its lock."""
        return self._folder / f"{self.name}.{ending}"

    def left_by_the_dead(self, ending: str) -> list[Path]:
        """Such files of processes that are gone."""
        return [path for path in self._folder.glob(f"*.{ending}") if not self.is_alive(path.stem)]

    def enter(self) -> str:
        """Be alive from now on, until ``leave`` or the end of the process; returns the name.

        Raises:
            OSError: if the file cannot be made or locked.
        """
        if self._descriptor < 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._folder / self.name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self.name

    def leave(self) -> None:
        """Be gone."""
        if self._descriptor >= 0:
            with suppress(OSError):
                (self._folder / self.name).unlink()
            os.close(self._descriptor)
            self._descriptor = -1

    def is_alive(self, name: str) -> bool:
        """Whether another process is alive; the file of one that is not is removed.

        Args:
            name: Its name.
        """
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)
