"""Whether a completion is what its JSON Schema asked for; one that is not is data: failed, with the reason."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from proxykd.records import Outcome
from proxykd.teacher.replies import Reply, outcome_of, plain

OutcomeRule = Callable[[Reply], tuple[Outcome, str]]
"""Outcome of a reply and, unless it is ok, the reason."""


def outcome_rule(schema: Mapping[str, Any] | None) -> OutcomeRule:
    """How replies end when they should be valid under ``schema``; None = free text."""
    if schema is None:
        return outcome_of
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema)

    def rule(reply: Reply) -> tuple[Outcome, str]:
        outcome, reason = outcome_of(reply)
        if outcome is not Outcome.OK:
            return outcome, reason
        try:
            found = next(validator.iter_errors(json.loads(reply.text)), None)
        except (ValueError, RecursionError) as error:
            return Outcome.FAILED, plain(f"not valid under the schema: no JSON: {error}")
        if found is None:
            return outcome, reason
        return Outcome.FAILED, plain(f"not valid under the schema: {found.message} at {found.json_path}")

    return rule
