"""What tells one model from another behind the same source."""

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from proxykd.models.source_files import source_identity
from proxykd.models.sources import resolve_source


def test_a_changed_file_in_a_folder_counts_and_a_hidden_one_does_not(tmp_path: Path) -> None:
    weights, source = tmp_path / "model.safetensors", resolve_source(str(tmp_path))
    weights.write_bytes(b"12")
    os.utime(weights, ns=(1, 1))
    before = source_identity(source)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").touch()
    assert source_identity(source) == before
    os.utime(weights, ns=(2, 2))
    assert source_identity(source) != before
    os.utime(weights, ns=(1, 1))
    (tmp_path / "config.json").touch()
    assert source_identity(source) != before


def test_the_commit_in_the_cache_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = [source_identity(resolve_source("some/model"))]
    repository = tmp_path / "models--some--model"
    for commit in ("a" * 40, "b" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").touch()
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        found.append(source_identity(resolve_source("some/model")))
    assert len(set(found)) == 3


def test_the_size_of_a_packages_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_model").mkdir()
    (tmp_path / "tiny_model" / "__init__.py").touch()
    file = tmp_path / "tiny_model" / "m.gguf"
    file.write_bytes(b"1")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_identity(resolve_source("package:tiny_model/m.gguf"))
    file.write_bytes(b"12")
    assert source_identity(resolve_source("package:tiny_model/m.gguf")) != before


def test_embedded_models_differ() -> None:
    assert source_identity(resolve_source("embedded:proxy")) != source_identity(resolve_source("embedded:student"))
