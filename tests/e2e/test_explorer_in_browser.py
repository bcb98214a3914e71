"""The explorer of a real log in a real browser: axe-core finds nothing, nothing is blocked, and a phone shows all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.machine import need

need("chromium")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402  they need what was just asked for

from tests.browser import chromium  # noqa: E402
from tests.explorer_world import DIFFERENT, FIREPROOF, RENEWED, RESET, live_through  # noqa: E402
from tests.running_log import ORIGIN, RunningLog, running_log  # noqa: E402

pytestmark = pytest.mark.slow


def page(actor_id: str, rest: str = "") -> str:
    return f"/a/{quote(actor_id, safe='')}{rest}"


PAGES = [
    "/", "/checkpoints?old=3", "/witnesses", "/about", "/e/3", "/e/7", page(RENEWED), page(RESET), page(FIREPROOF),
    page(DIFFERENT, "/live"), page("https://evil.example/nobody"), "/search?q=nobody", "/search?q=@x@alpha.example",
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLog]:
    with running_log(tmp_path_factory.mktemp("explorer") / "w", verifier=True) as found:
        live_through(found)
        yield found


@pytest.fixture(scope="module")
def tab(log: RunningLog) -> Iterator[Any]:
    """A page of a browser that knows the log under its own name."""
    with chromium(**{ORIGIN: f"127.0.0.1:{log.port}"}) as browser:
        context = browser.new_context(ignore_https_errors=True, java_script_enabled=True, bypass_csp=False)
        opened = context.new_page()
        opened.problems = []
        opened.on("console", lambda message: opened.problems.append(message.text) if message.type == "error" else None)
        yield opened
        context.close()


def go(tab: Any, target: str) -> None:
    tab.goto(f"https://{ORIGIN}{target}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("target", PAGES)
def test_axe_finds_nothing(tab: Any, target: str, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 1200, "height": 900})
    go(tab, target)
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    assert found.response["passes"], "axe looked at something"


@pytest.mark.parametrize(("harm", "rule"), [
    ("document.querySelectorAll('main p').forEach(one => one.style.color = '#ccc')", "color-contrast"),
    ("document.querySelector('input').replaceWith(document.createElement('input'))", "label"),
    ("document.documentElement.removeAttribute('lang')", "html-has-lang"),
])
def test_axe_would_find_it(tab: Any, harm: str, rule: str) -> None:
    """The page's own policy lets no script in, and axe and this come by the browser's debugger."""
    tab.emulate_media(color_scheme="light")
    go(tab, "/")
    tab.evaluate(harm)
    assert rule in [found["id"] for found in Axe().run(tab).response["violations"]]


def test_a_phone_shows_every_page_and_nothing_is_blocked(tab: Any) -> None:
    tab.set_viewport_size({"width": 360, "height": 700})
    tab.problems.clear()
    for target in PAGES:
        go(tab, target)
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), target
        assert tab.evaluate("getComputedStyle(document.querySelector('.skip')).position") == "absolute", "styled"
    assert [text for text in tab.problems if "404" not in text] == []


def test_a_person_finds_an_actor_and_what_its_server_publishes(tab: Any) -> None:
    go(tab, "/")
    assert tab.inner_text(".verdict .state") == "Vouched for"
    tab.fill("#q", "@eve@evil.example")
    tab.press("#q", "Enter")
    assert tab.inner_text("h1") == DIFFERENT
    tab.click("text=Ask evil.example now")
    assert tab.locator(".mark.bad", has_text="published but not logged").count() == 2
    tab.click("text=#9 >> nth=0")
    assert tab.inner_text("h1") == "Entry #9"


def test_a_saved_checkpoint_is_pasted(tab: Any, log: RunningLog) -> None:
    go(tab, "/checkpoints")
    tab.fill("#checkpoint", log.get("/checkpoint").body.decode())
    tab.click("text=Compare with this log")
    assert "begins with the 10 entries that you saw" in tab.inner_text(".verdict")
    assert Axe().run(tab).violations_count == 0
