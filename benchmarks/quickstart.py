"""Time, memory and overhead of the quickstart, and of a second run of the same file; startup of the command line.

    .venv/bin/python benchmarks/quickstart.py [--config configs/quickstart.yaml]

Runs `proxykd run` in a fresh workspace, then again in the same one. "in stages" is the time inside the stages that
say what they took (asking, validating, training, sampling, scoring, ...), each counted once; "overhead" is all the
rest: the interpreter, imports, the pipeline engine, databases, loading and saving. Peak memory is of the largest
process.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PROXYKD = Path(sys.executable).with_name("proxykd")
STAGE = re.compile(r"^(?!generating answers)[^:]+: \d+ \S+ in ([0-9.]+) s \(", re.MULTILINE)
"""A finished stage and its seconds; answers are generated inside the stage "evaluating"."""
CACHED = re.compile(r"\d+ of \d+ steps from the cache")


def run(arguments: list[str], home: Path) -> tuple[float, float, str]:
    """Seconds, seconds inside stages, and what was printed."""
    environment = {**os.environ, "PROXYKD_HOME": str(home), "PROXYKD_PROGRESS": "lines"}
    started = time.perf_counter()
    done = subprocess.run(
        [str(PROXYKD), *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{arguments} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return seconds, sum(float(found) for found in STAGE.findall(done.stderr)), done.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    config = parser.parse_args().config
    with tempfile.TemporaryDirectory(prefix="proxykd-benchmark-") as folder:
        home = Path(folder)
        first, work, table = run(["run", config], home)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        second, _, again = run(["run", config], home)
        plan = min(run(["plan", config], home)[0] for _ in range(3))
        help_text = min(run(["--help"], home)[0] for _ in range(3))
    print(table)
    print(f"first run      {first:7.1f} s   (target <= 180)")
    print(f"  in stages    {work:7.1f} s")
    print(f"  overhead     {first - work:7.1f} s   {(first - work) / first:6.1%}   (target <= 15 %)")
    print(f"peak memory    {peak:7.2f} GiB (target <= 4)")
    print(f"second run     {second:7.1f} s   {', '.join(CACHED.findall(again))}")
    print(f"proxykd plan   {plan:7.2f} s   best of 3 (target <= 3)")
    print(f"proxykd --help {help_text:7.2f} s   best of 3 (target <= 1)")


if __name__ == "__main__":
    main()
