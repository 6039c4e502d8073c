"""Seconds and size of the report's page for a large report.

    python benchmarks/evaluation/page.py [--tasks 20] [--prompts 5000] [--output FOLDER]

The report has eight arms, each compared with the candidate on every task, over all prompts and in ten slices, and
predictions of every prompt by every arm. The clock runs while the worst answers are found and while the page and its
summary are rendered and written; the report itself is made before. Printed are seconds and MB (10**6 bytes).
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from proxykd.evaluation.page.rendering import write_page
from proxykd.evaluation.samples import collect_samples
from tests.support.large_report import ARMS, large_page, write_predictions


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=None, help="keep the page here")
    arguments = parser.parse_args()
    data = large_page(num_tasks=arguments.tasks, num_prompts=arguments.prompts)
    with tempfile.TemporaryDirectory() as scratch:
        path, validated, splits = write_predictions(
            Path(scratch), num_tasks=arguments.tasks, num_prompts=arguments.prompts
        )
        started = time.perf_counter()
        samples = collect_samples([path], validated, splits, candidate="proxy_kd", against="champion")
        found = time.perf_counter() - started
        page = write_page(replace(data, samples=samples), arguments.output or Path(scratch) / "page")
        seconds, size = time.perf_counter() - started, page.stat().st_size
    num_comparisons = len(data.report["comparisons"])
    print(
        f"{arguments.tasks} tasks, {arguments.prompts:,} prompts, {len(ARMS)} arms, {num_comparisons:,} comparisons: "
        f"{seconds:.2f} s ({found:.2f} s of them to find the answers), {size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
