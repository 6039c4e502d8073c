"""Loading a specification: overrides, and one clear message for everything that is wrong with a file."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.config import RunSpec, load_specification
from proxykd.config.prompts import JsonlPromptsSpec
from proxykd.config.teacher import OpenAITeacherSpec
from proxykd.exceptions import ConfigError

BASE: dict[str, Any] = {
    "name": "a-run",
    "prompts": {"kind": "jsonl", "path": "data/prompts.jsonl"},
    "teacher": {"kind": "openai", "model": "gpt-4o", "api_key": "${OPENAI_API_KEY}"},
    "proxy": {"model": {"source": "embedded:proxy"}},
    "student": {"model": {"source": "embedded:student"}},
    "registry": {"model_name": "a-run"},
}


def write(folder: Path, **sections: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**BASE, **sections}))
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_specification(path, overrides)
    return str(caught.value)


def test_defaults_are_filled_in_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    run = load_specification(write(tmp_path))
    assert isinstance(run.prompts, JsonlPromptsSpec)
    assert run.prompts.path == tmp_path / "data" / "prompts.jsonl"
    assert isinstance(run.teacher, OpenAITeacherSpec)
    assert run.teacher.api_key == "${OPENAI_API_KEY}"
    assert run.validation.min_keep_fraction == 0.5


def test_anchors_and_merges_are_no_twins(tmp_path: Path) -> None:
    proxy = """{model: {source: "embedded:proxy"}, warmup: {optimizer: &o {batch_size: 8}},
        preference: {optimizer: {<<: *o, batch_size: 4}}}"""
    run = load_specification(write(tmp_path), [f"proxy={proxy}"])
    assert run.proxy.preference is not None
    assert run.proxy.preference.optimizer.batch_size == 4


def test_a_models_folder_is_found_beside_the_file_or_from_where_it_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("beside/model", "here/model"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    path = write(tmp_path / "beside", proxy={"model": {"source": "model"}}, student={"model": {"source": "nobody/hub"}})
    run = load_specification(path)
    assert (run.proxy.model.source, run.student.model.source) == (str(tmp_path / "beside" / "model"), "nobody/hub")
    run = load_specification(path, ["proxy.model.source=model"])
    assert run.proxy.model.source == str(tmp_path / "here" / "model")


def test_resolved_specification_loads_to_the_same(tmp_path: Path) -> None:
    run = load_specification(write(tmp_path, ablations=["no_weights"]))
    assert RunSpec.model_validate_json(run.model_dump_json()) == run


def test_overrides_replace_single_values_in_yaml(tmp_path: Path) -> None:
    overrides = ["student.steps=7", "student.seeds=[1, 2]", "proxy.warmup=null", "split.mode=shared"]
    run = load_specification(write(tmp_path), overrides)
    assert (run.student.steps, run.student.seeds, run.proxy.warmup, run.split.mode) == (7, (1, 2), None, "shared")


def test_overridden_paths_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = load_specification(write(tmp_path), ["prompts.path=mine.jsonl"])
    assert isinstance(run.prompts, JsonlPromptsSpec)
    assert run.prompts.path == tmp_path / "elsewhere" / "mine.jsonl"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.steps", "expected KEY=VALUE, got 'student.steps'"),
        ("=3", "expected KEY=VALUE"),
        ("student.steps=[1", "the value of 'student.steps' is not YAML"),
        ("name.first=3", "'name' is a value, not a section; set name=VALUE itself"),
        ("name=a/b", "name: expected text of the pattern ^[a-z0-9][a-z0-9-]*$, got 'a/b'; `proxykd schema`"),
        ("teacher.base_url=api.openai.com/v1", "teacher.base_url: expected an address such as https://host:port/v1"),
        ("teacher.base_url=ftp://host/v1", "teacher.base_url: expected an address such as https://host:port/v1"),
        ("student.step=3", "student.step: unknown key; did you mean 'steps'?"),
        ("prompts.kid=3", "prompts.kid: unknown key; did you mean 'kind'?"),
        ("name=2024-13-45", "the value of 'name' is not YAML: month must be in 1..12; put texts that look like dates"),
        ("name={a: 1, a: 2}", "the key 'a' occurs twice at line 1, column 8"),
        ("name={{x}}", "the value of 'name' is not YAML"),
        (f"name={'[' * sys.getrecursionlimit()}", "the value of 'name' is nested too deeply"),
        ("student.steps=0", "student.steps: Input should be greater than or equal to 1, got 0"),
        ("student.trajectories=[/a, /b, /a]", "expected distinct trajectories, got (/a, /b, /a)"),
        ("student.seeds=[1, 1]", "student.seeds: expected distinct seeds, got (1, 1)"),
        ("student.alpha=.inf", "student.alpha: Input should be a finite number, got inf"),
        ("student.living_teacher={kind: okd, rnk: 3}", "student.living_teacher.rnk: unknown key; did you mean 'rank'?"),
        (
            "student.living_teacher={kind: gkd, divergence: {kind: skew_kl, skw: 0.2}}",
            "student.living_teacher.divergence.skw: unknown key; did you mean 'skew'?",
        ),
        (
            "student.objective.divergence={kind: reverse_kl, beta: 0.5}",
            "student.objective.divergence.beta: no key of this kind, but of another one",
        ),
        ("targets.reduction={kind: sampled, k: 3}", "targets.reduction.k: no key of this kind, but of another one"),
        ("student.living_teacher={}", "student.living_teacher: expected its kind, found none"),
        ("student.living_teacher={kind: dpo}", "expected one of the kinds 'gkd', 'minillm', 'okd', got 'dpo'"),
        ("student.objective.divergence=reverse_kl", "expected a section with its kind, as in {kind: ...}, got 'rev"),
    ],
)
def test_overrides_that_cannot_be_used(tmp_path: Path, override: str, message: str) -> None:
    assert message in complaint(write(tmp_path), override)


def test_unknown_keys_are_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    found = complaint(write(tmp_path, validation={"min_char": 3}, sedd=1, qqqq=2))
    assert "validation.min_char: unknown key; did you mean 'min_chars'?" in found
    assert "sedd: unknown key; did you mean 'seed'?" in found
    assert "qqqq: unknown key; `proxykd schema` lists all keys" in found


def test_a_list_whose_only_item_is_wrong_is_not_called_empty(tmp_path: Path) -> None:
    judge = {"teacher": {"kind": "openai", "model": "m"}, "duels": [{"arm": "proxy_kd", "against": "sfft"}]}
    found = complaint(write(tmp_path, evaluation={"drift": {}, "judge": judge}))
    assert "evaluation.judge.duels.0.against: Input should be" in found
    assert "at least 1 item" not in found
    judge["duels"] = []
    assert "at least 1 item" in complaint(write(tmp_path, evaluation={"drift": {}, "judge": judge}))


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    found = complaint(write(tmp_path, seed="many", student={}, targets={"reduction": {"kind": "top_k", "k": 0}}))
    assert "seed: Input should be a valid integer" in found
    assert "got 'many'" in found
    assert "student.model: missing" in found
    assert "targets.reduction.k: " in found


@pytest.mark.parametrize("pasted", ["sk-verysecret", "$OPENAI_API_KEY", "${lower}", "${A}${B}"])
def test_secrets_are_refused_without_being_repeated(tmp_path: Path, pasted: str) -> None:
    found = complaint(write(tmp_path, teacher={"kind": "openai", "model": "m", "api_key": pasted}))
    assert "teacher.api_key" in found
    assert "${NAME}" in found
    assert pasted not in found


@pytest.mark.parametrize("value", [["sk-verysecret"], {"key": "sk-verysecret"}, 123456789])
def test_secrets_of_another_type_are_not_repeated_either(tmp_path: Path, value: Any) -> None:
    found = complaint(write(tmp_path, teacher={"kind": "openai", "model": "m", "api_key": value}))
    assert "api_key" in found
    assert "sk-verysecret" not in found
    assert "123456789" not in found


def test_secrets_beside_another_mistake_are_not_repeated(tmp_path: Path) -> None:
    teacher = {"kind": "opena", "model": "m", "api_key": "sk-verysecret"}
    assert "sk-verysecret" not in complaint(write(tmp_path, teacher=teacher))
    assert "sk-verysecret" not in complaint(write(tmp_path, teacher={"model": "m", "api_key": "sk-verysecret"}))
    unknown = {"kind": "openai", "model": "m", "apikey": "sk-verysecret"}
    assert "sk-verysecret" not in complaint(write(tmp_path, teacher=unknown))


@pytest.mark.parametrize(
    "address",
    [
        "https://user:sk-verysecret@host/v1",
        "https://sk-verysecret@host/v1",
        "https://host/v1?key=sk-verysecret",
        "https://host/v1#sk-verysecret",
        "https://host/v1?",
        "https:///sk-verysecret@host/v1",
        "https://host:sk-verysecret/v1",
        "https://[sk-verysecret/v1",
        "https://user:sk-verysecret\u2100@host/v1",
        "https://host/v1\nsk-verysecret",
        "htp://user:sk-verysecret@host/v1",
    ],
)
def test_addresses_that_may_hold_a_secret_are_refused_without_being_repeated(tmp_path: Path, address: str) -> None:
    found = complaint(write(tmp_path, teacher={"kind": "openai", "model": "m", "base_url": address}))
    assert "teacher.base_url" in found
    assert "verysecret" not in found


@pytest.mark.parametrize("tail", ["/chat/completions", "/chat/completions/", "/messages", "/models/m:generateContent"])
def test_an_address_ends_with_the_version(tmp_path: Path, tail: str) -> None:
    address = f"https://llm.example/v1{tail}"
    found = complaint(write(tmp_path, teacher={"kind": "openai", "model": "m", "base_url": address}))
    assert "teacher.base_url" in found
    assert "leave out" in found


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000/v1", "https://[::1]:8000/v1/", "https://host/a/@b/v1"])
def test_plain_addresses_are_taken_as_they_are(tmp_path: Path, address: str) -> None:
    run = load_specification(write(tmp_path, teacher={"kind": "openai", "model": "m", "base_url": address}))
    assert isinstance(run.teacher, OpenAITeacherSpec)
    assert run.teacher.base_url == address


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "name a-run\nprompts:\n  kind: embedded\n",
            "a colon that fits nothing at line 2, column 8 (a missing one before it, ",
        ),
        ("name: run\nprompts\n  kind: x\nteacher: y\n", "a key's colon is missing"),
        ("name: run\nprompts:\n\tkind: x\n", "a tab at line 3, column 1, where YAML takes spaces alone"),
        ("name: run\nprompts: {kind: x\nteacher: {}\n", "at line 3, column 8, in what begins at line 2, column 10"),
        (
            "a:\n  b: 1\n   c: 2\n",
            "a colon that fits nothing at line 3, column 5 (a missing one before it, a wrong indent",
        ),
        ("a:\n  b: {c: 1}\n   d: 2\n", "does not fit those before it (a wrong indent, a quote left open) at line 3"),
    ],
)
def test_broken_yaml_is_told_in_words_and_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(content)
    assert message in complaint(tmp_path / "run.yaml")


def test_secrets_in_broken_yaml_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("teacher:\n  api_key: sk-verysecret: [\n")
    found = complaint(tmp_path / "run.yaml")
    assert "line 2" in found
    assert "sk-verysecret" not in found
    assert "sk-verysecret" not in complaint(write(tmp_path), "teacher.api_key=[sk-verysecret")
    assert "sk-verysecret" not in complaint(write(tmp_path), "name.api_key=sk-verysecret")


def test_missing_folder_and_other_files(tmp_path: Path) -> None:
    assert "expected a run specification at" in complaint(tmp_path / "nowhere.yaml")
    assert "Is a directory" in complaint(tmp_path)
    for content, message in (
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"- 1", "found a list"),
        (b"", "found nothing"),
    ):
        (tmp_path / "run.yaml").write_bytes(content)
        assert message in complaint(tmp_path / "run.yaml")
