"""What the page shows of a judge and of calibration: the numbers of the report, in their places."""

import random
from typing import Any

import pytest

from proxykd.evaluation.page.judgements import judgements
from proxykd.evaluation.page.reliability import HEIGHT, diagrams
from proxykd.evaluation.page.rendering import PageData, render_page
from tests.evaluation.page.test_rendering import MINIMAL
from tests.support.judged_report import DUELS, calibration, judge


@pytest.fixture
def report() -> dict[str, Any]:
    rng = random.Random(0)
    return {**MINIMAL, "judge": judge(rng, "referee"), "calibration": calibration(rng, ["sft", "proxy_kd"], 1)}


def test_each_duel_has_its_rate_on_the_axis_and_its_consistency_in_the_table(report: dict[str, Any]) -> None:
    found = judgements(report)
    assert found is not None
    rates, strengths = found.groups
    assert len(rates.rows) == len(found.duels) == len(DUELS)
    duel, row = report["judge"]["duels"][0], rates.rows[0]
    assert row.label == "Proxy-KD against SFT"
    assert row.text.startswith(f"{duel['win_rate']['value']:.3f}")
    assert row.at == pytest.approx(3 + 94 * duel["win_rate"]["value"], abs=0.01)
    assert rates.line is not None
    assert rates.line[0] == 50.0
    assert found.duels[0][1:5] == (str(duel["wins"]), "30", str(duel["losses"]), "2")
    assert found.duels[0][-2:] == ("83%", "56%")
    values = [report["judge"]["strengths"][arm]["value"] for arm in report["judge"]["strengths"]]
    assert [mark.text.split()[0] for mark in strengths.rows] == [f"{one:.3f}" for one in sorted(values, reverse=True)]


def test_grades_alone_have_their_own_axis(report: dict[str, Any]) -> None:
    graded = {
        **report["judge"],
        "duels": [],
        "strengths": {},
        "grades": {"sft": {"value": 6.0, "low": 5.0, "high": 7.0}},
    }
    found = judgements({**report, "judge": graded})
    assert found is not None
    (group,) = found.groups
    assert (group.title, group.rows[0].text) == ("grade", "6.000 [5.000, 7.000]")


def test_a_judge_who_never_gave_a_score_is_shown_without_numbers(report: dict[str, Any]) -> None:
    nothing = {"value": None, "low": None, "high": None}
    empty = {"num_pairs": 0, "agreement": None, "first_preferred": None}
    duel = {**report["judge"]["duels"][0], "win_rate": nothing, "score": None, "consistency": empty}
    silent = {**report["judge"], "duels": [duel], "strengths": {"sft": nothing}}
    found = judgements({**report, "judge": silent})
    assert found is not None
    assert found.groups[0].rows[0].at is None
    assert found.duels[0][-2:] == ("-", "-")
    assert 'id="judge"' in render_page(PageData({**report, "judge": silent}))


def test_dots_stand_where_confidence_and_outcome_say(report: dict[str, Any]) -> None:
    first = diagrams(report)[0]
    assert first.title == "next tokens of the teacher's texts"
    assert first.diagonal == "3,100 97,0"
    bins = report["calibration"]["tokens"]["sft"]["bins"]
    for one, (x, y, _, text) in zip(bins, first.arms[0].dots, strict=True):
        assert x == pytest.approx(3 + 94 * one["confidence"], abs=0.01)
        assert y == pytest.approx(HEIGHT * (1 - one["outcome"]), abs=0.06)
        assert f"{one['count']:,}" in text
    radii = [dot[2] for dot in first.arms[0].dots]
    assert radii == sorted(radii), "the bins of this report grow"
    assert "0.012 by luck" in first.arms[0].text


def test_sections_are_there_where_there_is_something_to_show(report: dict[str, Any]) -> None:
    page = render_page(PageData(report))
    assert 'href="#judge"' in page
    assert 'href="#calibration"' in page
    none = render_page(PageData({**MINIMAL, "calibration": {"tokens": {}}}))
    assert 'id="judge"' not in none
    assert 'id="calibration"' not in none
