"""What all tests share: one thread, state in a temporary folder, a small corpus, and the command line."""

import gc
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

# Before torch is loaded: models this small only lose time to threads. Programs that tests start inherit it.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")

import pytest
import yaml
from hypothesis import settings

from proxykd import cli
from proxykd.artifacts import SplitSet, ValidatedSet, seal
from proxykd.config import RunSpec
from proxykd.data.splits import build_splits
from proxykd.records import Outcome, ValidatedRow
from proxykd.teacher.problems import generate_prompts, sample_completion
from proxykd.workspace import Workspace
from tests.support.command import Ended
from tests.support.endpoint import ScriptedEndpoint, scripted_endpoint

# A program started in the background may ignore interrupts, and what it starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

NUM_PROMPTS = 60
MAX_PROCESSES = 4  # of about a gigabyte each
LONG_FOLDERS = ("pipelines", "workflows")
MEMORY, ROOM = Path("/dev/shm"), 2 << 30  # a file system in memory; the default tier writes 0.2 GB


def in_memory() -> str | None:
    """Where files cost no wait for a disk; None = nowhere, or with too little room, or no program may be run there."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM:
        return None
    return None if os.statvfs(MEMORY).f_flag & os.ST_NOEXEC else str(MEMORY)


STATE = tempfile.TemporaryDirectory(prefix="proxykd-tests-", dir=in_memory())

# No test asserts a time, and a busy machine is no fault.
settings.register_profile("proxykd", deadline=None, max_examples=50)
settings.load_profile("proxykd")

# Whatever a test starts by mistake writes here, and not into the user's ZenML, MLflow or workspace.
os.environ.update(Workspace(Path(STATE.name)).environment())


def is_default(config: pytest.Config) -> bool:
    """Whether the default tier is asked for."""
    return str(config.getoption("markexpr")).startswith("not integration")


def pytest_configure(config: pytest.Config) -> None:
    """The default tier's temporary folders go the way of ``STATE``, unless ``--basetemp`` keeps them."""
    if is_default(config) and in_memory() and not config.getoption("basetemp"):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = STATE.name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core for the whole default tier.

    None but this one (0) where files are named, since each process imports everything anew, and for other tiers, whose
    tests start processes of their own.
    """
    is_whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    return min(len(os.sched_getaffinity(0)), MAX_PROCESSES) if is_whole and is_default(config) else 0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: the garbage collector need not walk through it again, neither now nor in any test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: where processes share the tests, none is left alone with a long one at the end."""
    items.sort(key=lambda item: item.path.parent.name not in LONG_FOLDERS)


def pytest_unconfigure() -> None:
    STATE.cleanup()


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    """A scripted endpoint on loopback."""
    with scripted_endpoint() as script:
        yield script


@pytest.fixture(scope="session")
def validated(tmp_path_factory: pytest.TempPathFactory) -> ValidatedSet:
    """The embedded teacher's texts, one a prompt, all kept."""
    rng, rows = random.Random(0), ValidatedSet(tmp_path_factory.mktemp("validated"))
    rows.write(
        ValidatedRow(
            prompt.prompt_id,
            0,
            prompt.messages,
            sample_completion(prompt.messages[-1].content, rng),
            prompt.task,
            prompt.reference,
            Outcome.OK,
            "keep",
            "",
        )
        for prompt in generate_prompts(NUM_PROMPTS, 0)
    )
    seal(rows)
    return rows


@pytest.fixture(scope="session")
def corpus(validated: ValidatedSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[ValidatedSet, SplitSet]:
    """Validated rows and their sides, in shared mode with a development side."""
    return validated, build_splits(validated, run_spec().split, output=tmp_path_factory.mktemp("splits"))


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunSpec]:
    """``run_spec``, for tests."""
    return run_spec


def run_spec(**sections: Any) -> RunSpec:
    """A run of the embedded models with a few short steps; ``sections`` replaces whole sections."""
    student = {"model": {"source": "embedded:student", "num_layers": 1, "max_seq_tokens": 160}, "steps": 3}
    values: dict[str, Any] = {
        "name": "tiny",
        "prompts": {"kind": "embedded", "count": NUM_PROMPTS},
        "teacher": {"kind": "embedded"},
        "split": {"mode": "shared", "development": 0.2},
        "proxy": {"model": {"source": "embedded:proxy", "num_layers": 1, "max_seq_tokens": 160}},
        "targets": {"store": {"kind": "plain"}},  # the coded one is compiled first
        "registry": {"model_name": "tiny"},
    }
    student["optimizer"] = {"batch_size": 4, "learning_rate": 1e-3}
    student |= sections.pop("student", {})
    return RunSpec.model_validate({**values, **sections, "student": student})


@pytest.fixture
def proxykd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """Runs the command line in this process with a workspace of its own."""
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["proxykd", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return Ended(int(ended.value.code or 0), output.out, output.err)

    with mock.patch.dict(os.environ):
        yield call
    logging.disable(logging.NOTSET)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a specification of a recorded teacher with 300 prompts, changed by dotted keys; returns its path."""
    rows = [{"prompt": f"How much is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> str:
        values: dict[str, Any] = {
            "name": "run",
            "prompts": {"kind": "jsonl", "path": "rows.jsonl"},
            "teacher": {"kind": "recorded"},
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "student"},
        }
        for key, value in changes.items():
            section, _, name = key.partition("__")
            values[section] = {**values[section], name: value} if name else value
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        return str(tmp_path / "run.yaml")

    return make
