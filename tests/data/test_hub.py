"""Hugging Face datasets: folders of data files and of save_to_disk give their rows; faults are named."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from proxykd.config.prompts import HuggingFacePromptsSpec
from proxykd.data.hub import identity_of
from proxykd.data.prompts import hash_inputs, iter_recorded, load_prompts
from proxykd.exceptions import InputError
from tests.support.servers import listening

ROWS = [{"prompt": f"q{idx}", "completion": f"a{idx}", "gold": idx} for idx in range(5)]


@pytest.fixture(params=["data files", "saved", "saved splits"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same five rows of the split "train" in each shape."""
    folder = tmp_path / "dataset"
    if request.param == "data files":
        folder.mkdir()
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return folder
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(ROWS)
    (datasets.DatasetDict({"train": saved}) if request.param == "saved splits" else saved).save_to_disk(folder)
    return folder


def spec_of(source: Path | str, **changes: Any) -> HuggingFacePromptsSpec:
    return HuggingFacePromptsSpec.model_validate({"source": str(source), **changes})


def test_rows_of_a_folder_come_in_order(source: Path, tmp_path: Path) -> None:
    spec = spec_of(source, template="{{ prompt }}?", reference_field="gold", limit=3)
    prompts = list(load_prompts(spec, output=tmp_path / "out").rows())
    assert [(p.messages[0].content, p.reference) for p in prompts] == [("q0?", "0"), ("q1?", "1"), ("q2?", "2")]
    assert [p.source for p in prompts] == ["dataset:1", "dataset:2", "dataset:3"]
    assert [text for _, text in iter_recorded(spec_of(source), "completion")] == [row["completion"] for row in ROWS]


def test_a_column_or_a_split_that_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset, row 1: expected the field 'promt', found .*mean 'prompt'"):
        load_prompts(spec_of(source, prompt_field="promt"), output=tmp_path / "out")
    if not (source / "state.json").exists():  # what holds one table holds one split of no name
        with pytest.raises(InputError, match="split 'test'"):
            load_prompts(spec_of(source, split="test"), output=tmp_path / "out")


def test_the_identity_of_a_folder_is_its_content(source: Path) -> None:
    spec = spec_of(source)
    before = identity_of(spec), hash_inputs(spec)
    assert (identity_of(spec), hash_inputs(spec)) == before
    (source / ".hidden").write_text("x")
    assert identity_of(spec) == before[0]
    (source / "more.txt").write_text("x")
    assert identity_of(spec) != before[0]
    assert hash_inputs(spec_of(source, split="test")) != hash_inputs(spec)


def test_a_commit_is_its_own_identity_and_nobody_is_asked() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert identity_of(spec_of("owner/name", revision=commit)) == f"commit:{commit}"


def test_a_folder_has_no_revision(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no prompts\.revision"):
        load_prompts(spec_of(source, revision="main"), output=tmp_path / "out")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"correct prompts\.source"):
        load_prompts(spec_of(tmp_path / "empty"), output=tmp_path / "out")


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name of a dataset on the Hugging Face hub"):
        load_prompts(spec_of("not a/na/me"), output=tmp_path / "out")


COMMIT = "a" * 40
FILE = "train.jsonl"
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that reading one dataset, owner/data, of one file takes; notes every path."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.paths.append(path)  # type: ignore[attr-defined]
        if path == "/api/datasets/owner/data/revision/v1" or path.endswith(f"data/revision/{COMMIT}"):
            found = {"id": "owner/data", "sha": COMMIT, "siblings": [{"rfilename": FILE}], "tags": [], "downloads": 0}
            self._send(json.dumps({**found, "likes": 0, "private": False, "disabled": False, "gated": False}).encode())
        elif f"/tree/{COMMIT}" in path:
            self._send(json.dumps([{"type": "file", "path": FILE, "size": len(CONTENT), "oid": "b" * 40}]).encode())
        elif path.endswith(f"/resolve/{COMMIT}/{FILE}"):
            self._send(CONTENT)
        else:
            self._send(b"", 404)

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"1"')
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.paths = []  # type: ignore[attr-defined]
    with listening(server):
        yield server


@pytest.mark.integration
def test_a_tag_on_the_hub_is_resolved_once_and_its_commit_is_read(hub: Any, tmp_path: Path) -> None:
    code = (
        "from proxykd.config.prompts import HuggingFacePromptsSpec\n"
        "from proxykd.data.hub import identity_of\n"
        "from proxykd.data.rows import iter_rows\n"
        "from proxykd.exceptions import InputError\n"
        "spec = HuggingFacePromptsSpec(source='owner/data', revision='v1')\n"
        "print([row.value['prompt'] for row in iter_rows(spec)], identity_of(spec))\n"
        "try: next(iter_rows(HuggingFacePromptsSpec(source='owner/none')))\n"
        "except InputError as error: print(error)\n"
    )
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **address}, capture_output=True, text=True, timeout=120
    )
    rows, refusal = done.stdout.splitlines()
    assert rows == f"{[row['prompt'] for row in ROWS]} commit:{COMMIT}"
    assert "prompts.source='owner/none'" in refusal
    assert sum(path.endswith("/v1") for path in hub.paths) == 1
    assert all(COMMIT in path for path in hub.paths if "/resolve/" in path)
