"""Time and memory of the validation gate with every expectation on, over rows with known defects.

    python benchmarks/validation.py [--rows 100000] [--processes 2] [--plant 0.1]

Every row has a prompt of 20 to 60 words and a completion of 150 to 300, of English words; of each defect a share of
the rows is planted (``--plant``), several on one row by chance. Printed are seconds by the clock and of the processors,
the peak of resident memory (this process, and the processes that measure texts at their largest, added up), and how
many of the planted defects were found. Rows are written before the clock starts.
"""

import argparse
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from proxykd.artifacts import CompletionSet, PromptSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.data.judging import Environment
from proxykd.models.tokenizers import load_counter
from proxykd.records import Completion, Message, Outcome, Prompt

_ENGLISH = """
    the of and to a in is that it was for on are as with they be at one have this from or had by hot but some what
    there we can out other were all your when up use word how said an each she which do their time if will way
    about many then them would write like so these her long make thing see him two has look more day could go come
    did my sound no most number who over know water than call first people may down side been now find any new
    work part take get place made live where after back little only round man year came show every good me give
    our under name very through just form much great think say help low line before turn cause same mean differ
    move right boy old too does tell sentence set three want air well also play small end put home read hand port
    large spell add even land here must big high such follow act why ask men change went light kind off need house
    picture try us again animal point mother world near build self earth father head stand own page should country
    found answer school
"""
_GERMAN = """
    und der die das nicht ist mit für auf eine werden wurde haben sich auch nach über durch zwischen noch
"""
WORDS, GERMAN = _ENGLISH.split(), _GERMAN.split()
DEFECTS = (
    "refused", "truncated", "cut_off", "too_long", "damaged", "other_language", "secret", "personal_data", "duplicate",
    "near_duplicate", "overlap", "failed",
)  # fmt: skip
EVALUATION = " ".join(random.Random(1).choices(WORDS, k=40))


def write_rows(folder: Path, num_rows: int, share: float) -> Counter[str]:
    """Write prompts and completions; how many rows have each planted defect."""
    rng, planted = random.Random(0), Counter[str]()
    (folder / "evaluation.txt").write_text(EVALUATION + "\n")
    prompts, completions = PromptSet(folder / "prompts"), CompletionSet(folder / "completions")
    rows = list(_rows(rng, num_rows, share, planted))
    prompts.write(prompt for prompt, _ in rows)
    completions.write(completion for _, completion in rows)
    seal(prompts)
    seal(completions)
    return planted


def _rows(
    rng: random.Random, num_rows: int, share: float, planted: Counter[str]
) -> Iterator[tuple[Prompt, Completion]]:
    last = earlier = ""
    for idx in range(num_rows):
        defects = {defect for defect in DEFECTS if idx and rng.random() < share}
        question = f"{idx} {_words(rng, rng.randint(20, 60))}"
        if "duplicate" in defects:  # but for white space
            question, defects = last + " " * idx, {"duplicate"}
        elif "near_duplicate" in defects:
            question = f"{last} {idx}"
        planted.update(defects if "failed" not in defects else {"failed"})
        prompt = Prompt.build([Message("user", question)])
        completion = _completion(rng, prompt, defects)
        if "duplicate" in defects:
            completion = replace(completion, text=earlier)
        elif not defects:
            last, earlier = question, completion.text
        yield prompt, completion


def _completion(rng: random.Random, prompt: Prompt, defects: set[str]) -> Completion:
    text = _words(rng, rng.randint(150, 300)).capitalize()
    if "other_language" in defects:
        text = _words(rng, 200, GERMAN)
    inserted = {
        "damaged": "donâ€™t",
        "secret": "ghp_" + "a1B2" * 9,
        "personal_data": "jane.doe@acme.io",
        "overlap": EVALUATION,
    }
    for defect, piece in inserted.items():
        if defect in defects:
            text += f" {piece}"
    text = f"I'm sorry, but I can't help with that. {text}" if "refused" in defects else text
    text = text + " more" * 400 if "too_long" in defects else text
    text += "," if "cut_off" in defects else "."
    outcome = Outcome.TRUNCATED if "truncated" in defects else Outcome.OK
    if "failed" in defects:
        outcome, text = Outcome.FAILED, ""
    return Completion(prompt.prompt_id, 0, outcome, "", text, "stop", 0, 0, 0.0, "generated", "")


def _words(rng: random.Random, count: int, words: list[str] = WORDS) -> str:
    return " ".join(rng.choices(words, k=count))


def make_run(folder: Path) -> RunSpec:
    """Everything that the section `validation` can measure without a model, with lengths in tokens."""
    return RunSpec.model_validate(
        {
            "name": "validation",
            "prompts": {"kind": "embedded"},
            "teacher": {"kind": "embedded"},
            "validation": {
                "languages": ["en"], "max_chars": 2000, "max_tokens": 1500,
                "evaluation_files": [folder / "evaluation.txt"],
            },
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "validation"},
        }
    )  # fmt: skip


class PeakRss:
    """The largest sum of the resident memory of this process and of those below it, looked at every 50 ms."""

    def __init__(self) -> None:
        """Start looking."""
        self.mib, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The peak in MiB."""
        self._done.set()
        self._thread.join()
        return self.mib

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.mib = max(self.mib, sum(map(_rss_mib, _family())))


def _family() -> list[str]:
    found = ["self"]
    for task in Path("/proc/self/task").iterdir():
        found += (task / "children").read_text().split()
    return found


def _rss_mib(pid: str) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def cpu_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2, help="that measure texts; 1 = none beside this one")
    parser.add_argument("--plant", type=float, default=0.1, help="share of the rows with each defect")
    arguments = parser.parse_args()
    from steps.adapters.great_expectations_gate import Folders, validate

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = write_rows(folder, arguments.rows, arguments.plant)
        output = Folders(folder / "validated", folder / "docs", folder / "quarantine")
        counter = partial(load_counter, "embedded:student")
        around = Environment(folder / "scratch", load_counter=counter, num_processes=arguments.processes)
        peak, wall, cpu = PeakRss(), time.perf_counter(), cpu_seconds()
        prompts, completions = PromptSet(folder / "prompts"), CompletionSet(folder / "completions")
        found = validate(prompts, completions, make_run(folder), output, around)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        print(f"rows {arguments.rows}  seconds {wall:.1f}  CPU seconds {cpu:.1f}  peak RSS {peak.stop():.0f} MiB")
        rules = read_json(found.result.path / "result.json")["rules"]
        print(f"{'defect':>16}{'planted':>10}{'broken':>10}{'measured':>10}")
        for defect in DEFECTS:
            counts = rules[defect]
            print(f"{defect:>16}{planted[defect]:>10}{counts['broken']:>10}{counts['measured']:>10}")


if __name__ == "__main__":
    main()
