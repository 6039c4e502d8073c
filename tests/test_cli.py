"""Every bad input, as a user meets it: one message, exit status 2, no traceback, nothing asked, nothing written."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from proxykd import cli
from proxykd.commands.disk import disk_trouble
from proxykd.config import RunSpec
from proxykd.workspace import Workspace
from tests.support.command import Ended

DOCS = Path(__file__).parents[1] / "docs"
SECRET = "sk-very-secret"


@pytest.fixture
def endpoint() -> Iterator[Callable[[int], dict[str, Any]]]:
    """Starts an endpoint that answers every call with one status; gives the teacher's section and counts calls."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int) -> dict[str, Any]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                self.server.calls += 1  # type: ignore[attr-defined]
                body = json.dumps({"error": {"message": f"no: {self.headers['Authorization']}"}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.calls = 0  # type: ignore[attr-defined]
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        return {"kind": "openai", "base_url": url, "model": "gpt-x", "api_key": "${CLI_TEST_KEY}"}

    start.servers = servers  # type: ignore[attr-defined]
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def expect(ended: Ended, *words: str) -> None:
    """One message with these words and nothing else."""
    assert ended.status == 2, ended
    (message,) = [line for line in ended.err.splitlines() if line.startswith("proxykd: ")]
    for word in words:
        assert word in ended.err, (word, message)
    assert "Traceback" not in ended.err
    assert SECRET not in ended.err + ended.out
    assert ended.out == ""


def test_a_plan_of_good_input_shows_the_forecast(proxykd: Any, write: Any, tmp_path: Path) -> None:
    ended = proxykd("plan", write())
    assert ended.status == 0
    assert all(word in ended.out for word in ("nothing spent", "300 (", "none: the texts are recorded", "GiB"))
    assert max(map(len, ended.out.splitlines())) <= 80
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"studnet": {}}, ["studnet: unknown key", "did you mean 'student'"]),
        ({"student__steps": "many"}, ["student.steps", "integer", "got 'many'"]),
        ({"student__steps": 0}, ["student.steps", "greater than or equal to 1", "got 0"]),
        ({"teacher": {"kind": "oracle"}}, ["teacher", "oracle", "openai"]),
        ({"prompts__path": "nowhere.jsonl"}, ["nowhere.jsonl", "No such file", "correct prompts.path"]),
        ({"prompts__prompt_field": "question"}, ["line 1", "'question'", "'prompt'"]),
        ({"split": {"min_heldout": 200}}, ["split.min_heldout=200", "raise split.heldout"]),
        ({"split": {"distillation": 0.0, "alignment": 0.9}}, ["distillation side", "raise split.distillation"]),
        (
            {"student__learning_rates": [1e-3, 1e-4], "split": {"development": 0.0}},
            ["student.learning_rates", "raise split.development"],
        ),
        (
            {"targets": {"estimator": {"kind": "posterior"}}, "split": {"development": 0.0}},
            ["targets.estimator.kappa", "raise split.development"],
        ),
        ({"proxy": {"model": {"source": "./no/folder"}}}, ["model folder", "no/folder"]),
        ({"proxy": {"model": {"source": "package:no_such/m.gguf"}}}, ["'no_such'", "pip install"]),
        ({"proxy": {"model": {"source": "embedded:teacher"}}}, ["embedded:proxy or embedded:student"]),
        ({"student": {"model": {"source": "embedded:student", "num_layers": 40}}}, ["num_layers=40", "has 2"]),
        (
            {"evaluation": {"tasks": [{"kind": "exact_match", "name": "t", "answer_pattern": "(.)"}]}},
            ["prompts.reference_field"],
        ),
        (
            {"evaluation": {"tasks": [{"kind": "exact_match", "name": "t", "answer_pattern": "("}]}},
            ["answer_pattern", "regular expression"],
        ),
        ({"teacher": {"kind": "openai", "model": "m", "api_key": SECRET}}, ["teacher.api_key", "${NAME}"]),
        ({"teacher": {"kind": "openai", "model": "m", "api_key": "${CLI_UNSET}"}}, ["CLI_UNSET", "export"]),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_bad_specification(
    proxykd: Any, write: Any, tmp_path: Path, command: str, changes: dict[str, Any], words: list[str]
) -> None:
    expect(proxykd(command, write(**changes)), *words)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"', ["line 2", "expected one JSON object"]),
        ('{"prompt": "a", "completion": "b"}\n\n{"prompt": "a", "completion": "c"}', ["line 3", "line 1 again"]),
        ('{"prompt": "a", "completion": "b", "prompt": "c"}', ["line 1", "'prompt' twice"]),
        ('{"prompt": "  ", "completion": "b"}', ["line 1", "empty prompt"]),
        ('{"prompt": "a", "completion": 7}', ["line 1", "'completion' to be a string"]),
        ("", ["at least one JSON object", "empty file"]),
        ('{"prompt": "a", "completion": " "}', ["'completion'", "found every one empty", "teacher.completion_field"]),
    ],
)
def test_bad_rows_are_named(proxykd: Any, write: Any, tmp_path: Path, content: str, words: list[str]) -> None:
    config = write(split={"min_heldout": 1, "heldout": 0.9, "development": 0.0, "mode": "shared"}, proxy={
        "model": {"source": "embedded:proxy"}, "warmup": None, "preference": None})  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(content)
    expect(proxykd("plan", config), "rows.jsonl", *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan"], ["Missing argument", "CONFIG"]),
        (["plan", "x.yaml", "--colour"], ["No such option", "--colour"]),
        (["distil"], ["No such command", "distil"]),
    ],
)
def test_a_wrong_command_shows_the_usage(proxykd: Any, arguments: list[str], words: list[str]) -> None:
    ended = proxykd(*arguments)
    assert ended.status == 2
    assert "Usage: proxykd" in ended.err
    assert all(word in ended.err for word in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, ["No such file"]), ("a: [", ["not YAML", "line 1"]), ("- a", ["expected keys and values"])],
)
def test_a_file_that_is_no_specification(proxykd: Any, tmp_path: Path, content: str | None, words: list[str]) -> None:
    if content is not None:
        (tmp_path / "x.yaml").write_text(content)
    expect(proxykd("plan", str(tmp_path / "x.yaml")), "x.yaml", *words)


