"""A real Chromium, driven by Playwright, for tests marked slow. Nothing but loopback and files is reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from tests.machine import program

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)


@contextmanager
def chromium(**hosts: str) -> Iterator[Browser]:
    """hosts: addresses on loopback by the names under which they are asked for, as ``**{"a.example": "127.0.0.1:1"}``."""
    rules = [*(f"MAP {name} {address}" for name, address in hosts.items()), "MAP * ~NOTFOUND", "EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium"), args=[*FLAGS, f"--host-resolver-rules={','.join(rules)}"]
        )
        try:
            yield browser
        finally:
            browser.close()
