"""A registered student behind an OpenAI-compatible endpoint, asked by OpenAI's own client."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxykd.config.models import ModelSpec
from proxykd.exceptions import ConfigError, ModelError
from proxykd.models.loading import load_model, load_tokenizer, save_model
from steps.adapters import mlflow_promotion as promotion
from steps.adapters import mlflow_registry as registry
from steps.adapters import mlflow_serving as serving
from tests.support.servers import free_port

pytestmark = [
    pytest.mark.integration,
    # MLflow's own use of others: not ours to mend.
    pytest.mark.filterwarnings("default"),
]

PROGRAM = "from proxykd.cli import main; main()"


@pytest.fixture
def two_versions(mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    spec = ModelSpec(source="embedded:student")
    for seed in range(2):
        save_model(load_model(spec, seed=seed), load_tokenizer(spec), tmp_path / f"student-{seed}")
        registry.register_student(
            tmp_path / f"student-{seed}", model_name="tiny", student_hash=str(seed) * 64, experiment="e"
        )
    promotion.promote("tiny", "1")
    return "tiny"


@contextmanager
def served(log: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, "serve", *arguments], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _await_line(log: Path, text: str) -> None:
    deadline = time.monotonic() + 240
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_the_champion_answers_openais_client_and_follows_the_alias(two_versions: str, tmp_path: Path) -> None:
    from openai import OpenAI

    port, log = free_port(), tmp_path / "serve.log"
    with served(log, "tiny", "--port", str(port), "--follow", "--poll-s", "0.3") as process:
        _await_line(log, f"version 1 of tiny at http://127.0.0.1:{port}/v1")
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=10) as client:
            asked = [{"role": "user", "content": "2 + 2?"}]
            answer = client.chat.completions.create(model="tiny", messages=asked, max_tokens=4)  # type: ignore[arg-type]
            assert answer.choices[0].message.role == "assistant"
            assert answer.usage is not None
            assert 0 < answer.usage.completion_tokens <= 4
            assert client.models.list().data == []  # nothing of the user's own cache
            promotion.promote("tiny", "2")
            _await_line(log, "version 2 of tiny")
            pieces = client.chat.completions.create(model="tiny", messages=asked, max_tokens=4, stream=True)  # type: ignore[call-overload]
            assert any(piece.choices for piece in pieces)
    assert process.returncode == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert sorted(path.parent.name[0] for path in (tmp_path / "home" / "served" / "tiny").glob("*/tiny")) == ["1", "2"]


def test_a_port_in_use_is_said(two_versions: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="--port"):
            serving.serve("tiny", host="127.0.0.1", port=port, engine="transformers")


@pytest.mark.parametrize("model", ["tiny@nosuch", "tiny/9", "nosuch"])
def test_what_is_not_there_is_not_served(two_versions: str, model: str) -> None:
    with pytest.raises(ModelError, match="expected a registered model"):
        serving.serve(model, host="127.0.0.1", port=1, engine="transformers")


def test_an_engine_that_is_not_installed_is_said(two_versions: str) -> None:
    with pytest.raises(ConfigError, match="vLLM"):
        serving.serve("tiny", host="127.0.0.1", port=1, engine="vllm")


def test_a_student_without_a_chat_template_is_refused(two_versions: str, tmp_path: Path) -> None:
    for file in (tmp_path / "student-0").glob("chat_template*"):
        file.unlink()
    config = tmp_path / "student-0" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"chat_template"', '"no_template"'))
    registry.register_student(tmp_path / "student-0", model_name="tiny", student_hash="c" * 64, experiment="e")
    with pytest.raises(ModelError, match="chat template"):
        serving.serve("tiny/3", host="127.0.0.1", port=1, engine="transformers")
