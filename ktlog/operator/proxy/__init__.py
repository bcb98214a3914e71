"""What a TLS proxy in front of a log needs to know, in nginx's, Caddy's and Apache's own words.

One text for each, beside this module: ``ktlog proxy-config`` fills in the names and places of a log, and ``deploy/``
has the same text for ``keys.example.com``. ``@NAME@`` is filled in; lines between ``#[part`` and ``#part]`` are there
once, never, or once for each thing that is served beside the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ktlog.config import Settings
from ktlog.errors import EncodingError, UsageError
from ktlog.wire.actor_id import parse_host

KINDS = {"nginx": "nginx.conf", "caddy": "Caddyfile", "apache": "apache.conf"}
"""Each proxy, and the name of its text, here and in deploy/."""

EXAMPLE_TILES = "/srv/ktlog"

_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./@%+=:,-]+")
_ADDRESS = re.compile(r"(?:[0-9.]+|\[[0-9a-f:]+\]|[a-z0-9.-]+):[0-9]{1,5}")


@dataclass(frozen=True)
class Proxied:
    """A log, and what stands between it and the world.

    upstream: ADDRESS:PORT of the log. tiles: where the proxy finds the published files, to serve them itself; empty:
    the log serves them. also: other names that the same proxy serves, each with its ADDRESS:PORT: a witness, perhaps.
    """

    origin: str = "keys.example.com"
    directory: str = "/var/lib/ktlog"
    upstream: str = Settings.listen
    body_limit_bytes: int = Settings.body_limit_bytes
    certificate: str = ""
    key: str = ""
    tiles: str = ""
    also: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in (self.origin, *(name for name, _ in self.also)):
            try:
                parse_host(name)
            except EncodingError:
                raise UsageError("BadName", f"{name!r} is not a host name in lower case") from None
        for address in (self.upstream, *(address for _, address in self.also)):
            if not _ADDRESS.fullmatch(address):
                raise UsageError(
                    "BadAddress", f"{address!r} is not ADDRESS:PORT", hint="Say where the log listens: --upstream."
                )
        for path in (self.directory, *self._files(), self.tiles or "/-"):
            # It stands in three languages that each quote otherwise.
            if not _PLAIN_PATH.fullmatch(path):
                raise UsageError("BadPath", f"{path!r} cannot be written into a proxy's configuration")

    def _files(self) -> tuple[str, str]:
        place = f"/etc/ssl/{self.origin}"
        return self.certificate or f"{place}/fullchain.pem", self.key or f"{place}/privkey.pem"

    def _values(self) -> dict[str, str]:
        certificate, key = self._files()
        return {
            "ORIGIN": self.origin, "DIR": self.directory, "UPSTREAM": self.upstream, "BODY": str(self.body_limit_bytes),
            "CERTIFICATE": certificate, "KEY": key, "TILES": self.tiles,
        }


def format_proxy(kind: str, proxied: Proxied) -> str:
    """The configuration of *kind*, a key of ``KINDS``, for *proxied*."""
    text = _part(_template(kind), "tiles", [{}] if proxied.tiles else [])
    text = _part(text, "also", [{"NAME": name, "ADDRESS": address} for name, address in proxied.also])
    return _fill(text, proxied._values())


def example(kind: str) -> str:
    """What deploy/ has: the same for keys.example.com, whose published files nginx serves itself."""
    return format_proxy(kind, Proxied(tiles=EXAMPLE_TILES))


@cache
def _template(kind: str) -> str:
    return (Path(__file__).parent / KINDS[kind]).read_text(encoding="utf-8")


def _part(text: str, name: str, values: list[dict[str, str]]) -> str:
    """Write the lines between the marks of *name* once for each of *values*."""
    marked = re.compile(rf"^#\[{name}\n(.*?)^#{name}\]\n", re.DOTALL | re.MULTILINE)
    return marked.sub(lambda found: "".join(_fill(found[1], one) for one in values), text)


def _fill(text: str, values: Mapping[str, str]) -> str:
    return re.sub("@([A-Z]+)@", lambda found: values.get(found[1], found[0]), text)
