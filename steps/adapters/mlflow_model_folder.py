"""A model folder -> the same in MLflow's own format: an ``MLmodel`` file with the flavours transformers and pyfunc.

Laid out here instead of by ``mlflow.transformers.log_model``: that one loads the model, asks the hub for a model card
and a licence under the folder's name, and leaves the tokenizer out of the model's folder. Layout:

    MLmodel, requirements.txt, python_env.yaml, conda.yaml, input_example.json
    lineage.json            what it came from, and the hash of every other file
    model/                  weights, tokenizer, generation config, README.md (the card): plain transformers loads it
    components/tokenizer/   the tokenizer again, where MLflow looks for it

A tokenizer with a chat template makes a model that takes and gives chat messages (``llm/v1/chat``); one without makes
a model of plain text.
"""

import shutil
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import yaml

from proxykd.artifacts import read_json
from proxykd.evaluation.lineage import store_lineage
from proxykd.exceptions import ArtifactError

REQUIRED_PACKAGES = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "accelerate")
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges*")
CHAT_EXAMPLE = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": 64}
TEXT_EXAMPLE = ["What is 2 + 2?"]
FORBIDDEN_SUFFIXES = frozenset({".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib"})


def write_model_folder(
    model_folder: Path, folder: Path, *, model_card: str = "", lineage: Mapping[str, Any] | None = None
) -> None:
    """Lay out ``folder`` as an MLflow model.

    Args:
        model_folder: Weights and tokenizer.
        folder: Where to; must be empty.
        model_card: Markdown.
        lineage: As ``build_lineage`` made it; None = not known.

    Raises:
        ArtifactError: if there are weights in a format that can run code.
    """
    if bad := sorted(file.name for file in model_folder.rglob("*") if file.suffix in FORBIDDEN_SUFFIXES):
        raise ArtifactError(f"expected safetensors weights in {model_folder}, found {bad}; save them with save_model")
    shutil.copytree(model_folder, folder / "model", dirs_exist_ok=True)
    (folder / "components" / "tokenizer").mkdir(parents=True)
    for pattern in TOKENIZER_FILES:
        for file in model_folder.glob(pattern):
            shutil.copy(file, folder / "components" / "tokenizer")
    if model_card:
        (folder / "model" / "README.md").write_text(model_card, encoding="utf-8")
    _write_environment(folder)
    _write_mlmodel(folder)
    if lineage is not None:
        store_lineage(lineage, folder)


def _write_environment(folder: Path) -> None:
    from mlflow.utils.environment import _PythonEnv

    # Local builds ("2.13.0+cpu") cannot be installed elsewhere: the public version is what another machine needs.
    pins = [f"{package}=={installed_version(package).partition('+')[0]}" for package in REQUIRED_PACKAGES]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    python = _PythonEnv.current()
    python.to_yaml(str(folder / "python_env.yaml"))
    dependencies: list[Any] = [f"python={python.python}", "pip", {"pip": pins}]
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": dependencies}
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False), encoding="utf-8")


def _write_mlmodel(folder: Path) -> None:
    from mlflow import pyfunc
    from mlflow.models.utils import _save_example

    config = read_json(folder / "model" / "config.json")
    flavour = {
        "task": "text-generation",
        "instance_type": "TextGenerationPipeline",
        "model_binary": "model",
        "pipeline_model_type": "AutoModelForCausalLM",
        "source_model_name": "student",
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
        "torch_dtype": f"torch.{config.get('dtype') or 'float32'}",
    }
    has_chat_template = _has_chat_template(folder / "model")
    model = _described_model(has_chat_template, flavour)
    _save_example(model, CHAT_EXAMPLE if has_chat_template else TEXT_EXAMPLE, str(folder))
    model.add_flavor("transformers", transformers_version=installed_version("transformers"), code=None, **flavour)
    pyfunc.add_to_model(
        model, loader_module="mlflow.transformers", conda_env="conda.yaml", python_env="python_env.yaml"
    )
    model.save(str(folder / "MLmodel"))


def _described_model(has_chat_template: bool, flavour: dict[str, Any]) -> Any:
    """Chat messages in and out where the tokenizer knows how to render them, else text in and out."""
    from mlflow.models import Model, ModelSignature
    from mlflow.transformers.llm_inference_utils import infer_signature_from_llm_inference_task
    from mlflow.types import ColSpec, Schema

    if not has_chat_template:
        text = Schema([ColSpec("string")])
        return Model(signature=ModelSignature(inputs=text, outputs=text))
    flavour["inference_task"] = "llm/v1/chat"
    return Model(
        signature=infer_signature_from_llm_inference_task("llm/v1/chat", None), metadata={"task": "llm/v1/chat"}
    )


def _has_chat_template(model_folder: Path) -> bool:
    if list(model_folder.glob("chat_template*")):
        return True
    return bool(read_json(model_folder / "tokenizer_config.json").get("chat_template"))
