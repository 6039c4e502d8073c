"""What a process of a training does that needs some seconds for its checkpoint: ``python -m ... JOB``."""

import json
import signal
import sys
import time
from pathlib import Path

SAVING_S = 3.0


def main(job: Path) -> int:
    """Wait to be told to stop, and save."""
    folder = Path(json.loads(job.read_text(encoding="utf-8"))["folder"])

    def save(*_: object) -> None:
        time.sleep(SAVING_S)
        (folder / "saved").touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, save)
    (folder / "begun").touch()
    time.sleep(120.0)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
