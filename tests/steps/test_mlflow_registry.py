"""Registration, aliases and loading back, on a real MLflow store in SQLite."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxykd.config.models import ModelSpec
from proxykd.evaluation.decision import Decision
from proxykd.exceptions import ArtifactError
from proxykd.models.loading import load_model, load_saved, load_tokenizer, save_model
from steps.adapters import mlflow_registry as registry
from steps.adapters.mlflow_model_folder import FORBIDDEN_SUFFIXES, write_model_folder
from steps.adapters.mlflow_tracking import connect

pytestmark = [
    pytest.mark.integration,
    # MLflow's own use of others: not ours to mend.
    pytest.mark.filterwarnings("default"),
]

PROMOTE, KEEP = Decision("promote", ("better",)), Decision("keep", ("not better",))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, spec = tmp_path_factory.mktemp("student"), ModelSpec(source="embedded:student")
    save_model(load_model(spec, seed=0), load_tokenizer(spec), folder)
    return folder


def _register(model_folder: Path, student_hash: str, **more: Any) -> registry.RegisteredVersion:
    return registry.register_student(
        model_folder, model_name="tiny", student_hash=student_hash, experiment="e", model_card="# Tiny", **more
    )


def _aliases() -> dict[str, str]:
    return {alias: str(version) for alias, version in connect().get_registered_model("tiny").aliases.items()}


def test_registered_student_loads_back_three_ways(mlflow_store: Path, model_folder: Path) -> None:
    import mlflow

    registered = _register(model_folder, "a" * 64, tags={"validated": "f" * 64})
    registry.apply_decision(registered, PROMOTE)
    served = mlflow.pyfunc.load_model("models:/tiny@champion")
    (answer,) = served.predict({"messages": [{"role": "user", "content": "2 + 2?"}], "max_tokens": 4})
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] <= 4
    pipeline = mlflow.transformers.load_model("models:/tiny@champion")
    assert pipeline("2 + 2?", max_new_tokens=2)[0]["generated_text"].startswith("2 + 2?")
    folder = registry.download_champion("tiny", mlflow_store / "champion")
    assert folder is not None
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer("2 + 2?", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=2).shape[1] > prompt.input_ids.shape[1]
    original, _ = load_saved(model_folder)
    assert all(original.state_dict()[name].equal(weight) for name, weight in model.state_dict().items())
    version = connect().get_model_version("tiny", "1")
    assert version.tags["validated"] == "f" * 64
    assert version.description == "# Tiny"


def test_nothing_that_is_logged_can_run_code(mlflow_store: Path, model_folder: Path) -> None:
    registry.register_student(model_folder, model_name="tiny", student_hash="a" * 64, experiment="e")
    files = [path for path in (mlflow_store / "mlartifacts").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".json", ".safetensors", ".txt", ".yaml", ".md", ".jinja"}
    assert not {path.suffix for path in files} & FORBIDDEN_SUFFIXES
    assert {"MLmodel", "model.safetensors", "tokenizer.json", "requirements.txt"} <= {path.name for path in files}
    requirements = next(path for path in files if path.name == "requirements.txt").read_text()
    assert "torch==" in requirements
    assert "+" not in requirements


def test_same_student_is_registered_once(mlflow_store: Path, model_folder: Path) -> None:
    first, again = _register(model_folder, "a" * 64), _register(model_folder, "a" * 64)
    assert (first.version, first.is_new) == ("1", True)
    assert (again.version, again.is_new) == ("1", False)
    assert _register(model_folder, "b" * 64).version == "2"


def test_registration_goes_on_from_an_upload_without_a_version(
    mlflow_store: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    registered = _register(model_folder, "a" * 64)
    client.delete_model_version("tiny", registered.version)  # as if killed between upload and version
    again = _register(model_folder, "a" * 64)
    assert again.is_new
    assert len(list((mlflow_store / "mlartifacts" / "e" / "models").iterdir())) == 1


def test_upload_that_was_interrupted_is_not_used(mlflow_store: Path, model_folder: Path) -> None:
    from steps.adapters.mlflow_tracking import ensure_experiment

    client = connect()
    client.create_logged_model(ensure_experiment(client, "e"), name="student", tags={registry.STUDENT_TAG: "a" * 64})
    registered = _register(model_folder, "a" * 64)
    registry.apply_decision(registered, PROMOTE)
    assert registry.download_champion("tiny", mlflow_store / "champion") is not None


def test_aliases_follow_decisions(mlflow_store: Path, model_folder: Path) -> None:
    assert registry.find_champion("tiny") is None
    assert registry.download_champion("tiny", mlflow_store / "champion") is None
    first, second, third = (_register(model_folder, digit * 64) for digit in "abc")
    assert registry.find_champion("tiny") is None
    registry.apply_decision(first, PROMOTE)
    assert _aliases() == {"challenger": "1", "champion": "1"}
    registry.apply_decision(second, KEEP)
    assert _aliases() == {"challenger": "2", "champion": "1"}
    registry.apply_decision(third, PROMOTE)
    assert _aliases() == {"challenger": "3", "champion": "3", "previous-champion": "1"}
    champion = registry.find_champion("tiny")
    assert champion is not None
    assert champion.student_hash == "c" * 64


def test_old_decision_never_replaces_a_newer_champion(mlflow_store: Path, model_folder: Path) -> None:
    first, second = _register(model_folder, "a" * 64), _register(model_folder, "b" * 64)
    registry.apply_decision(first, PROMOTE)
    registry.apply_decision(second, PROMOTE)
    registry.apply_decision(_register(model_folder, "a" * 64), PROMOTE)
    assert _aliases() == {"challenger": "2", "champion": "2", "previous-champion": "1"}
    assert registry.applied_decision(first) == PROMOTE


def test_promotion_goes_on_after_an_interruption(mlflow_store: Path, model_folder: Path) -> None:
    first, second = _register(model_folder, "a" * 64), _register(model_folder, "b" * 64)
    registry.apply_decision(first, PROMOTE)
    client = connect()  # killed between the record of the decision and the aliases
    client.set_model_version_tag("tiny", second.version, registry.REASONS_TAG, '["better"]')
    client.set_model_version_tag("tiny", second.version, registry.DECISION_TAG, "promote")
    assert registry.applied_decision(second) == PROMOTE
    assert _aliases() == {"challenger": "2", "champion": "2", "previous-champion": "1"}
    assert registry.aliases_of(second) == ["challenger", "champion"]


def test_weights_in_a_format_that_runs_code_are_refused(model_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match="safetensors"):
        write_model_folder(source, tmp_path / "target")
