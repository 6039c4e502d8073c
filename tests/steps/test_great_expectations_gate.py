"""The gate: open and closed for the right reasons, artifacts complete either way, the page readable offline."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import CompletionSet, PromptSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.data.judging import Environment
from proxykd.exceptions import GateError
from proxykd.records import Completion, Message, Outcome, Prompt
from steps.adapters.great_expectations_gate import Folders, Validation, require_open_gate, validate

pytestmark = pytest.mark.integration  # Great Expectations takes seconds to import


def make_run(**rules: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": "gate",
            "prompts": {"kind": "embedded"},
            "teacher": {"kind": "embedded"},
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "gate"},
            "validation": rules,
        }
    )


def validate_rows(folder: Path, rows: Sequence[tuple[Outcome, str]], **rules: Any) -> Validation:
    prompts, completions = PromptSet(folder / "prompts"), CompletionSet(folder / "completions")
    built = [Prompt.build([Message("user", f"question {idx}")]) for idx in range(len(rows))]
    prompts.write(built)
    completions.write(
        Completion(p.prompt_id, 0, outcome, "timeout" * (outcome is Outcome.FAILED), text, "stop", 0, 0, 0.0, "m", "h")
        for p, (outcome, text) in zip(built, rows, strict=True)
    )
    seal(prompts)
    seal(completions)
    return validate(prompts, completions, make_run(**rules), folders(folder), Environment(folder / "scratch"))


def folders(folder: Path) -> Folders:
    return Folders(folder / "validated", folder / "docs", folder / "quarantine")


GOOD = (Outcome.OK, "a useful text")
REFUSAL = (Outcome.OK, "I'm sorry, but I can't <b>do</b> that.")
FAILURE = (Outcome.FAILED, "")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [
            str(value) for key, value in attrs if key in ("src", "href") and not str(value).startswith("#")
        ]


def parse(page: Path) -> _Links:
    parser = _Links()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_open_gate(tmp_path: Path) -> None:
    validated, result, _ = validate_rows(tmp_path, [GOOD] * 9 + [REFUSAL])
    require_open_gate(result)
    content = read_json(result.path / "result.json")
    assert content["gate"] == {"is_open": True, "reasons": []}
    assert content["num_rows"] == validated.num_rows == 10
    assert (content["verdicts"]["keep"], content["verdicts"]["refused"]) == (9, 1)
    assert content["outcomes"] == {"ok": 10, "refused": 0, "truncated": 0, "filtered": 0, "failed": 0}
    assert sum(content["kept_by_side"].values()) == 9
    assert content["great_expectations"]["results"][0]["success"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_artifacts_are_sealed_and_name_what_they_were_made_from(tmp_path: Path) -> None:
    validated, result, quarantine = validate_rows(tmp_path, [GOOD])
    validated.verify()
    quarantine.verify()
    result.verify()
    assert result.manifest["made_from"]["validated"] == validated.hash
    assert validated.manifest["made_from"]["completions"] == CompletionSet(tmp_path / "completions").hash


@pytest.mark.parametrize(
    ("rows", "rules", "reason"),
    [
        (
            [GOOD, (Outcome.OK, "")],
            {"min_keep_fraction": 0.6},
            r"is_kept for at least 60\.0% .*min_keep_fraction\), found 50\.00%",
        ),
        ([GOOD] * 9 + [FAILURE], {}, r"failed for at most 5\.0% .*failed\.max_fraction\), found 10\.00%"),
        ([GOOD, GOOD, REFUSAL], {}, r"refused for at most 20\.0% .*refused\.max_fraction\), found 33\.33%"),
        ([], {}, "there are rows"),
    ],
)
def test_closed_gate_says_why(
    tmp_path: Path, rows: list[tuple[Outcome, str]], rules: dict[str, Any], reason: str
) -> None:
    result = validate_rows(tmp_path, rows, **rules).result
    result.verify()
    with pytest.raises(GateError, match=rf"gate is closed:\n(.*\n)*.*{reason}") as caught:
        require_open_gate(result)
    assert str(result.path / "index.html") in str(caught.value)
    assert "The gate is closed" in (result.path / "index.html").read_text(encoding="utf-8")


def test_closed_gate_shows_the_first_offending_rows(tmp_path: Path) -> None:
    result = validate_rows(tmp_path, [GOOD, FAILURE, REFUSAL, (Outcome.OK, "")] * 5).result
    prompt_ids = [prompt.prompt_id for prompt in PromptSet(tmp_path / "prompts").rows()]
    with pytest.raises(GateError) as caught:
        require_open_gate(result)
    assert f"failed: prompt {prompt_ids[1]}, sample 0: timeout" in str(caught.value)
    assert f"refused: prompt {prompt_ids[2]}, sample 0: opens with \"I'm sorry" in str(caught.value)
    offending = read_json(result.path / "result.json")["offending_rows"]
    assert [row["verdict"] for row in offending] == ["failed"] * 3 + ["refused"] * 3 + ["empty"] * 3


def test_measures_that_do_not_drop_are_reported_and_leave_the_gate_open(tmp_path: Path) -> None:
    prompts, completions = PromptSet(tmp_path / "p"), CompletionSet(tmp_path / "c")
    prompt = Prompt.build([Message("user", "question")])
    prompts.write([prompt])
    completions.write(
        Completion(prompt.prompt_id, idx, Outcome.OK, "", "same", "stop", 0, 0, 0.0, "m", "h") for idx in range(4)
    )
    seal(prompts)
    seal(completions)
    result = validate(prompts, completions, make_run(), folders(tmp_path), Environment(tmp_path / "s")).result
    require_open_gate(result)
    content = read_json(result.path / "result.json")
    assert content["rules"]["duplicate"] == {"broken": 3, "measured": 4}
    failed = [item for item in content["great_expectations"]["results"] if not item["success"]]
    assert [(item["kwargs"]["column"], item["severity"]) for item in failed] == [("duplicate", "warning")]
    assert failed[0]["result"]["observed_value"] == 0.75
    assert content["warnings"] == [
        "expected duplicate for at most 0.0% of the rows (validation.rules.duplicate.max_fraction), found 75.00%"
    ]


def test_page_needs_no_network_and_escapes_the_texts(tmp_path: Path) -> None:
    result = validate_rows(tmp_path, [GOOD, REFUSAL]).result
    page = result.path / "index.html"
    found = parse(page)
    assert found.outside == []
    assert {"script", "link", "img", "b"} & set(found.tags) == {"b"}
    text = page.read_text(encoding="utf-8")
    assert "http" not in text
    assert "&lt;b&gt;do&lt;/b&gt;" in text
    assert "<b>do</b>" not in text
    assert re.search(r"mean must be greater than or equal to .*0\.5", text)


def test_same_rows_give_the_same_artifacts(tmp_path: Path) -> None:
    first = validate_rows(tmp_path / "first", [GOOD, REFUSAL])
    second = validate_rows(tmp_path / "second", [GOOD, REFUSAL])
    assert first.validated.hash == second.validated.hash
    assert first.result.hash == second.result.hash


def test_every_rule_that_was_measured_has_its_expectation(tmp_path: Path) -> None:
    result = validate_rows(tmp_path, [GOOD] * 4, languages=["en"]).result
    content = read_json(result.path / "result.json")
    columns = {item["kwargs"].get("column") for item in content["great_expectations"]["results"]}
    measured = {name for name, counts in content["rules"].items() if counts["measured"]}
    assert measured == set(content["rules"]) - {"unverified", "other_language"}  # the text is too short to tell
    assert measured - columns == {"filtered"}  # no bound


def test_a_rule_warns_or_fails_as_the_specification_says(tmp_path: Path) -> None:
    secret = (Outcome.OK, "Use this: ghp_" + "a1B2" * 9)
    for action, is_open in (("warn", True), ("fail", False)):
        rules = {"secret": {"rows": "drop", "max_fraction": 0.1, "on_breach": action}}
        validated, result, quarantine = validate_rows(tmp_path / action, [GOOD] * 4 + [secret], rules=rules)
        content = read_json(result.path / "result.json")
        assert content["gate"]["is_open"] == is_open
        reasons = content["warnings"] if is_open else content["gate"]["reasons"]
        assert "expected secret for at most 10.0% of the rows" in reasons[0]
        assert [row.verdict for row in validated.rows()] == ["keep"] * 4 + ["secret"]
        assert [row.verdict for row in quarantine.rows()] == ["secret"]
