"""The harness's tasks by name: our verdicts are those of the harness's own transformers model."""

import json
from pathlib import Path
from typing import Any

import pytest

from proxykd.config import RunSpec
from proxykd.config.evaluation import HarnessTaskSpec
from proxykd.evaluation.generation import Respondent
from proxykd.evaluation.harness import load_harness, quiet
from proxykd.evaluation.tasks import run_task
from proxykd.evaluation.tasks_harness import load_tasks
from proxykd.exceptions import InputError
from proxykd.models.loading import load_model, load_tokenizer

pytestmark = pytest.mark.integration

CHOICES = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{q}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
GENERATION = """
task: local_generation
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["a", "\\n"], do_sample: false, max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/choice.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list:
  - {metric: bits_per_byte}
  - {metric: word_perplexity}
"""
GROUP = """
group: local_group
task: [local_choice, local_second]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"q": f"How many pears has Ann, {row} or {row + 1}?", "choices": [f" {row}", f" {row + 10}", " none at all"]}
        for row in range(12)
    ]
    lines = [json.dumps({**row, "right": place % 3, "a": str(place)}) for place, row in enumerate(rows)]
    (folder / "choice.jsonl").write_text("\n".join(lines))
    second = CHOICES.replace("local_choice", "local_second")
    for name, text in (("c", CHOICES), ("s", second), ("g", GENERATION), ("r", ROLLING), ("group", GROUP)):
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


@pytest.fixture(scope="module")
def parts(run_spec: RunSpec) -> tuple[Any, Any]:
    return load_model(run_spec.student.model, seed=0).eval(), load_tokenizer(run_spec.student.model)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ["local_choice", "local_generation", "local_rolling"])
def test_verdicts_are_those_of_the_harness_with_its_own_model(folder: Path, parts: tuple[Any, Any], name: str) -> None:
    from lm_eval.models.huggingface import HFLM

    spec = HarnessTaskSpec(name=name, folder=folder)
    with quiet():
        theirs = HFLM(pretrained=parts[0], tokenizer=parts[1], batch_size=4, max_length=512)
        results = load_harness().evaluate(theirs, {"tasks": load_tasks(spec)}, bootstrap_iters=0)["results"][name]
    sums: dict[str, list[tuple[float, float]]] = {}
    answers = list(run_task(spec, Respondent(*parts), ()))
    for answer in answers:
        for metric, pair in answer.sums.items():
            sums.setdefault(metric.partition("/")[0], []).append(pair)
    values = {metric: sum(a for a, _ in pairs) / sum(b for _, b in pairs) for metric, pairs in sums.items()}
    ours = {"acc": "accuracy", "acc_norm": "accuracy_normalised", "exact_match": "accuracy"}
    for key, expected in results.items():
        metric = key.partition(",")[0]
        if ours.get(metric, metric) in values:
            assert values[ours.get(metric, metric)] == pytest.approx(expected, rel=1e-5)
    assert len(answers) == 12
    assert values


def test_group_is_one_task_with_slices(folder: Path, parts: tuple[Any, Any]) -> None:
    answers = list(run_task(HarnessTaskSpec(name="local_group", folder=folder, limit=5), Respondent(*parts), ()))
    assert len(answers) == 10
    assert {answer.slices for answer in answers} == {("local_group/local_choice",), ("local_group/local_second",)}
    assert all("accuracy/local_group" in answer.sums and answer.confidence is not None for answer in answers)


def test_few_shot_examples_and_chosen_metrics_are_heeded(folder: Path, parts: tuple[Any, Any]) -> None:
    spec = HarnessTaskSpec(name="local_choice", folder=folder, num_fewshot=2, metrics=("acc",), limit=3)
    answers = list(run_task(spec, Respondent(*parts), ()))
    assert all(answer.question.count("Question:") == 3 for answer in answers)
    assert all("accuracy_normalised/local_choice" not in answer.sums for answer in answers)


def test_data_that_cannot_be_had_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CHOICES.replace("FOLDER", str(tmp_path / "gone")))
    with pytest.raises(InputError, match=r"evaluation.tasks\[\].folder \(dataset_path: json"):
        load_tasks(HarnessTaskSpec(name="local_choice", folder=tmp_path))


def test_unknown_task_and_metric_are_named(folder: Path, parts: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="no_such_task"):
        load_tasks(HarnessTaskSpec(name="no_such_task"))
    with pytest.raises(InputError, match="no_such_metric"):
        list(
            run_task(
                HarnessTaskSpec(name="local_choice", folder=folder, metrics=("no_such_metric",)), Respondent(*parts), ()
            )
        )
