"""What a metric is called and which way it is better."""

import json

import pytest

from proxykd.evaluation.comparing import Wanted, compare, measure
from proxykd.evaluation.metrics import FAMILIES, METRICS, describe_metrics, described, metric_of
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.statistics import Settings


def test_the_report_describes_its_metrics_the_most_telling_first() -> None:
    found = describe_metrics(["accuracy/b", "top1_agreement", "heldout_nll", "accuracy/a", "exact_kl"])
    assert list(found) == ["exact_kl", "heldout_nll", "top1_agreement", "accuracy/a", "accuracy/b"]
    again = {"metrics": json.loads(json.dumps(found))}
    assert described(again, "accuracy/a") == metric_of("accuracy/a")
    assert described({}, "exact_kl").direction == "lower"


def test_what_the_report_says_goes_before_what_the_library_knows() -> None:
    found = describe_metrics(["mystery"])
    found["mystery"]["direction"] = "higher"
    assert described({"metrics": found}, "mystery").direction == "higher"
    assert described({}, "mystery").direction == "none"


def test_no_metric_over_tokens_is_a_judgement() -> None:
    assert not any(one.is_judgement and one.is_per_token for one in (*METRICS.values(), *FAMILIES.values()))


@pytest.mark.parametrize("name", ["pass@1/code", "score/chains", "answer_agreement/sums", "win_rate/teacher"])
def test_twenty_wins_of_twenty_are_not_certain_by_any_metric_of_judgements(name: str) -> None:
    won = {f"p{idx}": (1.0, 1.0) for idx in range(20)}
    sums = {name: {"registered": {0: won}, "champion": {0: won}}}
    settings = Settings(resamples=200)
    measured = measure(sums, PromptTable(), settings, seeds_in_interval=False)["champion"][name]
    assert measured["high"] == 1.0
    assert measured["low"] < 0.95
    wanted = [Wanted(name, None, "registered", "champion")]
    (row,) = compare(sums, wanted, PromptTable(), settings, seeds_in_interval=False)
    assert row["value"] == 0.0
    assert row["low"] < -0.05
    assert row["high"] > 0.05
    assert row["mde"] > 0.05
