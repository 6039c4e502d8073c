"""System messages and examples: one draw for ever, in proportion, by task; one side for all prompts of a question."""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config import DataSplitSpec
from proxykd.config.elicitation import SystemMessageSpec
from proxykd.config.prompts import JsonlPromptsSpec
from proxykd.data.elicitation import draw, expand
from proxykd.data.splits import side_of
from proxykd.records import Message, Prompt, hash_json, prompt_id_of

QUESTIONS = [Prompt.build([Message("user", f"q{idx}")], task="sums" if idx % 2 else "facts") for idx in range(400)]
TEXTS = ["", "Explain.", "Step by step."]


def spec_of(**changes: Any) -> JsonlPromptsSpec:
    return JsonlPromptsSpec.model_validate({"path": "x.jsonl", "task_field": "task", **changes})


def system_of(prompt: Prompt) -> str:
    return prompt.messages[0].content if prompt.messages[0].role == "system" else ""


def prompts_of(spec: JsonlPromptsSpec, seed: int = 0) -> list[Prompt]:
    return [prompt for question in QUESTIONS for prompt in expand(question, spec, seed=seed)]


def test_without_anything_before_it_a_question_is_its_own_prompt() -> None:
    assert prompts_of(spec_of()) == QUESTIONS
    assert all(prompt.split_key == prompt.prompt_id for prompt in QUESTIONS)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=6), st.integers(0, 2**31 - 1))
def test_a_draw_is_the_same_for_ever_and_is_one_of_them(weights: list[float], seed: int) -> None:
    messages = [SystemMessageSpec(text=str(idx), weight=weight) for idx, weight in enumerate(weights)]
    drawn = [draw(messages, question.prompt_id, seed=seed) for question in QUESTIONS[:20]]
    assert drawn == [draw(messages, question.prompt_id, seed=seed) for question in QUESTIONS[:20]]
    assert all(message in messages for message in drawn)


def test_draws_are_pinned() -> None:
    # A change here would ask, and pay for, other prompts than before.
    messages = [SystemMessageSpec(text=text) for text in "abcd"]
    assert "".join(draw(messages, question.prompt_id, seed=7).text for question in QUESTIONS[:12]) == "cddabdbdcccc"


def test_draws_follow_the_weights_and_the_seed() -> None:
    weights, num_draws = {"a": 1.0, "b": 3.0, "c": 0.5}, 6000
    messages = [SystemMessageSpec(text=text, weight=weight) for text, weight in weights.items()]
    ids = [hash_json(idx, length=16) for idx in range(num_draws)]
    for seed in (0, 1):
        counts = Counter(draw(messages, one, seed=seed).text for one in ids)
        for text, weight in weights.items():
            share = weight / sum(weights.values())
            assert abs(counts[text] - num_draws * share) <= 4 * math.sqrt(num_draws * share * (1 - share))
    same = sum(draw(messages, one, seed=0) == draw(messages, one, seed=1) for one in ids)
    expected = num_draws * sum((weight / sum(weights.values())) ** 2 for weight in weights.values())
    assert abs(same - expected) <= 4 * math.sqrt(expected)


def test_one_message_a_question_and_only_those_of_its_task() -> None:
    messages = [{"text": "any"}, {"text": "only sums", "tasks": ["sums"]}, {"text": "only facts", "tasks": ["facts"]}]
    prompts = prompts_of(spec_of(system_messages=messages))
    assert [prompt.messages[-1] for prompt in prompts] == [question.messages[-1] for question in QUESTIONS]
    found = {(prompt.task, system_of(prompt)) for prompt in prompts}
    assert found == {("sums", "any"), ("sums", "only sums"), ("facts", "any"), ("facts", "only facts")}


def test_all_asks_under_each_in_order_and_a_task_without_any_is_asked_as_it_is() -> None:
    messages = [{"text": text, "tasks": ["sums"]} for text in TEXTS]
    prompts = prompts_of(spec_of(system_messages=messages, system_policy="all"))
    systems = defaultdict(list)
    for prompt in prompts:
        systems[prompt.task, prompt.messages[-1].content].append(system_of(prompt))
    assert all(found == (TEXTS if task == "sums" else [""]) for (task, _), found in systems.items())
    assert len({prompt.prompt_id for prompt in prompts}) == len(prompts) == 200 + 3 * 200