@pytest.mark.parametrize("override", ["student.steps", "student.more.steps=1", "student.stepz=1"])
def test_a_bad_override(proxykd: Any, write: Any, override: str) -> None:
    expect(proxykd("plan", write(), "--set", override), "student.")


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, ["HTTP 401", "CLI_TEST_KEY"]), (403, ["HTTP 403"]), (404, ["'gpt-x'", "check teacher.model"])],
)
def test_an_endpoint_that_refuses_is_asked_once(
    proxykd: Any, write: Any, endpoint: Any, monkeypatch: pytest.MonkeyPatch, status: int, words: list[str]
) -> None:
    monkeypatch.setenv("CLI_TEST_KEY", SECRET)
    config = write(teacher=endpoint(status))
    assert proxykd("plan", config).status == 0
    assert endpoint.servers[0].calls == 0
    expect(proxykd("run", config), *words)
    assert endpoint.servers[0].calls == 1


def test_a_dead_endpoint_is_told_before_anything_heavy_is_imported(write: Any, tmp_path: Path) -> None:
    config = write(teacher={"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "gpt-x"})
    code = (
        "import sys; from proxykd import cli\n"
        "try: cli.main()\n"
        "finally: assert not {'torch', 'zenml', 'mlflow', 'trl'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", config],
        env={**os.environ, "PROXYKD_HOME": str(tmp_path / "home")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    expect(Ended(done.returncode, done.stdout, done.stderr), "http://127.0.0.1:9/v1", "check teacher.base_url")


def test_a_model_on_the_hub_fails_at_once_without_a_network(
    proxykd: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    config = write(proxy={"model": {"source": "some/model"}})
    expect(proxykd("plan", config), "hub repository 'some/model'", "check the name, the network and HF_TOKEN")


def save_model_files(folder: Path, **config: int) -> str:
    """A folder that looks like a model of the given size, with the embedded tokenizer."""
    from proxykd.models.sources import EMBEDDED_FOLDER

    folder.mkdir()
    for file in EMBEDDED_FOLDER.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 465, **config}
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True, **sizes}))
    (folder / "model.safetensors").touch()
    return str(folder)


