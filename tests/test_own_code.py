"""What changes the hash of a step's code, by which its results are kept, and who refuses to be another's."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxykd import own_code
from proxykd.config.steps import STEPS as NAMES
from proxykd.exceptions import CodeError
from proxykd.own_code import code_hash, require_code

pytestmark = pytest.mark.integration
ARMS = {"distill_student_sft", "distill_student_proxy_kd"}
STEPS = sorted({*NAMES, "distill_student", "query_teacher_portion", "estimate_distributions_portion"} - ARMS)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's sources."""
    folder = tmp_path_factory.mktemp("checkout")
    for room in ("proxykd", "steps"):
        shutil.copytree(own_code.CHECKOUT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def checkout(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the checkout in the place of the checkout itself."""
    monkeypatch.setattr(own_code, "CHECKOUT", copied)
    forget()
    yield copied
    forget()


def forget() -> None:
    for cached in (own_code.code_hash, own_code._files_of):
        cached.cache_clear()


def changed(checkout: Path, file: str) -> set[str]:
    """The steps whose hash changes with a file, which is put back as it was."""
    steps = [path.stem for path in (checkout / "steps").glob("*.py") if path.stem in STEPS]
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
        # Started by their names.
        ("proxykd/student/worker.py", {"distill_student"}),
        ("proxykd/proxy/worker.py", {"align_proxy"}),
        ("proxykd/cli.py", set()),
    ],
)
def test_a_change_reaches_the_steps_that_import_the_file(checkout: Path, file: str, steps: set[str]) -> None:
    assert changed(checkout, file) == steps


def test_data_files_beside_the_code_count(checkout: Path) -> None:
    # The look of the page is no reason to evaluate again.
    assert changed(checkout, "proxykd/evaluation/page/report.html.jinja") == {"promote_model"}
    assert {"align_proxy", "distill_student"} <= changed(checkout, "proxykd/models/embedded/tokenizer.json")


@pytest.mark.parametrize(
    "left",
    [
        # Else the first run in a fresh checkout, which compiles the coded format, would be done again by the second.
        "__pycache__/kernels.pull-51.py311.nbi", "__pycache__/kernels.pull-51.py311.1.nbc",
        "__pycache__/codec.cpython-311.pyc",
        # Desktops and editors may leave these at any time, and an image takes in none of the latter.
        ".DS_Store", "codec.py~", "codec.py.orig", "#codec.py#", ".ipynb_checkpoints/codec.ipynb", "own.env", "a.key",
        "tls.pem", "kubeconfig.yaml", "old.pyc",
    ],
)  # fmt: skip
def test_what_programs_leave_beside_the_code_does_not_count(checkout: Path, left: str) -> None:
    before, file = code_hash("steps.distill_student"), checkout / "proxykd" / "targets" / left
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"no code")
    forget()
    assert code_hash("steps.distill_student") == before
    file.unlink()


@pytest.mark.parametrize("step", STEPS)
def test_every_step_refuses_to_run_as_other_code_than_it_is(step: str) -> None:
    tree = ast.parse((own_code.CHECKOUT / "steps" / f"{step}.py").read_text(encoding="utf-8"))
    (body,) = (found.body for found in tree.body if isinstance(found, ast.FunctionDef) and found.name == step)
    assert ast.unparse(body[1]) == "require_code(__name__, code)"


def test_other_code_is_refused_with_what_to_do() -> None:
    require_code("steps.split", code_hash("steps.split"))
    with pytest.raises(CodeError, match=r"0 of steps.split.*image.*make push.*stack.*schedules.*same command again"):
        require_code("steps.split", "0")


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
    assert own_code._files_of("torch.nn") == set()
