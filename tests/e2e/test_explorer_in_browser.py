"""The explorer of a real log in a real browser: axe-core finds nothing, nothing is blocked, and a phone shows all of it."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.machine import need

need("chromium")

import zxingcpp  # noqa: E402  they need what was just asked for
from axe_playwright_python.sync_playwright import Axe  # noqa: E402

from tests.browser import chromium  # noqa: E402
from tests.explorer_world import DIFFERENT, FIREPROOF, RENEWED, RESET, SETTINGS, live_through  # noqa: E402
from tests.running_log import ORIGIN, RunningLog, running_log  # noqa: E402

pytestmark = pytest.mark.slow


def page(actor_id: str, rest: str = "") -> str:
    return f"/a/{quote(actor_id, safe='')}{rest}"


PAGES = [
    "/", "/checkpoints?old=3", "/witnesses", "/peers", "/monitor", "/about", "/e/3", "/e/7", page(RENEWED), page(RESET),
    page(FIREPROOF), page(DIFFERENT, "/live"), page("https://evil.example/nobody"), "/search?q=nobody",
    "/search?q=@x@alpha.example",
]
NAMES = "h1.name, tbody th .break, tbody th a, td .break:not(code), .id"
BROKEN = """names => [...document.querySelectorAll(names)].flatMap(one => [...one.childNodes]).filter(node => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return node.nodeType === Node.TEXT_NODE && range.getClientRects().length > 1;
}).map(node => node.data)"""
"""Parts of names that go over two lines; they are text nodes of their own, with <wbr> between."""
PIXELS = """async picture => {
    const image = await createImageBitmap(await (await fetch(picture)).blob());
    const context = new OffscreenCanvas(image.width, image.height).getContext('2d');
    context.drawImage(image, 0, 0);
    const {width, height, data} = context.getImageData(0, 0, image.width, image.height);
    return [width, height, data.filter((_, at) => at % 4 === 0).toString()];
}"""
"""Of a picture as a data: URL, how bright each is: its red part, of a picture in black and white."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLog]:
    with running_log(tmp_path_factory.mktemp("explorer") / "w", **SETTINGS) as found:
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
def test_the_operator_s_own_page(log: RunningLog, tab: Any, scheme: str) -> None:
    """`ktlog admin page`, over the socket of the log that runs."""
    words = [sys.executable, "-m", "ktlog", "admin", "page", "--dir", str(log.settings.directory)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:") and url.count("/") == 4
            tab.problems.clear()
            tab.emulate_media(color_scheme=scheme)
            tab.set_viewport_size({"width": 1000, "height": 900})
            tab.goto(url)
            found = Axe().run(tab)
            assert found.violations_count == 0, found.generate_report()
            entries = tab.inner_text(".figure")
            assert entries.isdigit() and int(entries) > 3 and tab.inner_text("h1") == f"Operating {ORIGIN}"
            tab.set_viewport_size({"width": 360, "height": 700})
            assert tab.evaluate("document.documentElement.scrollWidth") <= 360
            assert tab.problems == []
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


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
    assert "begins with the 11 entries that you saw" in tab.inner_text(".verdict")
    assert Axe().run(tab).violations_count == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_boxes_and_names_are_shown_whole(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    boxes = 0
    for target in PAGES:
        go(tab, target)
        beyond = "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.ariaLabel)"
        assert tab.locator("pre").evaluate_all(beyond) == [], target
        assert tab.evaluate(BROKEN, NAMES) == [], target
        boxes += tab.locator("pre").count()
    assert boxes > 10
    go(tab, "/e/3")
    assert tab.evaluate("document.querySelector('pre.whole').scrollHeight <= document.querySelector('pre.whole').clientHeight")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("actor_id", [RENEWED, RESET])
def test_a_phone_reads_the_fingerprint_off_the_screen(tab: Any, actor_id: str, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 390, "height": 900})
    go(tab, page(actor_id))
    shot = base64.b64encode(tab.locator(".key .qr").first.screenshot()).decode()
    width, height, bright = tab.context.new_page().evaluate(PIXELS, f"data:image/png;base64,{shot}")
    pixels = memoryview(bytes(map(int, bright.split(",")))).cast("B", (height, width))
    (found,) = zxingcpp.read_barcodes(pixels)
    assert found.text.lower() == "".join(tab.locator(".key .print").first.inner_text().split())
    assert len(found.text) == 64


def test_what_is_printed_is_what_is_read(tab: Any) -> None:
    go(tab, page(RENEWED))
    tab.emulate_media(media="print")
    assert [tab.is_visible(part) for part in ("nav", "footer", ".search", ".button")] == [False] * 4
    assert [tab.is_visible(part) for part in ("h1", ".key .qr", ".key .print", ".timeline")] == [True] * 4
    tab.emulate_media(media="screen")