def test_a_folder_without_weights(proxykd: Any, write: Any, tmp_path: Path) -> None:
    source = save_model_files(tmp_path / "model")
    assert proxykd("plan", write(student={"model": {"source": source}})).status == 0
    (tmp_path / "model" / "model.safetensors").unlink()
    expect(proxykd("plan", write(student={"model": {"source": source}})), source, "no model.safetensors")


def test_tokenizers_that_disagree(proxykd: Any, write: Any, tmp_path: Path) -> None:
    source = save_model_files(tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": "<|user|>"}))
    expect(proxykd("plan", write(student={"model": {"source": source}})), "share a tokenizer", "end-of-sequence token")


@pytest.mark.parametrize("targets", [{"reduction": {"kind": "sampled"}}, {"temperature": 2.0}])
def test_targets_that_cannot_be_translated_are_refused_before_they_are_made(
    proxykd: Any, write: Any, tmp_path: Path, targets: dict[str, Any]
) -> None:
    source = save_model_files(tmp_path / "model")
    student = {"model": {"source": source}, "cross_tokenizer": {}}
    assert proxykd("plan", write(student=student, targets=targets)).status == 0  # one tokenizer: nothing to translate
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": "<|user|>"}))
    expect(proxykd("plan", write(student=student, targets=targets)), "targets.reduction.kind=top_k", "end-of-sequence")


@pytest.mark.parametrize(("layers", "what"), [(2_000_000, "on the disk"), (1_000, "of memory")])
def test_a_machine_that_is_too_small(proxykd: Any, write: Any, tmp_path: Path, layers: int, what: str) -> None:
    source = save_model_files(tmp_path / "model", num_hidden_layers=layers)
    section = {"model": {"source": source, "max_seq_tokens": 1_000_000}, "optimizer": {"batch_size": 10_000_000}}
    expect(proxykd("plan", write(student=section, proxy={"model": {**section["model"], "source": "embedded:proxy"}})),
           "the run needs about", what)  # fmt: skip


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_workspace_that_cannot_be_written(
    proxykd: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "file" / "home"))
    expect(proxykd(command, write()), "is a file", "set PROXYKD_HOME")


def test_a_full_disk_is_recognised_wherever_it_is_met(tmp_path: Path) -> None:
    def wrapped(cause: Exception) -> Exception:
        error = RuntimeError("some engine")
        error.__cause__ = cause
        return error

    def trouble(error: Exception) -> str:
        return str(disk_trouble(error, tmp_path))

    assert "No space" in trouble(wrapped(OSError(errno.ENOSPC, "No space left on device")))
    assert "disk is full" in trouble(wrapped(sqlite3.OperationalError("database or disk is full")))
    assert "denied" in trouble(wrapped(PermissionError(errno.EACCES, "denied", str(tmp_path / "journal.sqlite"))))
    assert trouble(wrapped(OSError(errno.ECONNRESET, "reset"))) == "None"
    assert trouble(sqlite3.OperationalError("no such table: x")) == "None"


def test_an_unrelated_error_is_not_laid_to_the_disk(tmp_path: Path) -> None:
    for unrelated in (PermissionError(errno.EACCES, "denied", "/etc/shadow"), PermissionError(errno.EPERM, "no")):
        assert disk_trouble(unrelated, tmp_path) is None
    later = KeyError("a bug of ours")
    later.__context__ = OSError(errno.ENOSPC, "met and dealt with before")
    assert disk_trouble(later, tmp_path) is None


