"""A page in the machine's own Chromium or Chrome, and everything that it did there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = ("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update")
Scheme = Literal["light", "dark"]


@dataclass
class Opened:
    """A page that has been loaded.

    Attributes:
        page: Playwright's page.
        messages: What stood on the console, errors and dialogs among it.
        requests: Addresses that were asked for.
    """

    page: Any
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def unfold(self) -> None:
        """Open everything that is folded."""
        self.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")


@contextmanager
def browser() -> Iterator[Any]:
    """The browser of this machine.

    Raises:
        FileNotFoundError: if there is none.
    """
    from playwright.sync_api import sync_playwright

    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError(f"expected one of {', '.join(BROWSERS)} on PATH, found none; install Debian's chromium")
    # A browser keeps its own sandbox only where it does not run as root.
    flags = [*QUIET, "--no-sandbox"] if os.geteuid() == 0 else list(QUIET)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=flags)
        try:
            yield launched
        finally:
            launched.close()


@contextmanager
def opened(launched: Any, file: Path, *, width: int, scheme: Scheme) -> Iterator[Opened]:
    """The page in ``file`` in a window of its own."""
    context = launched.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
    page = context.new_page()
    found = Opened(page)
    page.on("console", lambda message: found.messages.append(message.text))
    page.on("pageerror", lambda error: found.messages.append(str(error)))
    page.on("dialog", lambda dialog: (found.messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: found.requests.append(request.url))
    try:
        page.goto(file.as_uri())
        yield found
    finally:
        context.close()
