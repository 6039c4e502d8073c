"""The benchmark of the launcher counts the memory of a step's pod, and says which limit is missed."""

import subprocess
import sys
import time

import pytest

from benchmarks.cluster.launcher import MODULES, peaks_mib, shortfalls
from benchmarks.cluster.watching import peak_mib, processor_s
from tests.support.program import CHECKOUT


@pytest.mark.integration
def test_the_launchers_modules_are_counted_beside_zenml_alone() -> None:
    found = peaks_mib()
    alone, launcher = (found[name] for name in MODULES)
    assert 50 < alone < launcher
    assert launcher - alone < 150  # no torch is in it


@pytest.mark.parametrize(
    ("added_s", "added_mib", "missed"),
    [(2.0, 300.0, []), (2.1, 300.0, ["2 s more"]), (1.0, 301.0, ["300 MiB more"]), (3.0, 400.0, ["2 s", "300 MiB"])],
)
def test_each_limit_is_judged(added_s: float, added_mib: float, missed: list[str]) -> None:
    found = shortfalls(added_s, added_mib)
    assert len(found) == len(missed)
    assert all(one in told for one, told in zip(missed, found, strict=True))


def test_a_peak_is_that_of_a_living_process_or_0() -> None:
    before = peak_mib()
    held = b"1" * (64 << 20)
    assert peak_mib() >= max(before, len(held) / 2**20)
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert peak_mib(ended.pid) == 0.0


def test_processor_time_is_that_of_a_living_process_or_0() -> None:
    before, real = processor_s(), time.process_time()
    assert before == pytest.approx(real, abs=0.1)
    while time.process_time() < real + 0.2:
        pass
    assert processor_s() - before == pytest.approx(0.2, abs=0.1)
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert processor_s(ended.pid) == 0.0


@pytest.mark.long
def test_a_training_is_told_with_and_without_its_launcher() -> None:
    command = [sys.executable, str(CHECKOUT / "benchmarks" / "cluster" / "launcher.py")]
    small = ["--steps", "2", "--repeats", "1", "--texts", "40"]
    done = subprocess.run([*command, *small], cwd=CHECKOUT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("torchrun alone", "as a TrainJob", "of it launcher", "ZenML alone", "and the launcher", "the whole step")
    assert [name for name in names if name not in done.stdout] == []
