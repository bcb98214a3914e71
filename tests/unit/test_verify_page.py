"""The page that checks a log in the browser, as a file: whole, always the same, and reaching for nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from click.testing import CliRunner
from flask import Flask

from ktlog import __version__
from ktlog.cli import ktlog
from ktlog.web.verifypage import page_hash, verify_page, verifypage

PAGE = verify_page().decode()
NOTES = Path(__file__).parents[2] / "docs" / "releases.md"


def test_its_policy_allows_what_is_in_it_and_no_more() -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', PAGE)
    allowed = dict(directive.split(" ", 1) for directive in policy.split("; "))
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inside]
        assert [f"'sha256-{one}'" for one in hashes] == allowed[directive].split(" ")
    assert allowed["default-src"] == "'none'"
    assert len(re.findall("<script", PAGE)) == 3 and "unsafe" not in policy


def test_nothing_is_loaded_from_elsewhere() -> None:
    assert not re.findall(r"""<[^>]+\b(?:src|srcset|data|action)=""", PAGE)
    assert re.findall(r'href="([^"]*)"', PAGE) == ["https://c2sp.org/tlog-policy"]


def test_it_is_small_and_its_hash_is_that_of_what_is_served() -> None:
    assert len(PAGE.encode()) < 100_000
    assert hashlib.sha256(verify_page()).hexdigest() == page_hash()
    app = Flask(__name__)
    app.register_blueprint(verifypage)
    answer = app.test_client().get("/verify.html")
    assert (answer.status_code, answer.data, answer.headers["ETag"]) == (200, verify_page(), f'"{page_hash()}"')
    assert answer.headers["X-Frame-Options"] == "DENY"


def test_the_command_writes_the_same(tmp_path: Path) -> None:
    out = tmp_path / "verify.html"
    done = CliRunner().invoke(ktlog, ["verify-page", "-o", str(out)])
    assert (done.exit_code, done.output) == (0, f"{page_hash()}  {out}\n")
    assert out.read_bytes() == verify_page()
    assert CliRunner().invoke(ktlog, ["verify-page", "--hash"]).output.strip() == page_hash()
    assert CliRunner().invoke(ktlog, ["verify-page"]).stdout_bytes == verify_page()


def test_the_release_note_has_its_hash() -> None:
    """The newest note is of this version, and what it has people compare is what this version serves."""
    notes = re.split(r"^## ", NOTES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert notes[0].startswith(f"{__version__}\n")
    assert re.findall(r"^([0-9a-f]{64})  verify\.html$", notes[0], re.MULTILINE) == [page_hash()]
