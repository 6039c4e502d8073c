"""Which errors are the disk's fault: full, read-only, or not ours to write."""

import errno
import os
import re
import sqlite3
from pathlib import Path

_SQLITE_DISK_ERRORS = re.compile("disk is full|readonly database|unable to open database|disk I/O error")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_DISK_REFUSES = {errno.EACCES, errno.EPERM}


def disk_trouble(error: BaseException | None, root: Path) -> str | None:
    """Why the disk is to blame for an error, or for the one that it was raised from; None = it is not.

    Args:
        error: What ended the run.
        root: The workspace; a permission counts only where it is one of the workspace's own files that lacks it.
    """
    while error is not None:
        if isinstance(error, OSError) and (error.errno in _DISK_FULL or _may_not_write(error, root)):
            return str(error)
        if isinstance(error, sqlite3.OperationalError) and _SQLITE_DISK_ERRORS.search(str(error)):
            return f"database: {error}"
        error = error.__cause__
    return None


def _may_not_write(error: OSError, root: Path) -> bool:
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    return error.errno in _DISK_REFUSES and any(Path(name).absolute().is_relative_to(root) for name in names)
