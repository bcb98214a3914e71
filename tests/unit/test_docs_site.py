"""The documents as a site: every page is in it, every link leads somewhere, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machine import need

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("Quickstart", "Operating", "Witness", "Auditor", "Library", "Protocol", "Threat model", "Performance", "Reliability", "Decisions")


def test_every_page_is_in_the_navigation() -> None:
    """As mkdocs checks too, where there is one."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    assert tuple(re.findall(r"^  - ([A-Z][a-z ]+):", text, re.MULTILINE))[1:] == SECTIONS
    named = re.findall(r"([\w./-]+\.md)$", text, re.MULTILINE)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(named) == pages and len(named) == len(pages)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("mkdocs")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", str(ROOT / "mkdocs.yml"), "-d", str(target)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.mark.slow
def test_it_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link rel=\"?(?:stylesheet|preconnect)\"?)[^>]*(?:src|href)=\"?(?:https?:)?//", text), page


@pytest.mark.slow
def test_links_out_of_docs_lead_to_copies(site: Path) -> None:
    copies = {path.relative_to(site / "source").as_posix() for path in (site / "source").rglob("*.txt")}
    assert {"deploy/nginx.conf.txt", "deploy/systemd/ktlog.service.txt", "deploy/container/Containerfile.txt"} <= copies
    for name in copies:
        assert (site / "source" / name).read_bytes() == (ROOT / name.removesuffix(".txt")).read_bytes()
    assert "source/deploy/nginx.conf.txt" in (site / "running.html").read_text(encoding="utf-8")