def test_each_task_may_have_a_policy_of_its_own() -> None:
    messages = [{"text": text} for text in TEXTS]
    counts = Counter(p.task for p in prompts_of(spec_of(system_messages=messages, system_policy={"sums": "all"})))
    assert counts == {"sums": 600, "facts": 200}


@pytest.mark.parametrize(
    "changes",
    [
        {"system_messages": [{"text": text} for text in TEXTS], "system_policy": "all"},
        {"system_messages": [{"text": text} for text in TEXTS], "examples": [{"prompt": "e", "completion": "E"}]},
        {"examples": [{"prompt": "e", "completion": "E"}]},
    ],
)
def test_all_prompts_of_a_question_are_on_the_side_that_it_had_without_them(changes: dict[str, Any]) -> None:
    split = DataSplitSpec()
    sides = {question.messages[-1].content: side_of(question.prompt_id, split) for question in QUESTIONS}
    prompts = prompts_of(spec_of(**changes))
    assert all(side_of(prompt.split_key, split) is sides[prompt.messages[-1].content] for prompt in prompts)
    # By their own ids they would have fallen on others: held-out questions would have been trained on.
    assert any(side_of(p.prompt_id, split) is not sides[p.messages[-1].content] for p in prompts)


def test_examples_stand_after_the_system_message_and_are_not_taught() -> None:
    examples = [{"prompt": "1 + 1?", "completion": "2"}, {"prompt": "2 + 2?", "completion": "4"}]
    question = Prompt.build([Message("system", "Be brief."), Message("user", "3 + 3?")], task="sums")
    (prompt,) = expand(question, spec_of(examples=examples), seed=0)
    assert [(m.role, m.content) for m in prompt.messages] == [
        ("system", "Be brief."),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "2 + 2?"),
        ("assistant", "4"),
        ("user", "3 + 3?"),
    ]
    assert prompt.prompt_id == prompt_id_of(prompt.messages)
    assert prompt.taught_messages == question.messages
    assert question.taught_messages == question.messages


def test_examples_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "examples.jsonl").write_text(
        '\ufeff{"prompt": "p", "completion": "c", "more": 1}\n\n', encoding="utf-8"
    )
    spec = JsonlPromptsSpec.model_validate(
        {"path": "x.jsonl", "examples": "examples.jsonl"}, context={"base_folder": tmp_path}
    )
    assert [(one.prompt, one.completion) for one in spec.examples] == [("p", "c")]
    # A run's steps get the specification itself, with the texts in it.
    assert JsonlPromptsSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_the_shipped_list_is_part_of_the_specification() -> None:
    spec = spec_of(system_messages="explanation_traces")
    assert len(spec.system_messages) >= 8
    assert all(one.text == one.text.strip() and "\n" not in one.text for one in spec.system_messages)
    assert JsonlPromptsSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"system_messages": "orca"}, "ships: explanation_traces"),
        ({"system_messages": [{"text": "a"}, {"text": "a", "weight": 2}]}, "distinct texts"),
        ({"system_messages": [{"text": "a", "weight": 0}]}, "greater than 0"),
        ({"system_messages": [{"text": "a"}], "system": "b"}, "got system and system_messages"),
        ({"system_template": "{{ a }}", "system": "b"}, "got system and system_template"),
        ({"task": "a"}, "got task and task_field"),
        ({"task_field": None, "task": "a", "system_messages": [{"text": "x", "tasks": ["b"]}]}, r"name \['b'\]"),
        ({"task_field": None, "system_policy": {"b": "all"}}, r"name \['b'\]"),
        ({"template": "{{ a }}", "prompt_field": "b"}, "either template, or prompt_field"),
        ({"template": "{{ a }}", "input_field": "b"}, "either template, or prompt_field"),
        ({"template": "{{ a"}, "expected a template"),
        ({"examples": "nowhere.jsonl"}, "readable JSONL file of examples at nowhere.jsonl"),
        ({"examples": [{"prompt": " ", "completion": "a"}]}, "got a blank one"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_of(**changes)


@pytest.mark.parametrize(
    ("line", "words"), [("{", "line 2: expected one JSON object"), ('{"prompt": "a"}', "line 2: .*both of text")]
)
def test_a_bad_example_is_named_with_its_line(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "examples.jsonl").write_text(f'{{"prompt": "p", "completion": "c"}}\n{line}\n')
    with pytest.raises(ValueError, match=words):
        spec_of(examples=str(tmp_path / "examples.jsonl"))
