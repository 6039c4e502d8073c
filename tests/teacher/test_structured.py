"""A completion that is not what its schema asked for is failed data with a reason."""

import pytest

from proxykd.records import Outcome
from proxykd.teacher.replies import Reply, outcome_of
from proxykd.teacher.structured import outcome_rule

SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "next": {"$ref": "#"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"answer": 3}', ""),
        ('{"answer": 3, "next": {"answer": 4}}', ""),
        ('{"answer": "3"}', "'3' is not of type 'integer' at $.answer"),
        ('{"answer": 3, "next": {}}', "'answer' is a required property at $.next"),
        ("Three.", "no JSON"),
        ("3", "is not of type 'object' at $"),
        ('{"answer": 1, "next": ' * 3000, "no JSON"),
    ],
)
def test_a_text_is_valid_or_failed_with_the_reason(text: str, reason: str) -> None:
    outcome, found = outcome_rule(SCHEMA)(Reply(text, finish_reason="stop"))
    assert outcome is (Outcome.FAILED if reason else Outcome.OK)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    "reply",
    [
        Reply('{"answer": 3', finish_reason="length"),
        Reply("", refusal="No."),
        Reply("", finish_reason="content_filter"),
        Reply(error="HTTP 500: no"),
    ],
)
def test_what_ended_otherwise_stays_what_it_was(reply: Reply) -> None:
    assert outcome_rule(SCHEMA)(reply) == outcome_of(reply)


def test_without_a_schema_any_text_is_fine() -> None:
    assert outcome_rule(None)(Reply("Three.", finish_reason="stop")) == (Outcome.OK, "")
