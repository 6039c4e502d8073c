"""One virtual environment a peer, made from its committed requirements and made anew only when they change."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from launch import HERE


def python_of(peer: str, root: Path, *, requirements: Path = HERE) -> Path:
    """The interpreter of a peer's environment, which is made if there is none for the present requirements.

    Args:
        peer: Names ``requirements-PEER.txt``; "" = the interpreter that runs this.
        root: Folder of all environments.
        requirements: Folder of that file.

    Raises:
        subprocess.CalledProcessError: if the peer cannot be installed.
    """
    if not peer:
        return Path(sys.executable)
    requirements, folder = requirements / f"requirements-{peer}.txt", root.resolve() / peer
    python, stamp = folder / "bin" / "python", folder / "made-from.txt"
    made_from = f"{sys.version}\n{hashlib.sha256(requirements.read_bytes()).hexdigest()}\n"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_from:
        print(f"installing {requirements.name} into {folder}", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        stamp.write_text(made_from, encoding="utf-8")
    return python
