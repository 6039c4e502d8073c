"""Peak memory of every stage that reads or writes row by row, over inputs of growing size.

    python benchmarks/memory.py [--rows 1000 10000 50000] [--asked 1000 5000 20000] [--texts 5000 25000 100000]

    prompts, validation, tokenizing   over ``--rows`` generated rows of about 1 kB
    query                             ``--asked`` prompts to the embedded teacher over HTTP, with the journal
    targets                           ``--texts`` samples of 64 positions and 10 tokens each through the writer, then
                                      a tenth of them at random through the reader; the positions come from no model

Every measurement runs in a process of its own. The tables show the peak of its private memory, libraries included,
and the rate. The embedded teacher serves from another process, which is not counted. Neither are pages of
memory-mapped files where the system tells them apart (Linux does): it can take them back at any time. Memory that
does not grow with the input shows as columns that stay level.
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
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proxykd.artifacts import CompletionSet, PromptSet, ValidatedSet, seal
from proxykd.config import RunSpec
from proxykd.config.prompts import EmbeddedPromptsSpec, JsonlPromptsSpec
from proxykd.data.prompts import iter_recorded, load_prompts
from proxykd.estimation.weights import SampleWeights
from proxykd.records import Completion, Outcome
from proxykd.targets.codec import Positions
from proxykd.targets.reader import TargetReader
from proxykd.targets.writer import TargetWriter

TEXT_POSITIONS, TOP_K, VOCAB_SIZE = 64, 10, 4096


def write_corpus(path: Path, num_rows: int) -> None:
    """``num_rows`` prompts of 40 words and completions of 150, drawn from 5000 words."""
    rng = Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_rows):
            row = {"prompt": " ".join(rng.choices(words, k=40)), "completion": " ".join(rng.choices(words, k=150))}
            file.write(json.dumps(row) + "\n")


def prepare_rows(folder: Path, num_rows: int) -> None:
    """Write everything that prompts, validation and tokenizing read."""
    write_corpus(folder / "rows.jsonl", num_rows)
    spec = JsonlPromptsSpec(path=folder / "rows.jsonl")
    load_prompts(spec, output=folder / "prompts")
    completions = CompletionSet(folder / "completions")
    completions.write(_completions(spec))
    seal(completions)


def _completions(spec: JsonlPromptsSpec) -> Iterator[Completion]:
    for prompt, text in iter_recorded(spec, "completion"):
        yield Completion(prompt.prompt_id, 0, Outcome.OK, "", text, "stop", 0, 0, 0.0, "generated", "")


def prepare_asked(folder: Path, num_prompts: int) -> None:
    """Write the prompts that the embedded teacher is asked."""
    from proxykd.teacher.query import collect_prompts

    collect_prompts(EmbeddedPromptsSpec(count=num_prompts), seed=0, output=folder / "prompts")


def prepare_texts(folder: Path, num_texts: int) -> None:
    """Write how many texts there are."""
    (folder / "num_texts").write_text(str(num_texts))


class Table(NamedTuple):
    """Parts that are measured on the same inputs.

    Attributes:
        sizes: Sizes of the inputs.
        prepare: (folder, size) -> the inputs are in the folder.
        parts: Names of the parts, in the order in which they run.
    """

    sizes: tuple[int, ...]
    prepare: Callable[[Path, int], None]
    parts: tuple[str, ...]


TABLES = {
    "rows": Table((1_000, 10_000, 50_000), prepare_rows, ("prompts", "validation", "tokenizing")),
    "asked": Table((1_000, 5_000, 20_000), prepare_asked, ("query",)),
    "texts": Table((5_000, 25_000, 100_000), prepare_texts, ("targets",)),
}


def measure(part: str, folder: Path) -> tuple[float, float]:
    """Peak MiB and seconds of one part, in this process."""
    works = {"prompts": _prompts, "validation": _validation, "tokenizing": _tokenizing}
    work = {**works, "query": _query, "targets": _targets}[part](folder)
    peak = Peak()
    start = time.perf_counter()
    work()
    return peak.stop(), time.perf_counter() - start


def _prompts(folder: Path) -> Callable[[], object]:
    spec = JsonlPromptsSpec(path=folder / "rows.jsonl")
    return lambda: load_prompts(spec, output=folder / "prompts-measured")


def _validation(folder: Path) -> Callable[[], object]:
    from proxykd.data.judging import Environment
    from steps.adapters.great_expectations_gate import Folders, validate

    run = _run()

    def work() -> object:
        prompts, completions = PromptSet(folder / "prompts"), CompletionSet(folder / "completions")
        output = Folders(folder / "validated", folder / "docs", folder / "quarantine")
        return validate(prompts, completions, run, output, Environment(folder / "scratch"))

    return work


def _run() -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": "memory",
            "prompts": {"kind": "embedded"},
            "teacher": {"kind": "embedded"},
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "memory"},
        }
    )


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


def _query(folder: Path) -> Callable[[], object]:
    from proxykd.teacher.query import query_teacher

    run, prompts = _run(), PromptSet(folder / "prompts")
    return lambda: query_teacher(prompts, run, journal_path=folder / "journal.sqlite", output=folder / "completions")


def _targets(folder: Path) -> Callable[[], object]:
    num_texts = int((folder / "num_texts").read_text())

    def work() -> float:
        _write_targets(folder, num_texts)
        reader, rng = TargetReader(folder / "targets"), Random(0)
        indices = (rng.randrange(num_texts) for _ in range(num_texts // 10))
        return sum(float(reader.get(f"{idx:016x}", 0).tail_logprob.sum()) for idx in indices)

    return work


def _write_targets(folder: Path, num_texts: int) -> None:
    rng, weights = np.random.default_rng(0), SampleWeights("mean")
    writer = TargetWriter(folder / "targets", scratch=folder / "scratch", top_k=TOP_K, vocab_size=VOCAB_SIZE)
    for idx in range(num_texts):
        first = rng.integers(VOCAB_SIZE, size=(TEXT_POSITIONS, 1), dtype=np.int32)
        token_ids = (first + 7 * np.arange(TOP_K, dtype=np.int32)) % VOCAB_SIZE
        probs = rng.random((TEXT_POSITIONS, TOP_K + 1), dtype=np.float32)
        logprobs = np.log(probs / probs.sum(1, keepdims=True))
        logprob = float(logprobs[:, 0].sum())
        weights.observe(np.array([logprob]), np.array([TEXT_POSITIONS]))
        positions = Positions(token_ids, logprobs[:, 1:], logprobs[:, 0])
        writer.add(f"{idx:016x}", 0, positions, sequence_logprob=logprob)
    writer.finish(weights.weigh, weights.facts)


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


def print_table(name: str, table: Table, sizes: list[int]) -> None:
    """Measure a table and print it, a line a size."""
    print(f"{name:>8}" + "".join(f"{part + ' MiB':>18}{name + '/s':>10}" for part in table.parts))
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            table.prepare(Path(folder), size)
            cells = []
            for part in table.parts:
                command = [sys.executable, __file__, "--measure", part, folder]
                mib, seconds = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                cells.append(f"{mib:>18.0f}{size / seconds:>10.0f}")
        print(f"{size:>8}" + "".join(cells), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, table in TABLES.items():
        what = f"sizes for {', '.join(table.parts)}; none = leave out"
        parser.add_argument(f"--{name}", type=int, nargs="*", default=list(table.sizes), help=what)
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    for name, table in TABLES.items():
        if sizes := getattr(arguments, name):
            print_table(name, table, sizes)


if __name__ == "__main__":
    main()
