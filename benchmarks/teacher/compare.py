"""The teacher engine beside raw aiohttp and its peers: ``python benchmarks/teacher/compare.py``.

One stub on loopback answers after 20 ms and fails 5 % of the calls. Each contender asks it the same questions in a
process of its own, in its own environment; the runs are interleaved, so that all meet the same state of the machine,
and the medians of five are printed with their ranges. A rate counts the asking only, as the server saw it: from the
first question that came to the last completion that went out. Lines of JSON first, a Markdown table last.
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from environments import python_of
from launch import CURATOR, DISTILABEL_64, DISTILABEL_500, FLOOR, OURS, Contender, measure, serving

CONTENDERS = (FLOOR, OURS, CURATOR, DISTILABEL_64, DISTILABEL_500)
_COLUMNS = ("requests_per_s", "asking_s", "process_s", "cpu_s_per_1000", "peak_rss_mib", "extra_calls")


def compare(contenders: list[Contender], given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a run, printed as it ends."""
    pythons = {contender.name: python_of(contender.environment, given.environments) for contender in contenders}
    rows = []
    faults = {"latency_s": given.latency_s, "fault_rate": given.fault_rate}
    with serving(**faults, rate_limit_headers=given.rate_limit_headers) as stub:
        for repeat in range(given.repeats):
            for contender in contenders:
                run = f"{contender.name}.{repeat}"
                python = pythons[contender.name]
                row = measure(contender, python, stub, run=run, count=given.count, concurrency=given.concurrency)
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def summarise(rows: list[dict[str, Any]], contenders: list[Contender], count: int) -> str:
    """A Markdown table of the medians, and what the ratios of ours are."""
    lines = [
        "| | requests/s | of aiohttp | asking, s | process, s | CPU s/1000 | peak RSS, MiB | extra calls | delivered |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_name = {c.name: [row for row in rows if row["name"] == c.name] for c in contenders}
    rates = {name: statistics.median(row["requests_per_s"] for row in runs) for name, runs in by_name.items()}
    for name, runs in by_name.items():
        rate, asking, process, cpu, memory, extra = (_range([row[column] for row in runs]) for column in _COLUMNS)
        share = f"{rates[name] / rates[FLOOR.name]:.2f}" if FLOOR.name in rates else "-"
        delivered = min(row["delivered"] for row in runs)
        lines.append(
            f"| {name} | {rate} | {share} | {asking} | {process} | {cpu} | {memory} | {extra} | {delivered}/{count} |"
        )
    if OURS.name in rates:
        ratios = [f"{rates[OURS.name] / rate:.2f} times {name}" for name, rate in rates.items() if name != OURS.name]
        lines += ["", f"{OURS.name}: " + ", ".join(ratios)]
    lines += ["", *sorted({f"{row['name']}: {row['settings']}; {_versions(row['versions'])}" for row in rows})]
    return "\n".join(lines)


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.4g} ({min(values):.4g}..{max(values):.4g})"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="questions a run")
    parser.add_argument("--concurrency", type=int, default=64, help="most calls in flight")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each")
    parser.add_argument("--latency-s", type=float, default=0.02, help="of every call")
    parser.add_argument("--fault-rate", type=float, default=0.05, help="share of calls that fail")
    parser.add_argument("--rate-limit-headers", action="store_true", help="the stub tells of (high) rate limits")
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="who asks")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="folder of the peers' own")
    given = parser.parse_args()
    contenders = [contender for contender in CONTENDERS if contender.name in given.only]
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    print(json.dumps({**machine, "count": given.count, "concurrency": given.concurrency}), flush=True)
    rows = compare(contenders, given)
    print()
    print(summarise(rows, contenders, given.count))


if __name__ == "__main__":
    main()
