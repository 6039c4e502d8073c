"""A step whose training others do needs no room for what trains."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from proxykd.artifacts import SplitSet, ValidatedSet, read_json
from proxykd.config import RunSpec
from proxykd.launching.torchrun import Torchrun
from proxykd.models.loading import load_saved
from proxykd.student.training import distill_student

Corpus = tuple[ValidatedSet, SplitSet]
MakeRun = Callable[..., RunSpec]
CHECKOUT = Path(__file__).resolve().parents[2]
HEAVY = ("transformers.modeling_utils", "proxykd.models.loading", "proxykd.student.loop", "proxykd.proxy.alignment")
CODE = """
import json, sys
from pathlib import Path
from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.launching.torchrun import Torchrun
from steps.align_proxy import align
from proxykd.student.training import distill_student as distill

told = json.load(open(sys.argv[1]))
sets = ValidatedSet(Path(told["validated"])), SplitSet(Path(told["splits"]))
run, launcher = RunSpec.view(told["run"]), Torchrun(1)
for name in ("student", "proxy", "scratch"):
    Path(told["folder"], name).mkdir()
folders = {"output": Path(told["folder"], "student"), "scratch": Path(told["folder"], "scratch")}
distill(*sets, None, run, arm="sft", launcher=launcher, **folders)
align(*sets, run, launcher=launcher, output=Path(told["folder"], "proxy"), scratch=folders["scratch"])
print(json.dumps([name for name in told["heavy"] if name in sys.modules]))
"""


@pytest.mark.integration
def test_what_trains_is_imported_by_those_who_train_alone(corpus: Corpus, make_run: MakeRun, tmp_path: Path) -> None:
    run: RunSpec = make_run(student={"steps": 2}, proxy=unaligned())
    validated, splits = corpus
    told = {"validated": str(validated.path), "splits": str(splits.path), "folder": str(tmp_path), "heavy": HEAVY}
    file = tmp_path / "told.json"
    file.write_text(json.dumps({**told, "run": run.model_dump(mode="json")}))
    script = tmp_path / "step.py"  # ZenML asks where the main module lies
    script.write_text(CODE)
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, script, file], env=environ, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert load_saved(tmp_path / "student" / "seed-0" / "model")[0].num_parameters() > 0
    assert (tmp_path / "proxy" / "model" / "model.safetensors").is_file()


@pytest.mark.long  # two processes train as one does in test_launch.py
def test_a_search_that_others_make_chooses_what_this_process_chooses(
    corpus: Corpus, make_run: MakeRun, tmp_path: Path
) -> None:
    """Scored where it was trained, the winner is the same, with the same weights."""
    run: RunSpec = make_run(student={"steps": 3, "learning_rates": [1e-5, 1e-3], "seeds": [1]})
    found = {}
    for name, launcher in {"here": None, "there": Torchrun(2)}.items():
        for part in ("output", "scratch"):
            (tmp_path / name / part).mkdir(parents=True)
        folders = {part: tmp_path / name / part for part in ("output", "scratch")}
        student = distill_student(*corpus, None, run, arm="sft", launcher=launcher, **folders)
        record = read_json(student.path / "training.json")
        assert sorted(path.name for path in student.path.glob("*") if path.is_dir()) == ["seed-1"]
        found[name] = record, load_saved(student.path / "seed-1" / "model")[0].state_dict()
    (here, ours), (there, theirs) = found["here"], found["there"]
    assert there["learning_rate"] == here["learning_rate"] == 1e-3
    for own, other in zip(here["search"], there["search"], strict=True):
        assert other["development_nll"] == pytest.approx(own["development_nll"], rel=1e-4)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


def unaligned() -> dict[str, object]:
    """A proxy that is measured and written as it is."""
    model = {"source": "embedded:proxy", "num_layers": 1, "max_seq_tokens": 160}
    return {"model": model, "warmup": None, "preference": None}
