"""What a TrainJob's launcher adds to a training: seconds and memory, beside bare ``torchrun`` of the same job.

    python benchmarks/cluster/launcher.py [--steps 100] [--repeats 3] [--texts 200]

The same job in two processes, in turn: started by ``torchrun`` itself, and as a TrainJob with one pod on the stand-in
cluster of the tests, whose kubelet runs a pod's command as a process of this machine. What the launcher adds is the
time of the launch outside of the pod's own process: staging files, making the TrainJob, noticing the end, clearing up,
and the stand-in's controllers; no image is pulled and no queue waited in. It is taken from within one launch, as two
runs of the same training differ by more on a busy machine.

The launch is made by what a pipeline's step does, in a process of its own: ZenML's entry point of steps is imported,
the arm ``sft`` tokenizes the texts, launches one training and writes the artifact. Printed are the peaks of that
process, of one that imports ZenML's entry point alone and of one with the launcher's modules beside it. Ends with
status 1 where the launch or the launcher's modules miss a limit. What a whole pod of the step takes beside other steps'
pods, which hold ZenML's stack too, is measured by ``pods.py``.
"""

import argparse
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

if TYPE_CHECKING:
    from proxykd.config import RunSpec
    from proxykd.launching.work import Launcher

NAMESPACE, PROCESSES = "proxykd", 2
LIMIT_S, LIMIT_MIB = 2.0, 300.0
ENTRY_POINT = ("zenml.entrypoints.step_entrypoint_configuration", "zenml.entrypoints.entrypoint")
MODULES = {
    "ZenML alone": ENTRY_POINT,
    "and the launcher": (*ENTRY_POINT, "cluster.api", "cluster.train_job"),
}


def run_of(steps: int) -> "RunSpec":
    """A short run of the tiny student, which learns from texts alone."""
    from proxykd.config import RunSpec

    model = {"source": "embedded:student", "num_layers": 1, "max_seq_tokens": 160}
    values = {
        "name": "launcher",
        "prompts": {"kind": "embedded"},
        "teacher": {"kind": "embedded"},
        "proxy": {"model": {"source": "embedded:proxy"}},
        "registry": {"model_name": "launcher"},
        "student": {"model": model, "steps": steps, "optimizer": {"batch_size": 4, "learning_rate": 1e-3}},
    }
    return RunSpec.model_validate(values)


def write_texts(folder: Path, texts: int, steps: int) -> dict[str, Any]:
    """The embedded teacher's texts as artifacts ``validated`` and ``splits``; the job that they come to."""
    from proxykd.artifacts import ValidatedSet, seal
    from proxykd.data.splits import build_splits, select_rows, sides_for
    from proxykd.data.tokenizing import TokenizedCorpus
    from proxykd.models.tokenizers import load_tokenizer
    from proxykd.records import Outcome, ValidatedRow
    from proxykd.teacher.problems import generate_prompts, sample_completion

    rng, run = random.Random(0), run_of(steps)
    rows = ((one, sample_completion(one.messages[-1].content, rng)) for one in generate_prompts(texts, 0))
    for name in ("validated", "splits"):
        (folder / name).mkdir()
    validated = ValidatedSet(folder / "validated")
    validated.write(
        ValidatedRow(one.prompt_id, 0, one.messages, text, one.task, one.reference, Outcome.OK, "keep", "")
        for one, text in rows
    )
    seal(validated)
    splits = build_splits(validated, run.split, output=folder / "splits")
    taught = select_rows(validated, splits, sides_for("sft", run.split))
    corpus = folder / "rows.arrow"
    TokenizedCorpus.build(taught, load_tokenizer(run.student.model), max_seq_tokens=160, path=corpus)
    told = {"student": run.student.model_dump(mode="json"), "alpha": 0.0, "learning_rate": 1e-3, "seed": 0}
    return {**told, "corpus": str(corpus), "targets": None, "checkpoint": None}


