"""The page in a real browser: silent, alone, and no wider than its window."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxykd.evaluation.page.rendering import PageData, write_page
from tests.evaluation.page.test_rendering import MINIMAL, samples
from tests.support.browser import Scheme, browser, opened
from tests.support.large_report import large_page

pytestmark = pytest.mark.browser
WIDTHS = (1280, 768, 390, 320)


@pytest.fixture(scope="module")
def launched() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    large = replace(large_page(), samples=samples())
    return {name: write_page(data, tmp_path_factory.mktemp(name)) for name, data in
            (("large", large), ("minimal", PageData(MINIMAL)))}  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["large", "minimal"])
def test_page_is_silent_alone_and_fits(
    launched: Any, pages: dict[str, Path], name: str, width: int, scheme: Scheme
) -> None:
    with opened(launched, pages[name], width=width, scheme=scheme) as found:
        assert found.overflow() == 0
        found.unfold()
        assert found.overflow() == 0
        assert found.messages == []
        assert found.requests == [pages[name].as_uri()]


def test_no_words_are_cut_or_lie_over_each_other(launched: Any, pages: dict[str, Path]) -> None:
    overlapping = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
      const boxes = [...svg.querySelectorAll(':scope > text')].map(one => one.getBoundingClientRect());
      return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
        a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4));
    }).length"""
    outside = """() => [...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect())
      .filter(box => box.left < 0 || box.right > document.documentElement.clientWidth).length"""
    for width in WIDTHS:
        with opened(launched, pages["large"], width=width, scheme="light") as found:
            assert found.page.evaluate(overlapping) == 0, width
            assert found.page.evaluate(outside) == 0, width


def test_page_can_be_read_with_the_keyboard(launched: Any, pages: dict[str, Path]) -> None:
    with opened(launched, pages["large"], width=1280, scheme="light") as found:
        found.page.keyboard.press("Tab")
        focused = "document.activeElement.textContent + document.activeElement.getBoundingClientRect().left"
        assert found.page.evaluate(focused).startswith("Skip to the report")
        assert found.page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        found.page.keyboard.press("Tab")
        found.page.keyboard.press("Enter")
        assert found.page.url.endswith("#checks")


def test_page_can_be_printed(launched: Any, pages: dict[str, Path]) -> None:
    with opened(launched, pages["large"], width=1280, scheme="dark") as found:
        found.page.emulate_media(media="print")
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert found.page.pdf().startswith(b"%PDF")


def test_what_the_page_forbids_the_browser_refuses(launched: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """The policy alone holds: a script, an image and a style that got past the escaping do nothing."""
    evil = '<script>document.title = "taken"</script><img src="http://127.0.0.1:9/x"><p style="color: red">x</p>'
    text = pages["minimal"].read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</main>", evil + "</main>"), encoding="utf-8")
    with opened(launched, tmp_path / "page.html", width=1280, scheme="light") as found:
        assert found.page.title() != "taken"
        assert found.page.evaluate("getComputedStyle(document.querySelector('main > p:last-child')).color") != "red"
        assert len([message for message in found.messages if "Content Security Policy" in message]) == 3
