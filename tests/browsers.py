"""A browser that is on this machine, without a screen: what it complains of, and what it asks for."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Opened(NamedTuple):
    """A page that is open."""

    page: Any
    """Playwright's."""
    complaints: list[str]
    """Messages on the console and errors of scripts."""
    requests: list[str]
    """Everything that was asked for, the page itself first."""


@contextmanager
def browser() -> Iterator[Any]:
    """A browser of Playwright; skips, by name, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no browser here ({', '.join(NAMES)})")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found)
        try:
            yield started
        finally:
            started.close()


def open_page(started: Any, file: Path, **choices: Any) -> Opened:
    """Open a file; ``choices`` are Playwright's (color_scheme, viewport, java_script_enabled)."""
    opened = Opened(started.new_page(**choices), [], [])
    opened.page.on("console", lambda message: opened.complaints.append(message.text))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(file.absolute().as_uri())
    return opened