def run_bare(job: dict[str, Any], folder: Path) -> float:
    """Seconds of ``torchrun`` from its start to its end."""
    from proxykd.launching.work import write_job
    from proxykd.student.launch import Job
    from tests.support.launched import work_of

    output = Path(tempfile.mkdtemp(dir=folder))
    work = work_of(Job(**job), output / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    began = time.perf_counter()
    # Its processes end when their standard input does.
    with subprocess.Popen(
        [*command, "-m", work.module, str(write_job(work, output))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as torchrun:
        if status := torchrun.wait():
            sys.exit(f"torchrun ended with status {status}")
    return time.perf_counter() - began


def run_launched(folder: Path, kubeconfig: Path, home: Path, steps: int) -> dict[str, float]:
    """Seconds of the launch, and the peak memory of the step's process."""
    environ = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    command = [sys.executable, __file__, "--launch", str(folder), "--home", str(home), "--steps", str(steps)]
    finished = subprocess.run(command, env=environ, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(finished.stderr)
    read: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return read


def launch(folder: Path, home: Path, steps: int) -> dict[str, float]:
    """What ``run_launched`` runs in a process of its own: the arm, as the step's pod does it."""
    for module in ENTRY_POINT:
        importlib.import_module(module)

    from benchmarks.cluster.watching import peak_mib
    from cluster.api import ClusterApi
    from cluster.train_job import TrainJobLauncher
    from proxykd.artifacts import SplitSet, ValidatedSet
    from proxykd.config.launcher import LauncherSpec
    from proxykd.student.training import distill_student as distill

    timed = Timed(
        TrainJobLauncher(
            LauncherSpec(kind="trainjob", processes_per_node=PROCESSES, image="image"), ClusterApi.connect(), home
        )
    )
    with tempfile.TemporaryDirectory() as name:
        output, scratch = Path(name) / "output", Path(name) / "scratch"
        output.mkdir()
        scratch.mkdir()
        sets = ValidatedSet(folder / "validated"), SplitSet(folder / "splits")
        distill(*sets, None, run_of(steps), arm="sft", output=output, scratch=scratch, launcher=timed)
    return {"seconds": timed.seconds, "processor": timed.processor, "peak_mib": peak_mib()}


@dataclass
class Timed:
    """A launcher, and what its launch took of the clock and of this process."""

    launcher: "Launcher"
    seconds: float = 0.0
    processor: float = 0.0

    def launch(self, work: Any) -> Any:
        """As the launcher's own."""
        began, before = time.perf_counter(), time.process_time()
        found = self.launcher.launch(work)
        self.seconds, self.processor = time.perf_counter() - began, time.process_time() - before
        return found


def peaks_mib() -> dict[str, float]:
    """Peak of a fresh process that imports what a step's pod does, by what it imports."""
    found = {}
    for name, modules in MODULES.items():
        command = [sys.executable, __file__, "--import", *modules]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found[name] = float(told.splitlines()[-1])
    return found


def compare(steps: int, repeats: int, texts: int) -> None:
    """Run both in turn and print the table."""
    from benchmarks.cluster.watching import watched
    from tests.k8s.cluster import cluster

    runtime = yaml.safe_load((CHECKOUT / "k8s/trainjob/training-runtime.yaml").read_text())
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "proxykd-step"}}
    bare, launched = list[float](), list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as name, cluster(Path(name) / "cluster") as double:
        folder, home = Path(name), double.kubelet.machine.claim(NAMESPACE, "proxykd-journal")
        home.mkdir(parents=True)
        double.api.apply(runtime, account, *map(claim, ("proxykd-journal", "proxykd-models")), namespace=NAMESPACE)
        job = write_texts(folder, texts, steps)
        kubeconfig = double.api.kubeconfig(NAMESPACE)
        run_bare(job, folder)  # files and compiled modules into the caches
        for _ in range(repeats):
            bare.append(run_bare(job, folder))
            with watched(double.kubelet, 0.005) as pods:
                one = run_launched(folder, kubeconfig, home, steps)
            launched.append({**one, "added": one["seconds"] - sum(pod.seconds for pod in pods.values())})
    report(bare, launched, peaks_mib())


def claim(name: str) -> dict[str, Any]:
    """A volume claim of the double."""
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def report(bare: list[float], launched: list[dict[str, float]], peaks: dict[str, float]) -> None:
    """Medians, and whether what is added keeps below the limits."""
    whole, added = [one["seconds"] for one in launched], [one["added"] for one in launched]
    processor = [one["processor"] for one in launched]
    rows = {"torchrun alone": bare, "as a TrainJob": whole, "of it launcher": added, "its processor": processor}
    for name, values in rows.items():
        print(f"{name:15}{statistics.median(values):7.2f} s  ({', '.join(f'{one:.2f}' for one in values)})")
    alone = peaks["ZenML alone"]
    peaks = {**peaks, "the whole step": max(one["peak_mib"] for one in launched)}
    for name, peak in peaks.items():
        print(f"{name:16}{peak:7.0f} MiB" + (f", {peak - alone:.0f} more" if peak != alone else ""))
    if missed := shortfalls(statistics.median(added), peaks["and the launcher"] - alone):
        sys.exit("\n".join(missed))


def shortfalls(added_s: float, added_mib: float) -> list[str]:
    """What misses its limit."""
    pairs = ((added_s, LIMIT_S, "s"), (added_mib, LIMIT_MIB, "MiB"))
    return [f"expected at most {limit:g} {unit} more, got {got:.2f}" for got, limit, unit in pairs if got > limit]


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--launch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--import", nargs="+", dest="modules", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "PROXYKD_PROGRESS": "off"}
    if arguments.launch:
        print(json.dumps(launch(arguments.launch, arguments.home, arguments.steps)))
    elif arguments.modules:
        for module in arguments.modules:
            importlib.import_module(module)
        from benchmarks.cluster.watching import peak_mib

        print(peak_mib())
    else:
        compare(arguments.steps, arguments.repeats, arguments.texts)


if __name__ == "__main__":
    main()
