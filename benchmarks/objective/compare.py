"""The fused loss beside dense cross-entropy, TRL and Liger: ``python benchmarks/objective/compare.py``.

Every contender runs one forward and backward pass over a head in a process of its own (``loss.py``), the peers in the
environment that their requirements make; the runs are interleaved, so that all meet the same state of the machine.
Printed are medians with their ranges, and ratios taken within each turn. Peak memory is that of the whole process,
libraries and weights included, as the kernel counts it. Lines of JSON first, Markdown tables last.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "teacher"))

from environments import python_of  # noqa: E402
from launch import run_to_end  # noqa: E402

ENVIRONMENTS = {"proxykd": "", "dense-ce": "", "trl-gkd": "", "trl-chunked": "", "liger-jsd": "liger"}
OURS = "proxykd"


def compare(given: argparse.Namespace, vocab_size: int) -> list[dict[str, Any]]:
    """One row a run, printed as it ends."""
    pythons = {name: python_of(ENVIRONMENTS[name], given.environments, requirements=HERE) for name in given.only}
    rows = []
    for turn in range(given.repeats):
        for name, python in pythons.items():
            row = {"vocab_size": vocab_size, "turn": turn, "name": name, **run_once(name, python, given, vocab_size)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def run_once(name: str, python: Path, given: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    """One contender, once; seconds, tokens a second, memory in MB (10^6 bytes), the machine's load before it."""
    load = round(os.getloadavg()[0], 1)
    sizes = {"vocab-size": vocab_size, "tokens": given.tokens, "hidden": given.hidden, "top-k": given.top_k}
    with tempfile.TemporaryDirectory(prefix="objective-") as folder:
        command = [str(python), str(HERE / "loss.py"), "--contender", name, "--folder", folder]
        command += [f"--{key}={value}" for key, value in sizes.items()] + [f"--liger-chunk={given.liger_chunk}"]
        finished = run_to_end(command, Path(folder))
    if finished is None:
        raise RuntimeError(f"{name} did not end")
    rate = given.tokens / finished.report["seconds"]
    return {"tokens_per_s": round(rate, 1), "load": load, **finished.report}


def summarise(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of one vocabulary."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["name"], []).append(row)
    lines = [
        f"V = {rows[0]['vocab_size']:,}",
        "",
        "| | tokens/s | ours is so many times as fast | CPU s | peak, MB | before the step, MB | load |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in by_name.items():
        rates = [run["tokens_per_s"] for run in runs]
        ours = [run["tokens_per_s"] for run in by_name.get(OURS, [])]
        ratio = _range([own / rate for own, rate in zip(ours, rates, strict=True)], 2) if ours else "-"
        cells = [_range(rates, 1), ratio, _range([run["cpu_s"] for run in runs], 1)]
        cells += [f"{max(run[key] for run in runs):,.0f}" for key in ("peak_mb", "before_mb")]
        lines.append(f"| {name} | " + " | ".join([*cells, _range([run["load"] for run in runs], 1)]) + " |")
    return "\n".join(lines)


def _range(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[32_000, 151_936, 262_144])
    parser.add_argument("--tokens", type=int, default=1024, help="completion tokens of the step")
    parser.add_argument("--hidden", type=int, default=896, help="width of the hidden states")
    parser.add_argument("--top-k", type=int, default=50, help="tokens of a sparse target")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--liger-chunk", type=int, default=128, help="rows that Liger takes at a time")
    parser.add_argument("--only", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS), help="who runs")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="folder of the peers' own")
    given = parser.parse_args()
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
    print(json.dumps(machine), flush=True)
    tables = [summarise(compare(given, vocab_size)) for vocab_size in given.vocab_sizes]
    print("\n" + "\n\n".join(tables))


if __name__ == "__main__":
    main()
