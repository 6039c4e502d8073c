"""Lineage: all that a registered student came from, as one JSON document that hashes can be checked against.

    lineage = {
        format, name, proxykd,
        specification:  {hash, content}: the resolved specification, ablations applied,
        teachers:       [{stage, kind, model, provider, terms, first_answer_at, last_answer_at}],
        prompts:        {hash, inputs, source, terms}: of the prompt set, and of the file or dataset behind it,
        journal:        {root, num_entries, num_missing} of the answers (``proxykd.teacher.excerpt``),
        artifacts:      name -> hash of every artifact on the way,
        weights:        {source, seed}: what the registered model was before it was trained, and its seed,
        validation, fidelity, estimator, targets, evaluation: what the stages measured and how they were set,
        seeds, packages,
        cost:           {usd, teacher_usd, judge_usd, wall_hours, gpu_hours, accelerators, steps}; usd is all of it,
        files:          name -> SHA-256 of every other file of the registered version; added when it is stored,
    }

What is not known is null or "unknown", never left out.
"""

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from proxykd.artifacts import write_json
from proxykd.config import RunSpec
from proxykd.config.prompts import EmbeddedPromptsSpec, where_is
from proxykd.config.teacher import TeacherSpec
from proxykd.evaluation.spend import JUDGE, total_usd
from proxykd.records import hash_json

LINEAGE_FILE = "lineage.json"
FORMAT = 1
TRAJECTORIES = "trajectories-"
"""Artifacts called so, with their number from 0, are in the folders of ``student.trajectories``."""
PACKAGES = (
    "proxykd", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "trl", "datasets", "numpy",
    "scipy", "pyarrow", "numba", "lm-eval", "great-expectations", "mlflow", "zenml", "vllm",
)  # fmt: skip
"""Those whose version decides what a run computes; null = not installed."""

_MEASURED = ("arms", "comparisons", "num_prompts", "confidence", "resamples", "heldout")


def build_lineage(
    report: Mapping[str, Any],
    run: RunSpec,
    *,
    journal: Mapping[str, Any],
    artifacts: Mapping[str, str],
    inputs: str | None,
    steps: Mapping[str, float] | None = None,
    accelerators: int | None = None,
) -> dict[str, Any]:
    """The lineage of the student that is about to be registered.

    Args:
        report: Content of ``report.json``.
        run: The specification, ablations applied.
        journal: Content of ``journal.json``.
        artifacts: Name -> hash.
        inputs: Hash of the prompts' file or dataset; None = they were generated.
        steps: Step -> seconds that it took when it was last executed; None = not known.
        accelerators: GPUs of the machine that all steps ran on; None = not known.
    """
    facts, specification = report["facts"], run.model_dump(mode="json")
    return {
        "format": FORMAT,
        "name": run.registry.model_name,
        "specification": {"hash": hash_json(specification), "content": specification},
        "teachers": _teachers(run, journal),
        "prompts": {
            "hash": artifacts.get("prompts"),
            "inputs": inputs,
            "source": None if isinstance(run.prompts, EmbeddedPromptsSpec) else where_is(run.prompts),
            "terms": run.prompts.terms.model_dump(mode="json"),
        },
        "journal": {name: journal.get(name) for name in ("root", "num_entries", "num_missing")},
        "artifacts": dict(sorted(artifacts.items())),
        "weights": {"source": run.student.model.source, "seed": run.student.seeds[0]},
        "validation": facts.get("validation"),
        "fidelity": facts.get("fidelity"),
        "estimator": run.targets.model_dump(mode="json"),
        "targets": facts.get("targets"),
        "evaluation": {name: report[name] for name in _MEASURED if name in report},
        "seeds": {"run": run.seed, "student": list(run.student.seeds)},
        "packages": installed_packages(),
        "cost": _cost(facts, steps, accelerators),
    }


def store_lineage(lineage: Mapping[str, Any], folder: Path) -> None:
    """Write ``lineage.json`` into a folder, with the hash of every file that is there."""
    write_json(folder / LINEAGE_FILE, {**lineage, "files": hash_folder(folder)})


def installed_packages() -> dict[str, str | None]:
    """Version of Python, of the platform and of each of ``PACKAGES``; None = not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def hash_folder(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of every file of a folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def hash_file(path: Path) -> str:
    """Hex SHA-256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _teachers(run: RunSpec, journal: Mapping[str, Any]) -> list[dict[str, Any]]:
    earlier = () if run.staging is None else run.staging.earlier
    dates = {one["stage"]: one for one in journal.get("stages", [])}
    return [_teacher(stage, spec, dates) for stage, spec in enumerate([*(one.teacher for one in earlier), run.teacher])]


def _teacher(stage: int, spec: TeacherSpec, dates: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    found = dates.get(stage, {})
    return {
        "stage": stage,
        "kind": spec.kind,
        "model": getattr(spec, "model", "embedded"),
        "provider": getattr(spec, "provider", None),
        "terms": spec.terms.model_dump(mode="json"),
        "first_answer_at": found.get("first_answer_at"),
        "last_answer_at": found.get("last_answer_at"),
    }


def _cost(facts: Mapping[str, Any], steps: Mapping[str, float] | None, accelerators: int | None) -> dict[str, Any]:
    hours = None if steps is None else {name: round(seconds / 3600, 6) for name, seconds in steps.items()}
    wall = None if hours is None else round(sum(hours.values()), 6)
    spend = facts.get("spend", {})
    return {
        "usd": total_usd(spend),
        "teacher_usd": spend.get("cost_usd"),
        "judge_usd": spend.get(JUDGE, {}).get("cost_usd"),
        "wall_hours": wall,
        "gpu_hours": None if wall is None or accelerators is None else round(wall * accelerators, 6),
        "accelerators": accelerators,
        "steps": hours,
    }
