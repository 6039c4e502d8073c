"""What a metric is called and which way it is better."""

import json

from proxykd.evaluation.metrics import FAMILIES, METRICS, describe_metrics, described, metric_of


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


def test_no_metric_is_binary_over_tokens() -> None:
    assert not any(one.is_binary and one.is_per_token for one in (*METRICS.values(), *FAMILIES.values()))
