"""Several processes that share an alignment end where one ends, and one that is cut short ends there too."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from proxykd.artifacts import ProxyModel, SplitSet, ValidatedSet, read_json
from proxykd.config import RunSpec
from proxykd.launching.torchrun import Torchrun
from proxykd.launching.work import InProcess, Launcher, Work, read_job, write_job
from proxykd.models.loading import load_model, load_saved
from proxykd.proxy import alignment
from proxykd.proxy.launch import align_proxy
from proxykd.proxy.worker import take_part
from tests.support.together import launch_together

pytestmark = pytest.mark.integration
T = TypeVar("T")
Corpus = tuple[ValidatedSet, SplitSet]
Align = Callable[..., ProxyModel]


def specify(*, batch_size: int = 7, sharing: dict[str, bool] | None = None, **model: Any) -> RunSpec:
    optimizer = {"learning_rate": 1e-3, "batch_size": batch_size}
    return RunSpec.view(
        {
            "seed": 0,
            "split": {"mode": "shared", "heldout": 0.05, "development": 0.2},
            "proxy": {
                **(sharing or {}),
                "model": {"source": "embedded:student", "num_layers": 1, "max_seq_tokens": 120, **model},
                "warmup": {"optimizer": optimizer, "epochs": 0.1},
                # All but greedy, as several processes draw other completions than one.
                "preference": {
                    "optimizer": {**optimizer, "learning_rate": 1e-4},
                    "rounds": 2,
                    "epochs": 0.1,
                    "max_new_tokens": 12,
                    "temperature": 1e-4,
                },
            },
            "staging": None,
        }
    )


def make(corpus: Corpus, folder: Path, run: RunSpec, launcher: Launcher, checkpoints: Path | None = None) -> ProxyModel:
    output, scratch = folder / "output", folder / "scratch"
    for own in (output, scratch):
        own.mkdir(parents=True, exist_ok=True)
    return align_proxy(*corpus, run, output=output, scratch=scratch, checkpoints=checkpoints, launcher=launcher)


@pytest.fixture
def align(corpus: Corpus, tmp_path: Path) -> Align:
    def made(name: str, run: RunSpec, launcher: Launcher, *, checkpoints: Path | None = None) -> ProxyModel:
        return make(corpus, tmp_path / name, run, launcher, checkpoints)

    return made


def weights(proxy: ProxyModel) -> dict[str, torch.Tensor]:
    return dict(load_saved(proxy.path / "model")[0].state_dict())


def facts(proxy: ProxyModel) -> list[dict[str, Any]]:
    stages = read_json(proxy.path / "fidelity.json")["stages"]
    return [{key: value for key, value in stage.items() if key != "seconds"} for stage in stages]


LORA = {"rank": 2, "dropout": 0.0}


ALONE: dict[str, dict[str, Any]] = {
    "whole": {"batch_size": 3},
    "adapters": {"batch_size": 1, "lora": LORA},
    "low": {"batch_size": 3, "lora": LORA, "precision": "bfloat16"},
}
SHARED: dict[str, dict[str, Any]] = {
    "whole": ALONE["whole"],
    "adapters": ALONE["adapters"],
    "whole, sharded": {**ALONE["whole"], "sharing": {"fsdp": True, "gradient_checkpointing": True}},
    "adapters, sharded": {**ALONE["adapters"], "sharing": {"fsdp": True}},
    "low, sharded": {**ALONE["low"], "sharing": {"fsdp": True}},
}
"""What two processes align."""


@pytest.fixture(scope="module")
def together(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ProxyModel]:
    """What they make of each case."""
    folder = tmp_path_factory.mktemp("together")
    tasks = [partial(make, corpus, folder / str(number), specify(**SHARED[case])) for number, case in enumerate(SHARED)]
    return dict(zip(SHARED, launch_together(tasks, processes=2), strict=True))


@pytest.mark.parametrize("case", [case for case in SHARED if "low" not in case])
def test_two_processes_align_as_one_does(align: Align, together: dict[str, ProxyModel], case: str) -> None:
    alone, shared = align("alone", specify(**ALONE[case.partition(",")[0]]), InProcess()), together[case]
    shared.verify()
    assert facts(shared) == approximately(facts(alone))
    found = weights(shared)
    for name, value in weights(alone).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_adapters_are_added_to_weights_that_were_not_rounded(
    align: Align, together: dict[str, ProxyModel], num_processes: int
) -> None:
    run = specify(**SHARED["low, sharded"])
    proxy = align("low", run, InProcess()) if num_processes == 1 else together["low, sharded"]
    found, before = weights(proxy), load_model(run.proxy.model, seed=run.seed).state_dict()
    for name, value in found.items():
        assert value.dtype == torch.float32
        change = value - before[name]
        if value.ndim < 2 or "embed" in name or "lm_head" in name:
            assert not change.any()
        else:  # in bfloat16 the rounding alone would have every rank
            sizes = torch.linalg.svdvals(change)
            assert sizes[LORA["rank"]] < 1e-2 * sizes[0]


def approximately(fact: Any) -> Any:
    if isinstance(fact, dict):
        return {key: approximately(value) for key, value in fact.items()}
    if isinstance(fact, list):
        return [approximately(one) for one in fact]
    return pytest.approx(fact, rel=2e-3, abs=2e-3) if isinstance(fact, float) else fact


@contextmanager
def cut_in_the_third_stage() -> Iterator[None]:
    measure, seen = alignment.measure_fidelity, []

    def stop_in_the_third(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(alignment, "measure_fidelity", stop_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("launcher", [InProcess(), Torchrun(2)])
def test_an_alignment_that_was_cut_short_goes_on_after_its_last_stage(
    align: Align, tmp_path: Path, launcher: Launcher
) -> None:
    """Whoever goes on: a checkpoint holds whole tensors."""
    whole = align("whole", specify(), InProcess())
    with cut_in_the_third_stage():
        align("cut", specify(), InProcess(), checkpoints=tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    again = align("again", specify(sharing={"fsdp": True}), launcher, checkpoints=tmp_path / "kept")
    assert not kept.exists(), "the alignment is done"
    assert facts(again)[:2] == facts(whole)[:2], "these were not done again"
    is_alone, found = isinstance(launcher, InProcess), weights(again)
    for name, value in weights(whole).items():
        torch.testing.assert_close(found[name], value, rtol=0.0, atol=0.0 if is_alone else 2e-4)
    assert facts(again)[2:] == (facts(whole)[2:] if is_alone else approximately(facts(whole)[2:]))


class Restarted:
    """One process on a shared folder, lost in its third stage and begun again, as a TrainJob's pod is."""

    def launch(self, work: Work[T]) -> T:
        job = write_job(work, work.folder / "made")
        with cut_in_the_third_stage():
            take_part(read_job(job))
        take_part(read_job(job))
        return work.collect(job.parent)


def test_a_process_that_takes_the_place_of_a_lost_one_goes_on_in_its_folder(align: Align, tmp_path: Path) -> None:
    whole = align("whole", specify(), InProcess())
    again = align("again", specify(), Restarted(), checkpoints=tmp_path / "kept")
    assert facts(again) == facts(whole)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(again)[name], value, rtol=0.0, atol=0.0)
