"""What decides a step's cache key, and what becomes of its temporary folders."""

import ast
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxykd.config import RunSpec
from proxykd.exceptions import ClusterError
from steps import settings
from steps.settings import code_hash, new_folder, scratch_folder, settings_for

pytestmark = pytest.mark.integration
FILES = (settings.CHECKOUT / "steps").glob("*.py")
STEPS = sorted(path.stem for path in FILES if "@step(" in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's sources."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("proxykd", "steps"):
        shutil.copytree(settings.CHECKOUT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def checkout(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the checkout in the place of the checkout itself."""
    monkeypatch.setattr(settings, "CHECKOUT", copied)
    forget()
    yield copied
    forget()


def forget() -> None:
    for cached in (settings.code_hash, settings._files_of):
        cached.cache_clear()


def changed(checkout: Path, file: str) -> set[str]:
    """The steps whose hash changes with a file, which is put back as it was."""
    steps = [path.stem for path in (checkout / "steps").glob("*.py") if path.stem not in ("__init__", "settings")]
    before, content = {step: code_hash(f"steps.{step}") for step in steps}, (checkout / file).read_bytes()
    (checkout / file).write_bytes(content + b"\n# changed\n")
    forget()
    try:
        return {step for step in steps if code_hash(f"steps.{step}") != before[step]}
    finally:
        (checkout / file).write_bytes(content)


@pytest.mark.parametrize(
    ("file", "steps"),
    [
        ("steps/align_proxy.py", {"align_proxy"}),
        ("proxykd/proxy/rounds.py", {"align_proxy"}),
        ("proxykd/student/objective.py", {"distill_student"}),
        ("proxykd/estimation/weights.py", {"estimate_distributions", "estimate_distributions_portion"}),
        ("proxykd/targets/codec.py", {"estimate_distributions", "estimate_distributions_portion", "distill_student"}),
        # The judge asks through the engine.
        ("proxykd/teacher/engine.py", {"query_teacher", "query_teacher_portion", "evaluate_student", "promote_model"}),
        ("steps/adapters/great_expectations_gate.py", {"validate_data", "check_drift", "split"}),
        ("steps/adapters/mlflow_registry.py", {"promote_model"}),
        ("proxykd/cli.py", set()),
    ],
)
def test_a_change_reaches_the_steps_that_import_the_file(checkout: Path, file: str, steps: set[str]) -> None:
    assert changed(checkout, file) == steps


def test_data_files_beside_the_code_count(checkout: Path) -> None:
    # The look of the page is no reason to evaluate again.
    assert changed(checkout, "proxykd/evaluation/page/report.html.jinja") == {"promote_model"}
    assert {"align_proxy", "distill_student"} <= changed(checkout, "proxykd/models/embedded/tokenizer.json")


def test_hidden_files_do_not_count(checkout: Path) -> None:
    """An image has none, and a desktop may make one at any time."""
    before, file = code_hash("steps.align_proxy"), checkout / "proxykd" / "models" / ".DS_Store"
    file.write_bytes(b"where its icons are")
    forget()
    assert code_hash("steps.align_proxy") == before
    file.unlink()


@pytest.mark.parametrize("step", STEPS)
def test_every_step_refuses_to_run_as_other_code_than_it_is(step: str) -> None:
    tree = ast.parse((settings.CHECKOUT / "steps" / f"{step}.py").read_text(encoding="utf-8"))
    (body,) = (found.body for found in tree.body if isinstance(found, ast.FunctionDef) and found.name == step)
    assert ast.unparse(body[1]) == "require_code(__name__, code)"


def test_other_code_is_refused_with_what_to_do() -> None:
    settings.require_code("steps.split", code_hash("steps.split"))
    with pytest.raises(ClusterError, match=r"0 of steps.split.*image was made of another checkout.*make push"):
        settings.require_code("steps.split", "0")


@pytest.mark.parametrize(
    "compiled", ["kernels.pull-51.py311.nbi", "kernels.pull-51.py311.1.nbc", "codec.cpython-311.pyc"]
)
def test_what_a_run_compiles_beside_the_code_does_not_count(checkout: Path, compiled: str) -> None:
    """Else the first run in a fresh checkout, which compiles the coded format, would be done again by the second."""
    before = code_hash("steps.distill_student")
    folder = checkout / "proxykd" / "targets" / "__pycache__"
    folder.mkdir(exist_ok=True)
    (folder / compiled).write_bytes(b"machine code")
    forget()
    assert code_hash("steps.distill_student") == before
    (folder / compiled).unlink()


def test_what_all_share_reaches_every_step(checkout: Path) -> None:
    assert len(changed(checkout, "proxykd/artifacts.py")) == 11


def test_an_import_that_is_new_is_followed(checkout: Path) -> None:
    step, unused = checkout / "steps" / "split.py", "proxykd/preview.py"
    assert "split" not in changed(checkout, unused)
    content = step.read_bytes()
    step.write_bytes(content + b"\n\ndef later() -> None:\n    from proxykd import preview\n")
    forget()
    try:
        assert "split" in changed(checkout, unused)
    finally:
        step.write_bytes(content)


def test_unknown_modules_have_no_sources() -> None:
    assert settings._files_of("torch.nn") == set()


def test_settings_hold_the_named_sections_only() -> None:
    run = RunSpec.model_validate(
        {
            "name": "tiny",
            "prompts": {"kind": "embedded"},
            "teacher": {"kind": "embedded"},
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "tiny"},
        }
    )
    told = settings_for(run, "seed", "split")
    assert set(told) == {"seed", "split"}
    assert RunSpec.view(told).split == run.split


def interrupted_work() -> None:
    with new_folder("proxy") as output, scratch_folder() as scratch:
        (output / "file.json").touch()
        (scratch / "file.json").touch()
        raise KeyboardInterrupt


def test_an_artifacts_folder_outlives_success_and_not_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    with new_folder("proxy") as kept:
        (kept / "file.json").touch()
    assert kept.parent == tmp_path / "home" / "tmp"
    shutil.rmtree(kept)
    with pytest.raises(KeyboardInterrupt):
        interrupted_work()
    assert not list(kept.parent.iterdir())


def test_a_step_without_a_workspace_works_in_the_systems_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROXYKD_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as scratch:
        assert scratch.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())
