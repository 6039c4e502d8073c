"""Which errors are the disk's fault: full, read-only, not ours to write, or a database on it that is damaged."""

import errno
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from proxykd.exceptions import StorageError

_SQLITE_DISK_ERRORS = re.compile("disk is full|readonly database|unable to open database|disk I/O error")
_SQLITE_DAMAGE = re.compile("not a database|malformed")
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


def damage(error: BaseException | None, root: Path) -> str | None:
    """Which of the engines' databases is damaged and what to do, if that is what ended a command; None = it is not.

    Args:
        error: What ended it.
        root: The workspace.
    """
    while error is not None and not (isinstance(error, sqlite3.DatabaseError) and _SQLITE_DAMAGE.search(str(error))):
        error = error.__cause__
    if error is None:
        return None
    engines = (root / "mlflow.db", *root.glob("zenml/local_stores/*/zenml.db"))
    return next((_damaged(path) for path in engines if _is_damaged(path, "PRAGMA quick_check(1)")), None)


def refuse_damaged(path: Path) -> None:
    """Go on only if a database of the engines, where there is one, is one; what lies deeper in it is not looked at.

    Raises:
        StorageError: saying what to do.
    """
    if _is_damaged(path, "PRAGMA schema_version"):
        raise StorageError(_damaged(path))


def _damaged(path: Path) -> str:
    return (
        f"expected a database that can be read, found {path} damaged; restore a copy of it, or move it away: the "
        "record of runs or models in it begins anew then; paid answers are in another, the journal"
    )


def _is_damaged(path: Path, question: str) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            (told,) = database.execute(question).fetchone()
    except sqlite3.OperationalError:  # it is not there, or locked
        return False
    except sqlite3.DatabaseError:
        return True
    return isinstance(told, str) and told != "ok"


def _may_not_write(error: OSError, root: Path) -> bool:
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    return error.errno in _DISK_REFUSES and any(Path(name).absolute().is_relative_to(root) for name in names)
