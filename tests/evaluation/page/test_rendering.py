"""The page as a file: whole, small, without scripts, and with every text in its place."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxykd.evaluation.page import rendering
from proxykd.evaluation.page.rendering import PageData, render_page, write_page
from tests.support.large_report import HOSTILE, large_page

VOID = {"meta", "link", "img", "br", "hr", "input", "base"}
LOADING = {"src", "href", "action", "formaction", "poster", "data", "srcset", "ping", "background", "xlink:href"}
MINIMAL: dict[str, Any] = {
    "name": "small", "num_prompts": 3, "confidence": 0.95, "resamples": 10, "heldout": {}, "metrics": {}, "slices": {},
    "arms": {"sft": {"heldout_nll": {"value": 1.0, "low": None, "high": None, "per_seed": {}}}},
    "comparisons": [], "teacher": {}, "facts": {},
}  # fmt: skip


class Page(HTMLParser):
    """What is on a page: tags with their attributes, ids, and text by the tag that it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        self.text[tag] = self.text.get(tag, "") + data

    @property
    def all_text(self) -> str:
        return "".join(text for tag, text in self.text.items() if tag != "style")


def samples() -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"{place:016x}", "task": "sums", "question": text, "reference": text, "teacher": text,
            "against": "champion", "change": {"is_lost": True, "nll": 0.5},
            "answers": [{"arm": arm, "text": text, "is_correct": arm == "champion", "nll": 1.0}
                        for arm in ("proxy_kd", "champion", "proxy")],
        }
        for place, text in enumerate(HOSTILE)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data() -> PageData:
    return replace(large_page(num_tasks=3, num_prompts=50), samples=samples())


@pytest.fixture(scope="module")
def text(data: PageData) -> str:
    return render_page(data)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_tags_are_balanced_and_none_can_run_or_load(page: Page) -> None:
    assert not page.open
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "form", "img", "base", "audio"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert all((attributes.get(name) or "#").startswith(("#", "data:,")) for name in LOADING), (tag, attributes)


def test_policy_admits_the_style_sheet_and_nothing_else(page: Page, text: str) -> None:
    (policy,) = [found["content"] for _, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_shown_and_nothing_more(page: Page, hostile: str) -> None:
    shown = rendering.visible(hostile)[:150]
    assert shown in page.text["p"]
    assert "49" not in page.text["p"].split("{{ 7 * 7 }}")[-1][:10]


def test_links_inside_the_page_lead_somewhere(page: Page) -> None:
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    anchors = {found["href"] for tag, found in page.tags if tag == "a"}
    assert {f"#{name}" for name in ids} == anchors
    assert anchors >= {"#checks", "#differences", "#samples", "#pareto", "#slices", "#tasks", "#lineage"}


def test_drawings_have_words_or_stand_beside_them(page: Page) -> None:
    outer = [found for tag, found in page.tags if tag == "svg" and "viewbox" not in found]
    assert len(outer) > 50
    assert all(found.get("aria-hidden") == "true" or found.get("aria-label") for found in outer)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.tags[0][1]["lang"] == "en"


def test_verdict_and_checks_come_first_and_the_failed_ones_lead(text: str) -> None:
    assert text.index("Undecided, so not promoted") < text.index("cannot tell") < text.index('id="checks"')
    assert text.index("✗ failed") < text.index("? not known") < text.index("✓ passed")


def test_worst_answer_leads_and_names_who_was_right(page: Page) -> None:
    assert "champion was right, the student is wrong; NLL +0.500" in page.text["p"]
    assert page.text["span"].count("wrong") == 2 * len(HOSTILE)


def test_comparison_that_was_refused_says_why() -> None:
    row = {
        "metric": "heldout_nll",
        "slice": None,
        "arm": "registered",
        "against": "champion",
        "refusal": "two alphabets",
    }
    numbers = dict.fromkeys(("value", "low", "high", "p_value", "mde"))
    page = Page(render_page(PageData({**MINIMAL, "comparisons": [{**row, **numbers, "num_prompts": 0}]})))
    assert "not compared: two alphabets" in page.all_text


def test_sections_without_data_are_left_out() -> None:
    page = Page(render_page(PageData(MINIMAL)))
    ids = {found["id"] for _, found in page.tags if "id" in found}
    assert ids == {"main", "arms", "lineage"}
    assert "No decision was made" in page.all_text
    assert "1.000" in page.all_text


def test_numbers_that_do_not_exist_are_no_numbers() -> None:
    absent = {"value": None, "low": None, "high": None, "per_seed": {"0": None}}
    infinite = {"value": float("nan"), "low": 0.0, "high": float("inf"), "per_seed": {}}
    arms = {"sft": {"heldout_nll": absent}, "proxy_kd": {"heldout_nll": infinite}}
    assert "nan" not in Page(render_page(PageData({**MINIMAL, "arms": arms}))).all_text.lower()


def test_facts_that_no_section_shows_are_listed(page: Page) -> None:
    judged = {**MINIMAL, "extra": {"win_rate": 0.625}, "facts": {"drift": {"refusals": 0.25}}}
    shown = Page(render_page(PageData(judged))).all_text
    assert "win_rate" in shown
    assert "0.625" in shown
    assert "refusals" in shown
    assert "embedded:student" in page.all_text


def test_first_run_has_a_point_of_its_own(data: PageData) -> None:
    alone = replace(data, runs=[{**data.runs[-1], "cost_usd": 0.0}])
    shown = Page(render_page(alone)).all_text
    assert "This is the first run" in shown
    assert "tokens from and to the teacher" in shown
    without = replace(data, runs=[{**data.runs[-1], "value": None}])
    assert "Cost against quality" not in Page(render_page(without)).all_text


def test_page_and_summary_are_written_side_by_side(data: PageData, tmp_path: Path) -> None:
    assert write_page(data, tmp_path / "new") == tmp_path / "new" / "report.html"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"report.html", "report.md"}


def test_large_report_stays_small() -> None:
    assert len(render_page(large_page(num_tasks=20, num_prompts=5000)).encode()) < 5e6


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def themes() -> list[dict[str, str]]:
    style = (Path(rendering.__file__).parent / "report.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in style.split(":root")[1:3])
    return [light, dark]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_text_and_marks_have_contrast(theme: dict[str, str]) -> None:
    for name in ("fg", "muted", "good", "bad", "unsure"):
        for ground in ("bg", "panel"):
            assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)
    for name in ("good", "bad", "unsure"):
        assert contrast(theme["fg"], theme[f"{name}-bg"]) >= 4.5
    for colour in range(8):
        assert contrast(theme[f"c{colour}"], theme["bg"]) >= 3
