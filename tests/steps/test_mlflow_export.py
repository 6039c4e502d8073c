"""What is exported from the registry is the registered student, whole and unchanged."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from proxykd.evaluation.verifying import Status
from proxykd.exceptions import ArtifactError, InputError, ModelError
from steps.adapters.mlflow_export import export_folder, export_gguf
from steps.adapters.mlflow_lineage import verify
from steps.adapters.mlflow_registry import register_student
from tests.support.tiny_families import SIZES, STRANGE, byte_level_tokenizer, save_tiny

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

LINEAGE = {"name": "tiny", "specification": {"content": {"registry": {"licence": "mit"}}}}


def _register(folder: Path, *, has_lineage: bool = True) -> None:
    register_student(
        folder,
        model_name="tiny",
        student_hash="a" * 64,
        experiment="e",
        model_card="# Tiny",
        lineage=LINEAGE if has_lineage else None,
    )


@pytest.fixture
def student(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "student", LlamaConfig(**SIZES), byte_level_tokenizer())
    return tmp_path / "student"


def test_both_formats_hold_the_registered_weights(mlflow_store: Path, student: Path, tmp_path: Path) -> None:
    _register(student)
    registered, folder = export_folder("tiny", tmp_path / "hf")
    _, file = export_gguf("tiny/1", tmp_path / "gguf", precision="f32")
    assert registered.version == "1"
    assert file.name == "tiny-v1-f32.gguf"
    for place in (folder, file.parent):
        assert (place / "README.md").read_text() == "# Tiny"
        assert (place / "lineage.json").is_file()
    ids = byte_level_tokenizer()(STRANGE, return_tensors="pt")["input_ids"]
    load = AutoModelForCausalLM.from_pretrained
    models = [load(student), load(folder), load(file.parent, gguf_file=file.name, dtype=torch.float32)]
    first, *others = (model.eval()(ids).logits for model in models)
    assert all(other.equal(first) for other in others)


def test_a_damaged_version_is_not_exported(mlflow_store: Path, student: Path, tmp_path: Path) -> None:
    _register(student)
    (weights,) = (mlflow_store / "mlartifacts").rglob("model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for export in (export_folder, partial(export_gguf, precision="f32")):
        with pytest.raises(ArtifactError, match=r"model/model\.safetensors.*nothing was exported"):
            export("tiny", tmp_path / "output")
        assert not (tmp_path / "output").exists()


def test_a_folder_that_holds_something_is_left_alone(mlflow_store: Path, student: Path, tmp_path: Path) -> None:
    _register(student)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something"):
        export_folder("tiny", tmp_path / "full")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_a_version_without_lineage_says_so(mlflow_store: Path, student: Path, tmp_path: Path) -> None:
    _register(student, has_lineage=False)
    with pytest.raises(ModelError, match=r"expected lineage\.json with version 1 of tiny, found none"):
        verify("tiny")


@pytest.mark.parametrize(("before", "after"), [("tiny", "tinz"), ('"files"', '"filez"'), ("{", "[")])
def test_a_lineage_that_was_edited_is_trusted_in_nothing(
    mlflow_store: Path, student: Path, tmp_path: Path, before: str, after: str
) -> None:
    _register(student)
    (file,) = (mlflow_store / "mlartifacts").rglob("lineage.json")
    file.write_text(file.read_text().replace(before, after, 1))
    _, (document, rest) = verify("tiny")
    assert (document.what, document.status, rest.status) == ("lineage.json", Status.DIFFERS, Status.NOT_REACHED)
    with pytest.raises(ArtifactError, match=r"lineage\.json differs"):
        export_folder("tiny", tmp_path / "hf")


def test_a_lineage_of_another_program_is_refused(mlflow_store: Path, student: Path) -> None:
    _register(student)
    with pytest.raises(ArtifactError, match=r"expected 'hash' in lineage\.json of version 1 of tiny"):
        verify("tiny")
