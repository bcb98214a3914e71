"""The page at ``/``: who this is, how to trust it, where to send what; plain text for a shell, HTML for a browser.

It is what the witness network asks of a witness: operator, keys, URL, and which lists are followed how often. No
script, no cookie, nothing from elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from ktlog import __version__
from ktlog.tlog.note import COSIGNATURE_MLDSA44, parse_vkey
from witness.reading import Reader

TEXT_BYTES = 64 * 1024
"""Of what the operator adds."""

_KINDS = {"04": "Ed25519, type 04", "06": "ML-DSA-44, type 06"}
_MAIL = re.compile(r"[A-Za-z0-9._+-]+@[A-Za-z0-9.-]+")

_WITNESS = (
    "a transparency-log witness (C2SP tlog-witness v1.1)",
    "It cosigns a checkpoint when it extends the one it cosigned before, and never two checkpoints that contradict each"
    " other. It does not read what a log says.",
)
_VERIFIER = (
    "a verifier of key directories (C2SP tlog-witness v1.1)",
    "It cosigns a checkpoint of a log's directory map when it extends the one it cosigned before, and when it has read"
    " every entry of the log and derived the same map by itself.",
)
_ROUTES = (
    ("POST", "/add-checkpoint", "submit a checkpoint"),
    ("POST", "/sign-subtree", "have a part of a cosigned tree signed"),
    ("GET", "/<hex SHA-256 of origin>/checkpoint", "the latest one cosigned"),
    ("GET", "/<hex SHA-256 of origin>/evidence", "of its forks, if there is any"),
)

_STYLE = """
:root { color-scheme: light dark; --line: #c9ccd1; --soft: #f3f4f6; --dim: #565c66; --link: #0b57d0 }
@media (prefers-color-scheme: dark) { :root { --line: #3f444d; --soft: #1d2025; --dim: #a4abb6; --link: #8ab4f8 } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
p { margin: .5rem 0 } .own { white-space: pre-wrap } .dim { color: var(--dim) } a { color: var(--link) }
code, pre { font: .85rem/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .75rem;
  white-space: pre-wrap; margin: .3rem 0 1rem; max-height: 7.5rem; overflow-y: auto }
pre.key { user-select: all }
table { border-collapse: collapse; width: 100%; margin-bottom: 1rem }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere }
th { font-weight: 500; color: var(--dim); width: 11rem }
table.wide th { width: 24rem }
@media (max-width: 34rem) { th, table.wide th, td { display: block; width: auto; padding: .2rem 0 } th { border: 0 } }
"""
#: No script runs in it, nothing is loaded, and no other style than this one.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Said:
    """What the operator says of himself and of this witness.

    Attributes:
        operator, contact: of people. url: at which it is reached; empty: https and its name. text: whatever else.
        cadence: how often the lists in *pulled* are read, in words.
    """

    operator: str = ""
    contact: str = ""
    url: str = ""
    text: str = ""
    pulled: tuple[str, ...] = ()
    cadence: str = ""


@dataclass(frozen=True)
class About:
    """All that the page says."""

    name: str
    kind: str
    does: str
    vkeys: tuple[tuple[str, str], ...]
    url: str
    routes: tuple[tuple[str, str, str], ...]
    logs: int
    lists: tuple[tuple[str, str], ...]
    newest: int
    said: Said


def describe(record: Reader, said: Said, *, verifier: bool, newest: int = 0) -> About:
    """What there is to say now.

    Args:
        newest: when it cosigned last, in Unix seconds; 0: never.

    Raises:
        StoreError: the record cannot be read.
    """
    kind, does = _VERIFIER if verifier else _WITNESS
    routes = (*_ROUTES, ("GET", "/replays", "how far each log was followed")) if verifier else _ROUTES
    if not any(parse_vkey(vkey).algorithm == COSIGNATURE_MLDSA44 for vkey in record.vkeys):
        routes = tuple(route for route in routes if route[1] != "/sign-subtree")  # only that key can sign one
    with record.reading() as database:
        known = [source for (source,) in database.execute("SELECT DISTINCT source FROM log_limits ORDER BY source")]
    # A file's path is nobody's business.
    sources = [source for source in dict.fromkeys((*said.pulled, *known)) if source.startswith("https://")]
    lists = tuple((source, said.cadence if source in said.pulled else "by hand or by a timer") for source in sources)
    return About(
        record.name, kind, does, tuple((_algorithm(vkey), vkey) for vkey in record.vkeys),
        said.url or f"https://{record.name}", routes, record.count_logs(), lists, newest, said,
    )


def _algorithm(vkey: str) -> str:
    kind = f"{parse_vkey(vkey).algorithm:02x}"
    return _KINDS.get(kind, f"type {kind}")


def format_text(about: About) -> str:
    """For a shell."""
    parts = [
        f"{about.name}: {about.kind}", textwrap.fill(about.does, 96),
        "Verifier keys:\n" + "\n".join(f"  {algorithm}\n  {vkey}" for algorithm, vkey in about.vkeys),
        f"Submission prefix: {about.url}\nMonitoring prefix: {about.url}",
        "\n".join(f"{f'{method:5}{path}':44}{what}" for method, path, what in about.routes),
    ]
    if about.lists:
        parts.append("Lists of logs followed, to which all new logs are added:\n" + "\n".join(
            f"  {source} ({cadence})" for source, cadence in about.lists
        ))
    people = [f"{word}: {value}" for word, value in _people(about.said)]
    if people:
        parts.append("\n".join(people))
    if about.said.text:
        parts.append(about.said.text.strip())
    parts.append("\n".join(f"{word}: {value}" for word, value in _facts(about)))
    return "\n\n".join(parts) + "\n"


def format_html(about: About) -> str:
    """For a browser."""
    keys = "".join(
        f"<p class=dim>{escape(kind)}</p>"
        f'<pre class=key tabindex=0 role=region aria-label="{escape(kind)}">{escape(vkey)}</pre>'
        for kind, vkey in about.vkeys
    )
    routes = _table(
        ((f"<code>{method} {escape(path)}</code>", escape(what)) for method, path, what in about.routes), wide=True
    )
    where = _table((
        ("Submission prefix", f"<code>{escape(about.url)}</code>"),
        ("Monitoring prefix", f"<code>{escape(about.url)}</code>"),
    ))
    lists = "" if not about.lists else "<h2>Lists of logs followed</h2><p>All new logs of them are added.</p>" + _table(
        ((f"<code>{escape(source)}</code>", escape(cadence)) for source, cadence in about.lists), wide=True
    )
    people = [(word, _linked(value)) for word, value in _people(about.said)]
    who = f"<h2>Who runs it</h2>{_table(people)}" if people else ""
    own = escape(about.said.text.strip())
    text = f"<h2>From its operator</h2><p class=own>{own}</p>" if own else ""
    facts = _table((word, escape(value)) for word, value in _facts(about))
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1"><meta name=referrer content=no-referrer>'
        f"<title>{escape(about.name)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(about.name)}</h1><p class=dim>{escape(about.kind)}</p><p>{escape(about.does)}</p>"
        f"<h2>Where</h2>{where}{routes}<h2>Verifier keys</h2>{keys}{lists}{who}{text}<h2>Now</h2>{facts}"
        "</main></body></html>\n"
    )


def _people(said: Said) -> list[tuple[str, str]]:
    return [(word, value) for word, value in (("Operator", said.operator), ("Contact", said.contact)) if value]


def _facts(about: About) -> list[tuple[str, str]]:
    newest = "none yet" if not about.newest else (
        datetime.fromtimestamp(about.newest, UTC).isoformat().replace("+00:00", "Z")
    )
    return [("Logs followed", str(about.logs)), ("Latest cosignature", newest), ("Software", f"ktlog {__version__}")]


def _linked(value: str) -> str:
    """A mail address or an https URL as a link; whatever else as it is."""
    text = escape(value)
    if _MAIL.fullmatch(value):
        return f'<a href="mailto:{text}">{text}</a>'
    if value.startswith("https://"):
        return f'<a href="{text}" rel="noreferrer nofollow">{text}</a>'
    return text


def _table(rows: Iterable[tuple[str, str]], *, wide: bool = False) -> str:
    """Of HTML, not of text. wide: with much to say on the left."""
    lines = "".join(f"<tr><th scope=row>{one}</th><td>{other}</td></tr>" for one, other in rows)
    return f"<table{' class=wide' if wide else ''}>{lines}</table>"
