"""The summary for a pull request: short, whole, and no place for markup that came as data."""

from dataclasses import replace

import pytest

from proxykd.evaluation.page.rendering import PageData
from proxykd.evaluation.page.summary import MAX_CHARS, render_summary
from tests.evaluation.page.test_rendering import MINIMAL, samples
from tests.support.large_report import large_page


@pytest.fixture(scope="module")
def summary() -> str:
    return render_summary(replace(large_page(num_tasks=3, num_prompts=50), samples=samples()))


def outside_fences(text: str) -> str:
    """The lines that stand in no code block."""
    kept, fence = [], ""
    for line in text.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line.removesuffix("text")
        else:
            kept.append(line)
    assert not fence
    return "\n".join(kept)


def test_it_opens_with_the_verdict_and_its_reason(summary: str) -> None:
    assert summary.startswith("## large: Undecided, so not promoted")
    assert summary.index("cannot tell") < summary.index("❌ failed") < summary.index("✅ passed")


def test_nothing_that_a_model_wrote_is_markup(summary: str) -> None:
    shown = outside_fences(summary)
    assert "<script" not in shown.replace("\\<", "")
    assert "<img" not in shown.replace("\\<", "")
    assert "@everyone" not in shown
    assert "http://" not in shown


def test_tables_have_the_columns_that_their_heads_promise(summary: str) -> None:
    rows = [line for line in outside_fences(summary).split("\n") if line.startswith("|")]
    assert len(rows) > 10
    widths = [line.replace("\\|", "").count("|") for line in rows]
    heads = [place for place, line in enumerate(rows) if line.startswith("|---")]
    for start, end in zip(heads, [*(head - 1 for head in heads[1:]), len(rows)], strict=True):
        assert len(set(widths[start - 1 : end])) == 1


def test_it_fits_a_comment(summary: str) -> None:
    long = [{**one, "question": "word " * 10_000} for one in samples()]
    data = large_page(num_tasks=20, num_prompts=50)
    named = {f"arm-{idx}-{'x' * 500}": next(iter(data.report["arms"].values())) for idx in range(200)}
    assert len(render_summary(replace(data, samples=long))) < MAX_CHARS
    cut = render_summary(replace(data, report={**data.report, "arms": named}))
    assert len(cut) <= MAX_CHARS + 100
    assert "The rest is in report.html" in cut


def test_report_with_nothing_in_it_is_still_told() -> None:
    assert "No decision was made" in render_summary(PageData(MINIMAL))