def test_a_second_run_in_the_workspace_is_told_of_the_first(proxykd: Any, write: Any, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from proxykd.workspace import Workspace\n"
        f"with Workspace(Path({str(tmp_path / 'home')!r})).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"locked\n"
        expect(proxykd("run", write()), f"process {first.pid} ", "set PROXYKD_HOME")
        assert proxykd("plan", write()).status == 0
        first.kill()
    with Workspace(tmp_path / "home").locked():  # the system has given the dead process's lock back
        assert (tmp_path / "home" / "run.lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize(
    ("status", "words"),
    [(500, ["HTTP 500", "working MLflow server"]), (401, ["refused our key", "MLFLOW_TRACKING_TOKEN"]),
     (None, ["got no answer", "unset the variable"])],
)  # fmt: skip
@pytest.mark.parametrize("command", ["run", "ask"])
def test_a_tracking_server_that_fails_is_told_before_anything_is_spent(
    proxykd: Any, write: Any, endpoint: Any, monkeypatch: pytest.MonkeyPatch, command: str, status: int | None,
    words: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("CLI_TEST_KEY", "key")
    teacher = endpoint(200)
    port = 9
    if status is not None:
        endpoint(status)
        port = endpoint.servers[1].server_port
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:{port}")
    arguments = ["run", write(teacher=teacher)] if command == "run" else ["ask", "student", "How much?"]
    expect(proxykd(*arguments), f"MLFLOW_TRACKING_URI=http://127.0.0.1:{port}", *words)
    assert endpoint.servers[0].calls == 0


@pytest.mark.integration
def test_the_wheel_alone_says_that_it_takes_a_checkout(write: Any, tmp_path: Path) -> None:
    site = sysconfig.get_path("purelib")
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "proxykd").symlink_to(Path(cli.__file__).parent)
    # -S: without the file that puts the checkout on the path.
    code = f"import sys; sys.path[:0] = [{str(tmp_path / 'wheel')!r}, {site!r}]; from proxykd import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, "run", write()],
        env={**os.environ, "PROXYKD_HOME": str(tmp_path / "home")}, cwd=tmp_path, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    expect(Ended(done.returncode, done.stdout, done.stderr), "found no pipelines", "clone the repository")


def test_an_interruption_ends_with_130(proxykd: Any, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.mkdtemp", interrupt)
    ended = proxykd("plan", write())
    assert ended.status == 130
    assert ended.err == "proxykd: interrupted; what was paid for is kept, and the same command goes on from here\n"


def test_the_schema_is_the_specifications(proxykd: Any) -> None:
    ended = proxykd("schema")
    assert (ended.status, json.loads(ended.out)) == (0, RunSpec.model_json_schema())


def test_the_page_of_the_specification_is_current(proxykd: Any) -> None:
    assert proxykd("schema", "--markdown").out == (DOCS / "specification.md").read_text(encoding="utf-8")


def test_the_page_of_the_command_line_names_every_command_and_variable() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    commands = {one.name or one.callback.__name__ for one in cli.app.registered_commands if one.callback}
    assert all(f"proxykd {command}" in page for command in commands)
    assert all(f"`{name}`" in page for name in Workspace(Path("home")).environment())


@pytest.mark.parametrize("module", ["proxykd", "proxykd.cli"])
def test_the_command_line_is_a_module_too(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    ended = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("proxykd ")


@pytest.mark.parametrize(
    ("outcome", "aliases", "decision", "student"),
    [
        ("promote", ["challenger", "champion"], "promote: better", "models:/m/2 (alias challenger, champion)"),
        ("keep", [], "keep: better", "models:/m/2 (no alias)"),
        ("promote", ["challenger"], "another version is champion since: `proxykd history m`", "(alias challenger)"),
    ],
)
def test_the_end_of_a_run_says_whether_the_student_is_champion_now(
    outcome: str, aliases: list[str], decision: str, student: str
) -> None:
    promotion = {"outcome": outcome, "reasons": ["better"], "aliases": aliases, "model_name": "m"}
    found = cli.describe_promotion({**promotion, "model_uri": "models:/m/2"})
    assert decision in found["decision"]
    assert student in found["student"]
