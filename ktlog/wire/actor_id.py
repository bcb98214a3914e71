"""The names of the Fediverse: https URLs, actor ids, handles.

An actor id is compared byte for byte everywhere, so nothing here repairs one: it is either in the form
that the log accepts, or refused. Only canonical_actor_id, for what a person typed, changes anything.

    >>> parse_actor_id("https://alpha.example/users/alice")
    'https://alpha.example/users/alice'
    >>> actor_domain("https://alpha.example/users/alice")
    'alpha.example'
    >>> parse_handle("@alice@alpha.example")
    ('alice', 'alpha.example')

"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ktlog.errors import EncodingError

MAX_ACTOR_ID_LENGTH = 2048
MAX_URL_LENGTH = 8000

# A last label that begins with a letter cannot be part of an IPv4 address in any of the spellings that
# resolvers take (127.1, 0x7f.1, 2130706433).
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
_TARGET = re.compile(
    r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
    r"(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
# What nearly every actor id and key id is, known by one look: no port, and no dot in a path that has no query.
_PLAIN = re.compile(r"https://([a-z0-9.-]{1,253})((?:/[A-Za-z0-9_~@-]*)+)")
_USER = re.compile(r"[A-Za-z0-9._~+-]{1,64}")


@dataclass(frozen=True)
class HttpsUrl:
    """An https URL of a named host on port 443.

    host: a DNS name in lower case. port: ``""`` or ``":443"``. target: path and query, as written.
    """

    host: str
    port: str
    target: str

    def __str__(self) -> str:
        return f"https://{self.host}{self.port}{self.target}"


def parse_host(text: str) -> str:
    """A DNS name: ASCII, lower case, at least two labels, no trailing dot. Never an address.

    Raises:
        EncodingError: ``BadHost``.
    """
    if len(text) > 253 or not _HOST.fullmatch(text):
        raise EncodingError("BadHost", f"{_show(text)} is not a host name in its canonical form")
    return text


def site_of(host: str) -> str:
    """What one owner of names can make up no more of: the last two labels of *host*, ``example.org``.

    It is three where the second-level label has at most three letters, as in ``example.co.uk``. A guess, without a
    list of public suffixes: for limits that owners of many names share, and never for who may speak for whom.
    """
    labels = host.split(".")
    return ".".join(labels[-3:] if len(labels) > 2 and len(labels[-2]) <= 3 else labels[-2:])


def parse_https_url(text: str) -> HttpsUrl:
    """An absolute https URL without user name, fragment, dot segments or a port other than 443.

    Raises:
        EncodingError: ``BadUrl``.

    Spec: RFC 3986 §3.
    """
    plain = _PLAIN.fullmatch(text) if len(text) <= MAX_ACTOR_ID_LENGTH else None
    if plain is not None and _HOST.fullmatch(plain[1]):
        return HttpsUrl(plain[1], "", plain[2])
    if not text.isascii() or len(text) > MAX_URL_LENGTH or not text.startswith("https://"):
        raise EncodingError("BadUrl", f"{_show(text)} is not an https URL in ASCII, or is too long")
    authority, slash, rest = text[len("https://"):].partition("/")
    host, colon, port = authority.partition(":")
    if colon and port != "443":
        raise EncodingError("BadUrl", f"{_show(text)} names a port other than 443, a user, or an address")
    try:
        parse_host(host)
    except EncodingError as error:
        raise EncodingError("BadUrl", error.message) from None
    target = slash + rest
    if not _TARGET.fullmatch(target):
        raise EncodingError("BadUrl", f"{_show(text)} has no path, a fragment, or characters to be escaped")
    path = target.partition("?")[0].lower().replace("%2e", ".")
    if "/." in path and any(segment in (".", "..") for segment in path.split("/")):
        raise EncodingError("BadUrl", f"{_show(text)} has dot segments in its path")
    return HttpsUrl(host, colon + port, target)


def parse_actor_id(text: str) -> str:
    """The actor id *text*, unchanged, if it is one.

    Raises:
        EncodingError: ``BadActorId``.

    Spec: PKD v0.8, Actor canonicalisation; the host rules are those of every fetch this library makes.
    """
    if len(text) > MAX_ACTOR_ID_LENGTH:
        raise EncodingError("BadActorId", f"an actor id has at most {MAX_ACTOR_ID_LENGTH} characters")
    try:
        parse_https_url(text)
    except EncodingError as error:
        raise EncodingError("BadActorId", error.message) from None
    return text


def canonical_actor_id(text: str) -> str:
    """What a person typed as an actor URL, with ``http`` made ``https`` and nothing else changed.

    Raises:
        EncodingError: ``BadActorId``.
    """
    if text.startswith("http://"):
        text = "https://" + text[len("http://"):]
    return parse_actor_id(text)


def actor_domain(actor_id: str) -> str:
    """The host of an actor id.

    Raises:
        EncodingError: ``BadActorId``.
    """
    return parse_https_url(parse_actor_id(actor_id)).host


def parse_handle(text: str) -> tuple[str, str]:
    """A handle as (user, domain). One leading ``@`` is allowed; the domain comes back in ASCII.

    Raises:
        EncodingError: ``BadHandle``.

    Spec: RFC 7565 (the user part, without percent escapes); UTS #46 for a domain in another script.
    """
    user, at, domain = text.removeprefix("@").partition("@")
    if not at or not _USER.fullmatch(user):
        raise EncodingError(
            "BadHandle", f"{_show(text)} is not a handle", hint="A handle looks like @alice@example.social."
        )
    try:
        return user, parse_host(_ascii_domain(domain))
    except EncodingError:
        raise EncodingError("BadHandle", f"{_show(domain)} is not the domain of a handle") from None


def _ascii_domain(domain: str) -> str:
    if domain.isascii():
        return domain.lower()
    import idna  # a dependency of requests; only people who type other scripts pay for its tables

    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise EncodingError("BadHost", str(error)) from None


def _show(text: str) -> str:
    """Text from elsewhere, short and safe to print."""
    return ascii(text if len(text) <= 120 else text[:120] + "...")
