"""``/verify.html``: one file that checks a log's answers in the browser, and works from a disk just as well.

It is put together from ``ktlog/web/verify/`` and always the same bytes, so that its SHA-256 means something, which
``ktlog init`` and ``ktlog verify-page`` print. Nothing in it is loaded from elsewhere, and its own policy allows only
what is in it. ``mldsa44.min.js`` is ML-DSA-44 of @noble/post-quantum (MIT), bundled by esbuild and not changed.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from pathlib import Path

from flask import Blueprint, Response, g

from ktlog.tlog.encoding import encode_base64

_PARTS = Path(__file__).parent / "verify"
_SCRIPTS = {"@MLDSA@": "mldsa44.min.js", "@VERIFY@": "verify.js", "@PAGE@": "page.js"}

verifypage = Blueprint("verifypage", __name__)


@cache
def verify_page() -> bytes:
    """The page's bytes."""
    page, style = _read("page.html"), _read("style.css")
    scripts = {mark: _read(name) for mark, name in _SCRIPTS.items()}
    page = page.replace("@CSP@", content_policy(list(scripts.values()), style)).replace("@STYLE@", style)
    for mark, text in scripts.items():
        page = page.replace(mark, text)
    return page.encode()


def content_policy(scripts: list[str], style: str) -> str:
    """Only what is in the page may run or be shown; it may ask any log that the reader names."""
    hashes = " ".join(_source(text) for text in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_source(style)};"
        " connect-src https: http://127.0.0.1:* 'self'; base-uri 'none'; form-action 'none'"
    )


def page_hash() -> str:
    """SHA-256 of the page, in hex."""
    return sha256(verify_page()).hexdigest()


def _read(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{encode_base64(sha256(text.encode()).digest())}'"


@verifypage.get("/verify.html")
def show() -> Response:
    g.ktlog_unsigned = True  # whoever would check the signature has the page's hash, and needs no other word
    response = Response(verify_page(), content_type="text/html; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Frame-Options"] = "DENY"
    response.set_etag(page_hash())
    return response
