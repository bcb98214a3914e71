"""What a page is, and how it leaves: as HTML, as JSON or as text, all with the same members."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from flask import Response, g, request
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ktlog.errors import EncodingError
from ktlog.web.explorer.words import FILTERS
from ktlog.web.files import IMMUTABLE
from ktlog.web.signing import NO_STORE

FORMATS = {"html": "text/html", "json": "application/json", "txt": "text/plain"}
SECURITY = {
    # No script at all, and nothing from elsewhere: a page of a log that was broken into can still only mislead.
    "Content-Security-Policy":
        "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # addresses of pages name actors
}

# Controls but for tab and newline, and what turns the direction of writing: terminals would obey what strangers wrote.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Page:
    """One page. name: of its template. members: everything on it, fit for JSON; pictures: only for HTML.

    names_actors: whether it may name somebody, who may be erased later: then nobody may keep it, or list it.
    """

    name: str
    title: str
    members: Mapping[str, object]
    status: int = 200
    pictures: Mapping[str, Markup] = field(default_factory=dict)
    names_actors: bool = True


def asked_format() -> str:
    """``html``, ``json`` or ``txt``: as the query says, or else the Accept header.

    Raises:
        EncodingError: the query asks for something else.
    """
    asked = request.args.getlist("format")
    if not asked:
        found = request.accept_mimetypes.best_match(list(FORMATS.values()), "text/html")
        return next(name for name, content_type in FORMATS.items() if content_type == found)
    if len(asked) != 1 or asked[0] not in FORMATS:
        raise EncodingError("BadQuery", f"format is one of {', '.join(FORMATS)}")
    return asked[0]


def show(page: Page, form: str | None = None) -> Response:
    """*page* in the format *form*, or in the one that was asked for."""
    form = form or asked_format()
    if form == "json":
        body = json.dumps({"schema": f"ktlog/{page.name}/v1", **page.members}, ensure_ascii=False, indent=1) + "\n"
        body = _escaped(body)  # in JSON these are only in strings, and the escape says the same
    elif form == "txt":
        body = f"# {_escaped(page.title)}\n{as_text(page.members)}"
    else:
        body = environment().get_template(f"{page.name}.html").render(
            page=page, m=page.members, pictures=page.pictures, stylesheet=stylesheet()[0], origin=page_origin(),
        )
    return finish(Response(body, page.status, content_type=f"{FORMATS[form]}; charset=utf-8"), page.names_actors)


def finish(response: Response, names_actors: bool) -> Response:
    """Headers that every answer of the explorer has.

    PKD wants the answers of its API signed. These are no answers of it: they are for a reader's eyes, no browser checks
    such a signature, and it would take most of the time that a page takes. Whatever a page says, the API says signed.
    """
    g.ktlog_unsigned = True
    response.headers.update(SECURITY)
    response.headers["Vary"] = "Accept"
    response.headers["Cache-Control"] = NO_STORE if names_actors else "no-cache"
    if names_actors:
        response.headers["X-Robots-Tag"] = "noindex, noarchive"
    return response


def page_origin() -> str:
    return request.headers.get("Host", "")


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("ktlog.web.explorer"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )
    made.filters.update(FILTERS)
    for name in made.list_templates():
        made.get_template(name)  # compiled now, and not while somebody waits
    return made


@cache
def stylesheet() -> tuple[str, bytes]:
    """The name under which the stylesheet never changes, and the stylesheet."""
    data = files("ktlog.web.explorer").joinpath("explorer.css").read_bytes()
    return f"explorer-{hashlib.sha256(data).hexdigest()[:16]}.css", data


def stylesheet_response() -> Response:
    g.ktlog_unsigned = True
    response = Response(stylesheet()[1], content_type="text/css; charset=utf-8")
    response.headers["Cache-Control"] = IMMUTABLE
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def as_text(value: object, indent: str = "") -> str:
    """Members as indented lines, for a terminal: ``name: value``, and what has parts below its name."""
    if isinstance(value, Mapping):
        return "".join(_line(str(name), item, indent) for name, item in value.items())
    if isinstance(value, list | tuple):
        return "".join(
            _line("-", item, indent) if not isinstance(item, Mapping)
            else f"{indent}-\n{as_text(item, indent + '  ')}" for item in value
        )
    return f"{indent}{_scalar(value)}\n"


def _line(name: str, value: object, indent: str) -> str:
    label = name if name == "-" else f"{_escaped(name)}:"
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return f"{indent}{label} {' '.join(map(str, value))}\n"
    if isinstance(value, Mapping | list | tuple):
        return f"{indent}{label} none\n" if not value else f"{indent}{label}\n{as_text(value, indent + '  ')}"
    text = _scalar(value)
    if "\n" in text:
        return f"{indent}{label}\n" + "".join(f"{indent}  {line}\n" for line in text.splitlines())
    return f"{indent}{label} {text}\n"


def _scalar(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return _escaped(str(value))


def _escaped(text: str) -> str:
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
