"""From sums to the report, the terminal table and the page, on numbers made by hand."""

import io
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from proxykd.config import RunSpec
from proxykd.evaluation.comparing import Sums
from proxykd.evaluation.page.facts import flatten
from proxykd.evaluation.page.rendering import PageData, render_page
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.report import build_report, cut_note, metrics_of, report_table, teacher_label
from proxykd.evaluation.statistics import arm
from proxykd.exceptions import GateError

TEXTS = {"tokenizer": "ab" * 32, "num_texts": 9, "num_cut": 2, "num_skipped": 1}


def _sums(level: float, *, ids: str = "abcdef") -> dict[str, Sums]:
    return {
        "heldout_nll": {name: (level * (2 + row), float(2 + row)) for row, name in enumerate(ids)},
        "accuracy/sums": {name: (float(row % 2), 1.0) for row, name in enumerate(ids)},
    }


@pytest.fixture
def report(run_spec: RunSpec) -> dict[str, Any]:
    scores = {"none": {0: _sums(5.0)}, "sft": {0: _sums(1.0)}, "proxy_kd": {0: _sums(0.5), 1: _sums(0.7)}}
    facts = {"spend": {"cost_usd": 1.5}, "notes": {"text": "<b>"}}
    prompts = PromptTable({name: name for name in "abcdef"}, {"task=a": frozenset("abc")})
    entropy = arm(np.full(6, 0.4), np.full(6, 2.0))
    return build_report(scores, run_spec, facts=facts, entropy=entropy, texts=TEXTS, prompts=prompts)


def test_report_has_every_arm_and_difference(report: dict[str, Any]) -> None:
    assert report["num_prompts"] == 6
    assert report["arms"]["proxy_kd"]["heldout_nll"]["value"] == pytest.approx(0.6)
    assert report["arms"]["sft"]["accuracy/sums"]["value"] == 0.5
    assert report["arms"]["sft"]["heldout_nll"]["std_over_seeds"] is None
    assert report["teacher"]["entropy"]["value"] == pytest.approx(0.2)
    first = report["comparisons"][0]
    assert (first["metric"], first["arm"], first["against"]) == ("heldout_nll", "proxy_kd", "sft")
    # Every prompt says -0.4, so all the doubt is that of two seeds, 0.5 and 0.7: their mean has a standard error of 0.1
    # with one degree of freedom, and P(t_1 < -4) = 1/2 - arctan(4) / pi.
    assert (first["value"], first["p_value"]) == pytest.approx((-0.4, 0.5 - math.atan(4) / math.pi), abs=1e-5)
    assert (first["over"], first["per_seed"]) == ("prompts and seeds", pytest.approx({"0": -0.5}))
    second = report["comparisons"][1]
    assert (second["arm"], second["against"], second["value"]) == ("proxy_kd", "none", pytest.approx(-4.4))


def test_report_describes_metrics_slices_and_resources(report: dict[str, Any]) -> None:
    assert report["metrics"]["heldout_nll"]["direction"] == "lower"
    assert report["metrics"]["accuracy/sums"]["is_judgement"] is True
    assert report["resources"] == {"usd": 1.5}
    assert report["slices"] == {"task=a": 3}
    # Three prompts are too few for differences of their own.
    assert all(found["slice"] is None for found in report["comparisons"])


def test_large_slices_have_differences_of_their_own(run_spec: RunSpec) -> None:
    ids = "abcdefghijklmnopqrstuvwx"
    scores = {"sft": {0: _sums(1.0, ids=ids)}, "proxy_kd": {0: _sums(0.5, ids=ids)}}
    prompts = PromptTable(dict(zip(ids, ids, strict=True)), {"all": frozenset(ids), "half": frozenset(ids[:12])})
    report = build_report(scores, run_spec, facts={}, entropy=None, texts={}, prompts=prompts)
    sliced = [(found["slice"], found["metric"]) for found in report["comparisons"] if found["slice"]]
    assert sliced == [("half", "heldout_nll"), ("half", "accuracy/sums")]
    assert report["slices"] == {"all": 24, "half": 12}


def test_a_number_that_is_none_is_shown_as_none(run_spec: RunSpec) -> None:
    broken = _sums(0.5)
    broken["heldout_nll"] = {**broken["heldout_nll"], "a": (float("nan"), 2.0)}
    report = build_report({"sft": {0: _sums(1.0)}, "proxy_kd": {0: broken}}, run_spec, facts={}, entropy=None, texts={})
    assert report["arms"]["proxy_kd"]["heldout_nll"]["value"] is None
    first = report["comparisons"][0]
    assert (first["value"], first["p_value"]) == (None, None)
    assert "no number for 1 prompts" in first["refusal"]
    assert "no number for 1 prompts" in render_page(PageData(report))
    Console(file=io.StringIO()).print(report_table(report))


def test_p_value_asks_whether_more_is_better(report: dict[str, Any]) -> None:
    equal = [found for found in report["comparisons"] if found["metric"] == "accuracy/sums"]
    assert all(found["p_value"] == 1.0 for found in equal)


def test_prompts_that_one_arm_lacks_are_left_out_for_all(run_spec: RunSpec) -> None:
    scores = {"sft": {0: _sums(1.0)}, "proxy_kd": {0: _sums(1.0, ids="abc")}}
    nothing: dict[str, Any] = {"facts": {}, "entropy": None, "texts": {}}
    report = build_report(scores, run_spec, **nothing)
    assert report["num_prompts"] == 3
    with pytest.raises(GateError, match="every arm"):
        build_report({"sft": {0: _sums(1.0)}, "proxy_kd": {0: _sums(1.0, ids="xyz")}}, run_spec, **nothing)


def test_table_shows_values_with_intervals(report: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(report_table(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Proxy-KD" in text
    assert "0.600" in text
    # Student's 97.5 % quantile with one degree of freedom is 12.7, times a standard error of 0.1.
    assert "[-0.671, 1.871]" in text
    assert "SFT" in text
    assert "bootstrap over prompts, and seeds where an arm has several" in text
    assert "teacher" in text
    assert "95% interval" in text
    assert "Proxy-KD: mean over 2 seeds (0, 1)" in text
    assert "2 of 9 held-out texts are cut" in text


def test_entropy_of_fewer_prompts_says_of_how_many(report: dict[str, Any]) -> None:
    assert teacher_label(report) == "teacher"
    report["teacher"]["entropy"]["num_prompts"] = 4
    assert "own entropy on 4 prompts" in render_page(PageData(report))


def test_missing_text_is_told_on_the_page_and_nothing_where_all_is_there(report: dict[str, Any]) -> None:
    page = render_page(PageData(report))
    assert "2 of 9 held-out texts are cut" in page
    assert "1 held-out texts left out" in page
    assert cut_note({"heldout": {**TEXTS, "num_cut": 0, "num_skipped": 0}}) == ""


def test_page_escapes_what_it_shows(report: dict[str, Any]) -> None:
    page = render_page(PageData(report))
    assert "&lt;b&gt;" in page
    assert "Proxy-KD minus SFT, held-out NLL" in page


def test_metrics_come_in_the_order_of_their_weight(report: dict[str, Any]) -> None:
    assert metrics_of(report) == ["heldout_nll", "accuracy/sums"]


def test_flatten_keeps_every_leaf() -> None:
    rows = flatten({"a": [{"b": 1}, {"b": None}], "c": {}, "d": True, "e": 1234567})
    assert rows == [("a.0.b", "1"), ("a.1.b", "None"), ("d", "True"), ("e", "1,234,567")]
