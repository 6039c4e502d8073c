"""What every process does around its part of the work: joining the others, telling errors, ending with its parent."""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from proxykd.exceptions import ModelError, ProxykdError
from proxykd.launching.work import ERROR, RESULT, read_job, require_job_code
from proxykd.progress import hush_engines
from proxykd.world import current_world

_PATIENCE = timedelta(hours=1)
"""How long one may wait for the others: a large model is loaded by one process of a machine after another."""

TOLD, LOST = 3, 75
"""Exit statuses: an error that another try would not mend; another process was lost."""


def run_worker(part: Callable[[dict[str, Any]], Mapping[str, Any]], path: Path) -> int:
    """Take part in a job; the first process writes what came of it.

    Args:
        part: Does this process's part, told the job, and returns what goes into ``result.json``.
        path: The job's file.

    Returns:
        Exit status.
    """
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    hush_engines()
    job = read_job(path)
    output = Path(job["output"])
    try:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the others of this node have the same code
            require_job_code(path)
        _join()
        result = part(job)
        if current_world().rank == 0:
            _write_whole(output / RESULT, dict(result))
    except ProxykdError as error:
        return _tell(output, error)
    except torch.OutOfMemoryError as error:
        told = f"expected the work to fit into the accelerator's memory, but: {error}"
        return _tell(output, ModelError(f"{told}; lower batch_size or max_seq_tokens, or take more processes"))
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        print(f"another process was lost: {error}", file=sys.stderr)
        # The group cannot be taken down in order with a part of it gone.
        os._exit(LOST)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error says that another process has gone, and not that this one did something wrong."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


def _tell(output: Path, error: ProxykdError) -> int:
    _write_whole(output / ERROR, {"kind": type(error).__name__, "message": str(error)})
    return TOLD


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Several processes may write it, and others read it meanwhile."""
    partial = path.with_name(f"{path.name}.{os.environ.get('RANK', '0')}")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, path)


def _end_with_the_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _join() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(timeout=_PATIENCE)
    if current_world().rank > 0:
        os.environ["PROXYKD_PROGRESS"] = "off"  # one of them speaks for all
