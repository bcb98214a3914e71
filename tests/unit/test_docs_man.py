"""The manual pages as a reader sees them; that they are whole, test_shell.py looks at."""

from __future__ import annotations

import re

from ktlog.commands.man import man_pages
from ktlog.commands.tools import TOOLS


def test_every_item_of_a_page_says_something() -> None:
    """An argument without words of its own is in the synopsis, and is no option."""
    pages = {name: text for tool in TOOLS for name, text in man_pages(tool)}
    items = {(name, *found) for name, text in pages.items() for found in re.findall(r"^\.TP\n(.*)\n(.*)", text, re.MULTILINE)}
    assert len(items) > 400
    assert [item for item in items if not item[2].strip() or item[2].startswith(".")] == []
