"""The house as a whole: which way imports point, what stays unloaded, what never occurs, and the shipped examples."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

import proxykd
from proxykd.config import RunSpec, load_specification

CHECKOUT = Path(proxykd.__file__).parents[1]
SOURCES = sorted(
    file for room in ("proxykd", "cluster", "steps", "pipelines") for file in (CHECKOUT / room).rglob("*.py")
)
CONFIGS = sorted((CHECKOUT / "configs").rglob("*.yaml"))
ORCHESTRATION = {"zenml", "mlflow", "great_expectations", "kubernetes", "kfp"}
HEAVY = {"torch", "transformers", *ORCHESTRATION}
MAX_FILE_LINES, MAX_BODY_LINES = 400, 50

CALLS_OF_DATA = {"torch.load", "os.system", "os.popen"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(file: Path) -> str:
    return file.relative_to(CHECKOUT).as_posix()


def python(code: str) -> str:
    """What a fresh interpreter prints that runs ``code`` in the checkout."""
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def loaded_after(code: str) -> set[str]:
    """The top-level packages in memory after ``code``."""
    printed = python(f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))")
    return set(json.loads(printed.splitlines()[-1]))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines of the body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (function.end_lineno or 0) - body[0].lineno + 1


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Places that could run code which came as data."""
    for name in imported_modules(tree):
        if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}:
            yield 0, f"import {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in CALLS_OF_DATA:
                yield node.lineno, name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            yield node.lineno, node.func.id
        if isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "shell"} and not is_false(node.value):
            yield node.value.lineno, ast.unparse(node)
        if isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            yield from ((node.lineno, str(key)) for key in keys & {"trust_remote_code", "shell"})


def test_imports_point_in_the_agreed_directions() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    finished = subprocess.run([linter, "--no-cache"], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.integration
def test_the_whole_library_loads_without_orchestrator_tracker_or_validator() -> None:
    library = [file.relative_to(CHECKOUT).with_suffix("") for file in SOURCES if name_of(file).startswith("proxykd/")]
    modules = [".".join(path.parts).removesuffix(".__init__") for path in library]
    loaded = loaded_after(f"import importlib\nfor name in {modules}: importlib.import_module(name)")
    assert {"proxykd", "torch", "trl"} <= loaded
    assert not loaded & ORCHESTRATION


@pytest.mark.parametrize(
    "code",
    [
        "import proxykd.cli",
        "import proxykd.config, proxykd.workspace, proxykd.records, proxykd.exceptions",
        "from typer.testing import CliRunner; from proxykd.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0",
        "from typer.testing import CliRunner; from proxykd.cli import app; "
        "assert CliRunner().invoke(app, ['schema']).exit_code == 0",
    ],
    ids=["command line", "configuration", "help", "schema"],
)
def test_nothing_heavy_loads_before_it_is_needed(code: str) -> None:
    loaded = loaded_after(code)
    assert "proxykd" in loaded
    assert not loaded & HEAVY


def test_only_the_evaluation_may_ask_the_teacher_for_its_odds() -> None:
    asking = {
        name_of(file)
        for file in SOURCES
        if any(name.startswith("proxykd.teacher.truth") for name in imported_modules(parsed(file)))
    }
    assert asking
    assert all(name.startswith("proxykd/evaluation/") for name in asking), asking


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_source_runs_no_data_as_code_and_stays_short(file: Path) -> None:
    text, tree = file.read_text(encoding="utf-8"), parsed(file)
    assert not list(dangers(tree))
    assert len(text.splitlines()) <= MAX_FILE_LINES
    lengths = ((function.name, body_lines(function)) for function in functions(tree))
    assert not {name: length for name, length in lengths if length > MAX_BODY_LINES}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "torch.load(path)",
        "load(path, trust_remote_code=True)",
        "load(path, **{'trust_remote_code': True})",
        "run('ls', shell=True)",
        "os.system('ls')",
        "eval(text)",
    ],
)
def test_the_scan_finds_what_it_looks_for(code: str) -> None:
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize("file", CONFIGS, ids=name_of)
def test_shipped_specification_loads_and_names_its_command(file: Path, tmp_path: Path) -> None:
    text = file.read_text(encoding="utf-8")
    overrides = []
    if yaml.safe_load(text)["prompts"]["kind"] == "jsonl":
        # The user's own file, named on the command line.
        (tmp_path / "prompts.jsonl").touch()
        overrides.append(f"prompts.path={tmp_path / 'prompts.jsonl'}")
    assert isinstance(load_specification(file, overrides), RunSpec)
    opening = text[: text.index("\nname:")]
    assert opening.startswith("# ")
    assert "make quickstart" in opening or f"proxykd run {name_of(file)}" in opening
