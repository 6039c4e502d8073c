"""Registration, decisions and loading back, on real MLflow stores."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxykd.config.models import ModelSpec
from proxykd.evaluation.decision import Check, Decision
from proxykd.exceptions import ArtifactError, ModelError, PromotionError, TrackingError
from proxykd.models.loading import load_model, load_saved, load_tokenizer, save_model
from steps.adapters import mlflow_registry as registry
from steps.adapters.mlflow_model_folder import FORBIDDEN_SUFFIXES, write_model_folder
from steps.adapters.mlflow_tracking import connect

pytestmark = [
    pytest.mark.integration,
    # MLflow's own use of others: not ours to mend.
    pytest.mark.filterwarnings("default"),
]

PROMOTE, KEEP = Decision("promote", ("better",)), Decision("keep", ("not better",), (Check("primary", False, "no"),))


def _promote(expected: str | None) -> Decision:
    return replace(PROMOTE, expected_champion=expected)


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


def test_a_long_card_is_a_description_that_every_database_holds(registry_store: str, model_folder: Path) -> None:
    name, head, text = f"long-{uuid4().hex[:8]}", "---\nlicense: mit\n---\n\n", "# Tiny\n\n" + "long " * 4000
    registered = registry.register_student(
        model_folder, model_name=name, student_hash=name, experiment=name, model_card=head + text
    )
    description = connect().get_model_version(name, registered.version).description
    assert description.startswith("# Tiny")
    assert description.endswith("README.md beside the model is whole)")
    assert len(description) == 5000


def test_the_hash_of_the_lineage_stays_with_the_upload(mlflow_store: Path, model_folder: Path) -> None:
    registered = _register(model_folder, "a" * 64, lineage={"name": "tiny"})
    client = connect()
    (file,) = (mlflow_store / "mlartifacts").rglob("lineage.json")
    stored = json.loads(file.read_text())
    assert stored["name"] == "tiny"
    assert {"MLmodel", "model/model.safetensors", "model/README.md"} <= set(stored["files"])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert client.get_model_version("tiny", registered.version).tags["proxykd.lineage"] == digest
    client.delete_model_version("tiny", registered.version)  # as if killed between upload and version
    again = _register(model_folder, "a" * 64, lineage={"name": "another run's"})
    assert client.get_model_version("tiny", again.version).tags["proxykd.lineage"] == digest


def test_another_run_of_the_same_student_brings_its_own_lineage(mlflow_store: Path, model_folder: Path) -> None:
    client = connect()
    found = []
    for name in ("first", "second"):
        run_id = client.create_run("0", run_name=name).info.run_id
        more: dict[str, Any] = {"run_id": run_id, "lineage": {"name": name}}
        registered = registry.register_student(
            model_folder, model_name=name, student_hash="a" * 64, experiment="e", **more
        )
        found.append(client.get_model_version(name, registered.version))
    assert found[0].tags["proxykd.lineage"] != found[1].tags["proxykd.lineage"]
    assert found[0].source != found[1].source


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
    registry.apply_decision(third, _promote("1"))
    assert _aliases() == {"challenger": "3", "champion": "3", "previous-champion": "1"}
    champion = registry.find_champion("tiny")
    assert champion is not None
    assert champion.student_hash == "c" * 64


def test_old_decision_never_replaces_a_newer_champion(mlflow_store: Path, model_folder: Path) -> None:
    first, second = _register(model_folder, "a" * 64), _register(model_folder, "b" * 64)
    registry.apply_decision(first, PROMOTE)
    registry.apply_decision(second, _promote("1"))
    registry.apply_decision(_register(model_folder, "a" * 64), _promote("2"))
    assert _aliases() == {"challenger": "2", "champion": "2", "previous-champion": "1"}
    assert registry.applied_decision(first) == PROMOTE


def _record(version: str, decision: Decision, intent: str = "an attempt") -> None:
    """As somebody who dies right after the decision is written down."""
    record = json.dumps({**asdict(decision), "intent": intent})
    connect().set_model_version_tag("tiny", version, registry.RECORD_TAG, record)


def test_promotion_goes_on_after_an_interruption(mlflow_store: Path, model_folder: Path) -> None:
    first, second = _register(model_folder, "a" * 64), _register(model_folder, "b" * 64)
    registry.apply_decision(first, PROMOTE)
    _record(second.version, _promote("1"))
    assert registry.applied_decision(second) == _promote("1")
    assert _aliases() == {"challenger": "2", "champion": "2", "previous-champion": "1"}
    assert registry.aliases_of(second) == ["challenger", "champion"]


def test_decision_against_another_champion_is_refused_and_taken_anew(mlflow_store: Path, model_folder: Path) -> None:
    first, second, third = (_register(model_folder, digit * 64) for digit in "abc")
    registry.apply_decision(first, PROMOTE)
    registry.apply_decision(second, _promote("1"))
    with pytest.raises(PromotionError, match="expected champion 1 of tiny, found version 2"):
        registry.apply_decision(third, _promote("1"))
    assert _aliases() == {"challenger": "2", "champion": "2", "previous-champion": "1"}
    assert registry.applied_decision(third) is None
    _record(third.version, _promote("1"))  # the same, after an interruption
    assert registry.applied_decision(third) is None
    registry.apply_decision(third, KEEP)
    assert registry.applied_decision(third) == KEEP


def test_a_deleted_champion_stops_the_next_run(mlflow_store: Path, model_folder: Path) -> None:
    registry.apply_decision(_register(model_folder, "a" * 64), PROMOTE)
    connect().delete_model_version("tiny", "1")
    with pytest.raises(PromotionError, match="was deleted"):
        registry.find_champion("tiny")


def test_challenger_is_never_an_older_one(mlflow_store: Path, model_folder: Path) -> None:
    first, second = _register(model_folder, "a" * 64), _register(model_folder, "b" * 64)
    registry.apply_decision(second, KEEP)
    registry.apply_decision(first, KEEP)
    assert _aliases() == {"challenger": "2"}


def test_a_name_without_a_champion_is_its_newest_version_and_that_is_said(
    mlflow_store: Path, model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = _register(model_folder, "a" * 64), _register(model_folder, "b" * 64)
    assert registry.find_version("tiny").version == second.version
    assert "nobody is champion of tiny: its newest version is taken, 2" in capfd.readouterr().err
    registry.apply_decision(first, PROMOTE)
    capfd.readouterr()
    assert registry.find_version("tiny").version == first.version
    assert "nobody" not in capfd.readouterr().err


def test_a_store_that_cannot_be_written_leaves_the_registry_as_it_was(mlflow_store: Path, model_folder: Path) -> None:
    client = connect()
    client.create_experiment("e", artifact_location="file:///proc/nowhere")
    with pytest.raises(TrackingError, match="mend the artifact store"):
        _register(model_folder, "a" * 64)
    assert not client.search_registered_models()
    assert not registry._find_logged_model(client, client.get_experiment_by_name("e").experiment_id, "a" * 64, None)


def test_the_input_example_fits_the_signature(mlflow_store: Path, model_folder: Path) -> None:
    import mlflow

    _register(model_folder, "a" * 64)
    served = mlflow.pyfunc.load_model("models:/tiny/1")
    example = served.input_example
    assert set(example) == {"messages", "max_tokens"}
    (answer,) = served.predict({**example, "max_tokens": 2})
    assert answer["choices"][0]["message"]["role"] == "assistant"
    info = mlflow.models.get_model_info("models:/tiny/1")
    assert "messages" in info.signature.inputs.input_names()


def test_a_name_that_would_be_a_log_is_refused(mlflow_store: Path, model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"\.promotions"):
        registry.register_student(model_folder, model_name="a.promotions", student_hash="a" * 64, experiment="e")


def test_weights_in_a_format_that_runs_code_are_refused(model_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match="safetensors"):
        write_model_folder(source, tmp_path / "target")
