"""A file of tensors is always a whole one and of one writer."""

import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from proxykd.exceptions import StorageError
from proxykd.models import tensor_files
from proxykd.models.tensor_files import STALE_S, open_tensors, save_tensors

NUM_WRITES = 40


def write(path: Path, writer: int, failures: list[BaseException]) -> None:
    """Files whose header names the number that all their values are."""
    try:
        for number in range(NUM_WRITES):
            value = writer * NUM_WRITES + number
            save_tensors({"weight": torch.full((5_000 + writer,), float(value))}, path, {"value": str(value)})
    except BaseException as error:
        failures.append(error)


def read(path: Path) -> tuple[float, set[float]]:
    with open_tensors(path) as file:
        return float(file.metadata()["value"]), set(file.get_tensor("weight").tolist())


def test_two_writers_of_one_file_never_mix_and_never_fail(tmp_path: Path) -> None:
    path, failures = tmp_path / "run.safetensors", list[BaseException]()
    save_tensors({"weight": torch.zeros(5)}, path, {"value": "0"})
    writers = [threading.Thread(target=write, args=(path, writer, failures)) for writer in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        said, held = read(path)
        assert held == {said}
    assert not failures
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_writer_that_is_cut_short_leaves_the_former_file_and_takes_its_own_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.safetensors"
    save_tensors({"weight": torch.zeros(5)}, path, {"value": "0"})

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files.os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            save_tensors({"weight": torch.ones(5)}, path, {"value": "1"})
    assert read(path) == (0.0, {0.0})
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_tensors({"weight": torch.zeros(5)}, path, {"value": "0"})
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="free some space"):
            save_tensors({"weight": torch.ones(10_000)}, path, {"value": "1"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert read(path) == (0.0, {0.0})
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_what_killed_writers_left_is_removed_and_what_grows_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    left, growing, foreign = (tmp_path / name for name in (
        "run.safetensors.0.partial", "run.safetensors.1.partial", "other.safetensors.0.partial"
    ))  # fmt: skip
    for file in (left, growing, foreign):
        file.touch()
    long_ago = time.time() - STALE_S - 60
    for file in (left, foreign):
        os.utime(file, (long_ago, long_ago))
    save_tensors({"weight": torch.zeros(5)}, path, {})
    assert not left.exists()
    assert growing.exists()
    assert foreign.exists()
