"""Querying and estimation divided among steps of their own, as pods do it on a cluster."""

from pathlib import Path

import pytest

from tests.support.program import Finished, Home

pytestmark = pytest.mark.integration


def test_a_run_in_shards_is_the_run_in_one_piece(undisturbed: tuple[Home, Finished], tmp_path: Path) -> None:
    home = Home.create(tmp_path / "shards")
    finished = home.run("--shards", "query_teacher=3", "--shards", "estimate_distributions=2")
    assert finished.status == 0, finished.stderr
    statuses, whole = home.statuses(), undisturbed[1].report
    assert [name for name in statuses if "-of-" in name] == [
        "query_teacher_1-of-3",
        "query_teacher_2-of-3",
        "query_teacher_3-of-3",
        "estimate_distributions_1-of-2",
        "estimate_distributions_2-of-2",
    ]
    assert home.num_answers() == undisturbed[0].num_answers()
    report = finished.report
    assert report["arms"]["sft"] == whole["arms"]["sft"]
    # Batches are cut otherwise: the proxy's scores, and what is learnt from them, differ by rounding.
    for metric, measured in whole["arms"]["proxy_kd"].items():
        if isinstance(measured, dict) and "value" in measured:
            found = report["arms"]["proxy_kd"][metric]["value"]
            assert found == pytest.approx(measured["value"], abs=2e-3), metric
