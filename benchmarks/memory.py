"""Peak memory of reading prompts, validating and tokenising, over corpora of growing size.

    python benchmarks/memory.py [--rows 1000 10000 50000]

Every measurement runs in a process of its own on generated rows of about 1 kB. The table shows the peak of its
private memory, libraries included, and the rate. Pages of memory-mapped files are not counted where the system tells
them apart (Linux does): it can take them back at any time. Memory that does not grow with the rows shows as columns
that stay level.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proxykd.artifacts import CompletionSet, PromptSet, ValidatedSet, seal
from proxykd.config import RunSpec
from proxykd.config.teacher import JsonlPromptsSpec
from proxykd.data.prompts import iter_recorded, load_prompts
from proxykd.records import Completion, Outcome

PARTS = ("prompts", "validation", "tokenizing")


def write_corpus(path: Path, num_rows: int) -> None:
    """``num_rows`` prompts of 40 words and completions of 150, drawn from 5000 words."""
    rng = Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_rows):
            row = {"prompt": " ".join(rng.choices(words, k=40)), "completion": " ".join(rng.choices(words, k=150))}
            file.write(json.dumps(row) + "\n")


def prepare(folder: Path, num_rows: int) -> None:
    """Write everything that the measured parts read."""
    write_corpus(folder / "rows.jsonl", num_rows)
    spec = JsonlPromptsSpec(path=folder / "rows.jsonl")
    load_prompts(spec, output=folder / "prompts")
    completions = CompletionSet(folder / "completions")
    completions.write(_completions(spec))
    seal(completions)


def _completions(spec: JsonlPromptsSpec) -> Iterator[Completion]:
    for prompt, text in iter_recorded(spec, "completion"):
        yield Completion(prompt.prompt_id, 0, Outcome.OK, "", text, "stop", 0, 0, 0.0, "generated", "")


def measure(part: str, folder: Path) -> tuple[float, float]:
    """Peak MiB and seconds of one part, in this process."""
    work = {"prompts": _prompts, "validation": _validation, "tokenizing": _tokenizing}[part](folder)
    peak = Peak()
    start = time.perf_counter()
    work()
    return peak.stop(), time.perf_counter() - start


def _prompts(folder: Path) -> Callable[[], object]:
    spec = JsonlPromptsSpec(path=folder / "rows.jsonl")
    return lambda: load_prompts(spec, output=folder / "prompts-measured")


def _validation(folder: Path) -> Callable[[], object]:
    from steps.adapters.great_expectations_gate import validate

    run = RunSpec.model_validate(
        {
            "name": "memory",
            "prompts": {"kind": "embedded"},
            "teacher": {"kind": "embedded"},
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "memory"},
        }
    )

    def work() -> object:
        prompts, completions = PromptSet(folder / "prompts"), CompletionSet(folder / "completions")
        return validate(
            prompts, completions, run, output=folder / "validated", docs=folder / "docs", scratch=folder / "scratch"
        )

    return work


def _tokenizing(folder: Path) -> Callable[[], object]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from proxykd.data.tokenizing import TokenizedCorpus

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({symbol: idx for idx, symbol in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")

    def work() -> int:
        rows = ValidatedSet(folder / "validated").rows()
        corpus = TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=2048, path=folder / "corpus.arrow")
        return sum(int(example.completion_ids[0]) for example in corpus)

    return work


class Peak:
    """The peak of this process's private memory from now on, looked at every 20 ms."""

    def __init__(self) -> None:
        """Start looking."""
        self._mib, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The peak in MiB."""
        self._done.set()
        self._thread.join()
        return self._mib

    def _watch(self) -> None:
        while True:
            self._mib = max(self._mib, _private_mib())
            if self._done.wait(0.02):
                return


def _private_mib() -> float:
    status = Path("/proc/self/status")
    if not status.exists():  # macOS counts in bytes, and mapped pages with the rest
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 50_000], help="sizes of the corpora")
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    print(f"{'rows':>8}" + "".join(f"{part + ' MiB':>18}{'rows/s':>10}" for part in PARTS))
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), num_rows)
            cells = []
            for part in PARTS:
                command = [sys.executable, __file__, "--measure", part, folder]
                mib, seconds = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                cells.append(f"{mib:>18.0f}{num_rows / seconds:>10.0f}")
        print(f"{num_rows:>8}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
