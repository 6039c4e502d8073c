"""The distances from the truth: the program runs, and prints what its page shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "estimation" / "truth.py"


@pytest.mark.long
def test_the_hard_label_the_proxy_and_the_apis_word_are_told_apart() -> None:
    command = [sys.executable, str(SCRIPT), "--sizes", "40", "--seeds", "1", "--steps", "2"]
    environment = {"PYTHONPATH": str(SCRIPT.parents[2]), "PATH": ""}
    finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, env=environment)
    rows = re.findall(r"^(.{34}) +(\d\.\d+) \+-0.0000 +(\d\.\d+) \+-", finished.stdout, re.MULTILINE)
    kl = {name.strip(): float(value) for name, value, _ in rows}
    # Two steps teach a proxy nothing, so that little but the written token and the API's word is worth anything.
    assert kl["logprobs (default: evidence 1000)"] < 0.1 < kl["hard label (plain SFT)"] < 1.0 < kl["proxy"]
    assert kl["posterior (default: both fitted)"] < kl["posterior, kappa 8, gamma 2"]
    assert "both fitted (default)" in finished.stdout
