"""What a step is told: the sections of the specification that it declares, and a hash of the code that it runs.

Both are step parameters, so ZenML's cache key changes when, and only when, something that the step depends on does.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import proxykd
from proxykd.config import RunSpec

PACKAGE = Path(proxykd.__file__).parent
EVERYWHERE = ("artifacts.py", "records.py", "config")


def settings_for(run: RunSpec, *sections: str) -> dict[str, Any]:
    """The named sections of the run as plain JSON values."""
    return {name: run.model_dump(mode="json")[name] for name in sections}


def code_hash(*rooms: str) -> str:
    """16 hex digits over the Python sources of the named rooms and modules of the package, and of what all share."""
    digest = hashlib.sha256()
    for room in sorted({*rooms, *EVERYWHERE}):
        path = PACKAGE / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(PACKAGE).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def new_folder(name: str) -> Path:
    """An empty temporary folder; the materializer removes it once its files are in the artifact store."""
    return Path(tempfile.mkdtemp(prefix=f"proxykd-{name}-"))
