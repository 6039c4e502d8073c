"""Hours, GPUs, GB and USD of a distillation at three sizes: ``python benchmarks/scale.py [--page docs/scale.md]``.

The arithmetic is in ``scale_model``; here are the numbers that go in, each with where it comes from, and the tables.
With ``--page`` the part of the page below its marker is written anew; a test compares both.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import scale_model as scale
from scale_model import Account, Corpus, Device, Model, Rates, Utilisation

MARKER = "<!-- below: python benchmarks/scale.py --page docs/scale.md -->\n"

SIZES = (Corpus(70_000), Corpus(1_000_000), Corpus(100_000_000))
GPUS = {70_000: 8, 1_000_000: 16, 100_000_000: 256}
"""Among which the work of each size is shared out."""

H100 = Device("H100 80 GB SXM", 989.4, 3350, 80, 450, 6.88, "AWS p5.48xlarge / 8, us-east-1, 2026-11-09")
A100 = Device("A100 80 GB SXM", 312, 2039, 80, 300, 3.43, "AWS p4de.24xlarge / 8, us-east-1, 2026-11-09")
L4 = Device("L4 24 GB", 121, 300, 24, 32, 0.80, "AWS g6.xlarge, us-east-1, rounded")

PROXY = Model("70B proxy", 70e9, layers=80, embeddings=2 * 128_256 * 8192, kv_bytes=2 * 80 * 8 * 128 * 2)
SAMPLING = {"batch_tokens": 81_920, "max_new_tokens": 512}
"""``proxy.preference``: its ``sampling_batch_tokens`` and ``max_new_tokens``."""
STUDENTS = (Model("1B student", 1e9), Model("3B student", 3e9), Model("8B student", 8e9))

ACCOUNT = Account(10_000, 30e6, 2.5, 10.0)
BATCH_DISCOUNT = 0.5

RATES = Rates(
    asked_per_s=200_000 / 91.8,
    journal_bytes=1_060 * 2**20 / 1e6 - 208,
    validated_per_s=100_000 / 34.2,
    store_bytes={20: 33.07, 50: 73.44, 128: 168.96},
    encoded_per_s={20: 381_914, 50: 187_707, 128: 75_260},
    ngram_bytes=462 * 2**20 / 20e6,
    counted_per_s=20e6 / 5.8,
)
MEASURED = (
    ("query engine", "200,000 answers in 91.8 s, one process", "teachers.md, `benchmarks/teacher/million.py`"),
    ("journal", "1,060 MiB for a million answers of 208 characters", "the same"),
    ("validation", "100,000 rows in 34.2 s, two cores", "validation.md, `benchmarks/validation.py`"),
    ("target store", "33.07, 73.44, 168.96 bytes a position at k = 20, 50, 128", "target-store.md"),
    (
        "writing it",
        "381,914, 187,707, 75,260 positions a second, one core",
        "the same, `benchmarks/targets/compare.py`",
    ),
    ("n-gram prior", "462 MiB and 5.8 s for 20 million tokens, two cores", "methods/prior.md"),
)
UTILISATION = Utilisation()
PATIENCE_H, DAY_H = 168.0, 24.0
CLAIM_GB = 400 * 2**30 / scale.GB
"""The claim of journal, checkpoints and what is being made, k8s/base/storage/journal.yaml."""
PLACED = Model("10B proxy", 10e9)
"""For which the shipped placements have the disk."""
NODE_GB, NODE_GPUS = 2_199.0, 8
"""Memory of a p5.48xlarge, and its H100s."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table; the first column is text."""
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def quantity(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def billions(parameters: float) -> str:
    """A model's size, as people say it, rounded down."""
    return f"{int(parameters / 1e8) / 10:g}B"


@dataclass(frozen=True)
class Work:
    """A stage's work on accelerators, in hours of one H100."""

    name: str
    hours: float


def works(corpus: Corpus, student: Model, device: Device = H100) -> list[Work]:
    """All stages that want accelerators, in their order."""
    training, forward = UTILISATION.training, UTILISATION.forward
    # Layers on one device after another: all are held while one works.
    spread, whole = (scale.least_devices(scale.weights_gb(PROXY, is_frozen=low), device) for low in (True, False))
    pairs = (
        ("proxy: SFT", scale.gpu_hours(scale.warmup_flop(corpus, PROXY), device, training)),
        ("proxy: its own texts", scale.sampling_hours(corpus, PROXY, device, UTILISATION, **SAMPLING)),
        ("proxy: DPO", scale.gpu_hours(scale.preference_flop(corpus, PROXY), device, training)),
        ("estimation", spread * scale.gpu_hours(scale.estimation_flop(corpus, PROXY), device, forward)),
        (student.name, scale.gpu_hours(scale.distillation_flop(corpus, student), device, training)),
        ("evaluation", whole * scale.gpu_hours(scale.evaluation_flop(corpus, PROXY, student), device, forward)),
    )
    return [Work(name, hours) for name, hours in pairs]


def inputs() -> Iterator[str]:
    """What goes in."""
    yield "## What goes in"
    yield ""
    yield "Measured here, on two cores without an accelerator:"
    yield ""
    yield from table(("what", "rate", "where"), MEASURED)
    yield ""
    yield "Data sheets and list prices:"
    yield ""
    head = ("device", "TFLOP/s, dense bfloat16", "GB/s", "GB", "link, GB/s one way", "USD an hour", "price")
    rows = ((d.name, quantity(d.tflops), quantity(d.gb_per_s), quantity(d.gb), quantity(d.link_gb_per_s),
             f"{d.usd_per_hour:.2f}", d.place) for d in (H100, A100, L4))  # fmt: skip
    yield from table(head, rows)
    yield ""
    corpus, account = SIZES[0], ACCOUNT
    yield (
        f"Assumed: {UTILISATION.training:.0%} of the data sheet's rate in training, {UTILISATION.forward:.0%} in "
        f"forward passes, {UTILISATION.sampling:.0%} of the roofline where the proxy writes, "
        f"{UTILISATION.link:.0%} of the links between the {NODE_GPUS} devices of a node that share the proxy, "
        f"batches of {SAMPLING['batch_tokens']:,} tokens that each of them writes together, of which the longest has "
        f"{SAMPLING['max_new_tokens']} (`sampling_batch_tokens`, `max_new_tokens`); texts of "
        f"{corpus.prompt_tokens} tokens in and {corpus.completion_tokens} out, each read once by every stage "
        f"(`split.mode: shared`); held out: a tenth, {corpus.most_heldout:,} at most; an account with "
        f"{account.requests_per_minute:,.0f} calls and {account.tokens_per_minute / 1e6:.0f} million tokens a minute "
        f"at {account.usd_in} and {account.usd_out:.0f} USD a million tokens in and out (gpt-4o's list price), "
        f"{BATCH_DISCOUNT:.0%} less in batches."
    )
    hiding = scale.hiding_tokens(PROXY, H100, devices=NODE_GPUS, utilisation=UTILISATION)
    yield ""
    yield (
        "Training steps are taken to be so large that gathering the shards hides behind the arithmetic: on H100s from "
        f"{quantity(hiding)} tokens a device on, which are batches of {math.ceil(NODE_GPUS * hiding / corpus.length)} "
        "texts, or half as many pairs."
    )


def teacher() -> Iterator[str]:
    """Asking and checking, which need no accelerator."""
    yield "## Teacher, journal, validation"
    yield ""
    head = (
        "teacher texts",
        "asking, h",
        "teacher, USD",
        "in batches, USD",
        "journal, GB",
        "with shards, GB",
        "validation, h",
    )
    rows = (
        (
            f"{corpus.texts:,}",
            quantity(scale.query_hours(corpus, ACCOUNT, RATES)),
            quantity(scale.query_usd(corpus, ACCOUNT)),
            quantity(scale.query_usd(corpus, ACCOUNT, discount=BATCH_DISCOUNT)),
            quantity(scale.journal_gb(corpus, RATES)),
            quantity(scale.journal_gb(corpus, RATES, is_sharded=True)),
            quantity(scale.validation_hours(corpus, RATES)),
        )
        for corpus in SIZES
    )
    yield from table(head, rows)


def accelerators() -> Iterator[str]:
    """Hours and USD of every stage."""
    yield "## Accelerators"
    yield ""
    yield "Hours of one H100; the last rows share all stages, with the 8B student, out among so many."
    yield ""
    yield from table(("stage", *(f"{corpus.texts:,}" for corpus in SIZES)), _stage_rows())


def _stage_rows() -> Iterator[tuple[str, ...]]:
    largest = STUDENTS[-1]
    by_size = [works(corpus, largest) for corpus in SIZES]
    for idx, work in enumerate(by_size[0]):
        if work.name == largest.name:
            for student in STUDENTS:
                yield (f"{student.name}, both arms", *(quantity(works(c, student)[idx].hours) for c in SIZES))
            continue
        yield (work.name, *(quantity(size[idx].hours) for size in by_size))
    totals = [sum(work.hours for work in size) for size in by_size]
    yield ("all, H100 hours", *(quantity(total) for total in totals))
    yield ("all, USD", *(quantity(total * H100.usd_per_hour) for total in totals))
    gpus = [GPUS[corpus.texts] for corpus in SIZES]
    yield ("H100s", *(str(count) for count in gpus))
    yield ("all, days on them", *(quantity(total / n / DAY_H) for total, n in zip(totals, gpus, strict=True)))
    slower = [sum(work.hours for work in works(corpus, largest, A100)) for corpus in SIZES]
    yield ("all on A100s, USD", *(quantity(total * A100.usd_per_hour) for total in slower))


def storage() -> Iterator[str]:
    """Bytes of what is kept."""
    yield "## Stores"
    yield ""
    head = ("teacher texts", *(f"targets k = {k}, GB" for k in RATES.store_bytes), "writing k = 50, core h",
            "n-gram prior, GB at most", "counting it, h")  # fmt: skip
    rows = (
        (
            f"{corpus.texts:,}",
            *(quantity(scale.store_gb(corpus, RATES, k)) for k in RATES.store_bytes),
            quantity(scale.encoding_core_hours(corpus, RATES, 50)),
            quantity(scale.ngram_gb(corpus, RATES)),
            quantity(scale.ngram_hours(corpus, RATES)),
        )
        for corpus in SIZES
    )
    yield from table(head, rows)


def memory() -> Iterator[str]:
    """What has to fit on accelerators, at any size of the corpus."""
    yield "## Memory of accelerators"
    yield ""
    yield (
        "Activations have the fifth that is left free. A model is float32 once it is loaded, 4 bytes a parameter, "
        "whatever its file holds; the layers of one that is frozen or under adapters are bfloat16, 2 bytes, where "
        "that is its `precision`, and score the same to the bit. The largest proxy of one device, embeddings left "
        "out:"
    )
    yield ""
    head = ("device", "`precision: bfloat16`", "`precision: float32`")
    sizes = ((scale.most_parameters(one), scale.most_parameters(one, precision="float32")) for one in (H100, A100, L4))
    names = (one.name for one in (H100, A100, L4))
    yield from table(head, ((name, *map(billions, pair)) for name, pair in zip(names, sizes, strict=True)))
    yield ""
    yield (
        "A larger one is shared out: in the alignment by `proxy.fsdp` among the processes of a node, in the "
        "estimation and the evaluation layer by layer over the devices of the pod, of which one works at a time. "
        "GB of the 70B proxy, activations, keys and values left out:"
    )
    yield ""
    yield from table(("what", "GB", "H100 80 GB SXM, at least"), _proxy_rows())
    yield ""
    yield "Students train in float32; FSDP shares them out among the processes of a TrainJob or torchrun:"
    yield ""
    head = ("what", "GB", "checkpoint, GB", *(f"{device.name}, at least" for device in (H100, L4)))
    yield from table(head, map(_student_row, STUDENTS))


def _proxy_rows() -> Iterator[tuple[str, ...]]:
    shared = scale.sharded_gb(PROXY, NODE_GPUS)
    frozen, whole = scale.weights_gb(PROXY, is_frozen=True), scale.weights_gb(PROXY)
    yield (f"alignment under adapters, each of {NODE_GPUS} devices", quantity(shared), str(NODE_GPUS))
    yield ("estimation, all devices", quantity(frozen), str(scale.least_devices(frozen, H100)))
    yield ("evaluation, all devices", quantity(whole), str(scale.least_devices(whole, H100)))
    yield ("the node's memory while it is loaded, by one process after another", quantity(whole), "")


def _student_row(student: Model) -> tuple[str, ...]:
    gb = scale.training_gb(student)
    least = (str(scale.least_devices(gb, device)) for device in (H100, L4))
    what = f"{student.name}, weights, gradients, moments"
    return (what, quantity(gb), quantity(scale.checkpoint_gb(student)), *least)


def disks() -> Iterator[str]:
    """What pods bring out of an object store."""
    yield "## Disk of a pod"
    yield ""
    yield (
        "GB of artifacts that a step's pod brings out of an object store and has on its node's disk, in `scratch` "
        f"of the placement, while it runs: a {PLACED.name}, targets of k = 50, the 8B student, one seed of each "
        "arm. Every further billion parameters of the proxy is 4 GB more, in all but the first and the last. "
        "`gpu.yaml` and `pools.yaml` give what 1,000,000 texts take; a pod that writes more is evicted."
    )
    yield ""
    found = [scale.artifacts_gb(corpus, RATES, proxy=PLACED, student=STUDENTS[-1]) for corpus in SIZES]
    rows = ((step, *(quantity(one[step]) for one in found)) for step in found[0])
    yield from table(("step", *(f"{corpus.texts:,}" for corpus in SIZES)), rows)


def claims() -> Iterator[str]:
    """What the workspace's claim has to hold."""
    yield "## Claim of the workspace"
    yield ""
    yield (
        "GB of `proxykd-journal`, which every step mounts: the journal with shards, and what the step that writes most "
        "has there until it is in the bucket, be it the proxy, the targets, or a student with its checkpoint and the "
        f"one before. `k8s/base/storage/journal.yaml` asks for {quantity(CLAIM_GB)} GB."
    )
    yield ""
    rows = (
        (f"{proxy.name}, {student.name}", *(quantity(_claim_gb(corpus, proxy, student)) for corpus in SIZES))
        for proxy, student in ((PLACED, STUDENTS[0]), (PLACED, STUDENTS[-1]), (PROXY, STUDENTS[-1]))
    )
    yield from table(("models", *(f"{corpus.texts:,}" for corpus in SIZES)), rows)


def _claim_gb(corpus: Corpus, proxy: Model, student: Model) -> float:
    return scale.claim_gb(corpus, RATES, proxy=proxy, student=student)


@dataclass(frozen=True)
class Strain:
    """A resource without shards, against what is bearable.

    Attributes:
        what: The resource.
        value: How much is needed.
        limit: How much is bearable.
        unit: Of both.
        answer: What the design does about it.
    """

    what: str
    value: float
    limit: float
    unit: str
    answer: str

    @property
    def ratio(self) -> float:
        """Above 1 it breaks."""
        return self.value / self.limit


def strains(corpus: Corpus) -> list[Strain]:
    """Every resource on one pod or one node of 8 H100, the tightest first."""
    hours = {work.name: work.hours / 8 for work in works(corpus, STUDENTS[-1])}
    alignment = sum(value for name, value in hours.items() if name.startswith("proxy"))
    found = [
        Strain("asking at the account's rate", scale.query_hours(corpus, ACCOUNT, RATES), DAY_H, "h",
               "shards share one account's rate, so only a higher one or `teacher.batch` helps; nothing is paid twice"),
        Strain("the workspace's claim", _claim_gb(corpus, PROXY, STUDENTS[-1]), CLAIM_GB, "GB",
               "a larger claim; without shards half of the journal, whose answers stay beside the one that they are "
               "gathered into"),
        Strain("validation in one pod", scale.validation_hours(corpus, RATES), DAY_H, "h",
               "rows stream in constant memory; a core more is a process more"),
        Strain("alignment on one node", alignment, PATIENCE_H, "h",
               "more nodes by a TrainJob, each with its shards; `proxy.preference.epochs` below 1; a smaller proxy"),
        Strain("the proxy on one H100", scale.weights_gb(PROXY, is_frozen=True), 0.8 * H100.gb, "GB",
               f"`proxy.fsdp`: {quantity(scale.sharded_gb(PROXY, NODE_GPUS))} GB on each of {NODE_GPUS}; estimation "
               "and evaluation spread it over their pod's devices by themselves"),
        Strain("the proxy in a node's memory", scale.weights_gb(PROXY), NODE_GB, "GB",
               "processes load it one after another, and keep a part each"),
        Strain("estimation on one node", hours["estimation"], DAY_H, "h",
               "shards, each its own pod; one that dies is done again alone; spot nodes will do"),
        Strain("the target store, k = 50, on a node's disk", scale.store_gb(corpus, RATES, 50), 1_000, "GB",
               "k = 20 takes less than half; mapped, so that memory stays level"),
        Strain("the n-gram prior in memory", scale.ngram_gb(corpus, RATES), 256, "GB",
               "mapped and shared by a node's pods, slower from disk; count a part of the corpus or lower `order`"),
        Strain("8B student on one node", hours["8B student"], PATIENCE_H, "h",
               "more nodes by a TrainJob, resumed from its checkpoints"),
    ]  # fmt: skip
    return sorted(found, key=lambda one: -one.ratio)


def breaking() -> Iterator[str]:
    """What breaks first at each size."""
    yield "## What breaks first"
    yield ""
    yield (
        "Every resource on a single pod, or on one node of 8 H100, against what is bearable there: a day for what "
        "feeds the rest, a week for a training, the named GB. Above 1 it breaks; the four tightest of each size:"
    )
    for corpus in SIZES:
        yield ""
        yield f"### {corpus.texts:,} teacher texts"
        yield ""
        rows = (
            (one.what, f"{quantity(one.value)} {one.unit}", f"{quantity(one.limit)} {one.unit}", quantity(one.ratio),
             one.answer)
            for one in strains(corpus)[:4]
        )  # fmt: skip
        yield from table(("what", "needed", "bearable", "ratio", "what the design does"), rows)


def check() -> Iterator[str]:
    """The arithmetic against the one figure of the paper's cost that is known."""
    pairs = Corpus(40_000, prompt_tokens=512, completion_tokens=512, most_heldout=0)
    hours = scale.gpu_hours(scale.preference_flop(pairs, PROXY), A100, UTILISATION.training)
    hours += scale.sampling_hours(pairs, PROXY, A100, UTILISATION, **SAMPLING)
    yield "## Against the paper"
    yield ""
    yield (
        f"A preference round of 40,000 texts of 1,024 tokens with a 70B proxy on eight A100s: {hours / 8:.0f} h by "
        "this arithmetic, about 28 h by a secondary source on the paper (arXiv:2401.07013)."
    )


def page() -> str:
    """All tables."""
    parts = (inputs, teacher, accelerators, storage, memory, disks, claims, breaking, check)
    return "\n\n".join("\n".join(part()) for part in parts) + "\n"


def main() -> None:
    """Print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="write the tables below this page's marker")
    path = parser.parse_args().page
    if path is None:
        print(page(), end="")
        return
    head, marker, _ = path.read_text(encoding="utf-8").partition(MARKER)
    if not marker:
        raise SystemExit(f"expected the line {MARKER.strip()!r} in {path}")
    path.write_text(head + marker + "\n" + page(), encoding="utf-8")


if __name__ == "__main__":
    main()
