"""From a handle to an actor id, by asking the handle's own domain.

What a domain says about its own handles is taken at its word; what it says about others' is refused.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from ktlog.errors import EncodingError, Invalid, NotLogged, Unreachable
from ktlog.wire.actor_id import parse_actor_id, parse_handle
from ktlog.wire.fetch import Fetcher
from ktlog.wire.media import media_type, parse_foreign_json

ACTIVITY_JSON = "application/activity+json"
LD_JSON = "application/ld+json"
ACTIVITYSTREAMS = "https://www.w3.org/ns/activitystreams"
JRD_TYPES = ("application/jrd+json", "application/json")
MAX_JRD_BYTES = 65536


def resolve_handle(fetcher: Fetcher, handle: str) -> str:
    """The actor id behind *handle* (``@alice@alpha.example``).

    Raises:
        EncodingError: ``BadHandle``, ``BadJson``, ``DuplicateKey``.
        NotLogged: ``UnknownHandle``: its server knows no such account.
        Invalid: ``BadWebFinger``: the answer is about someone else, or names no actor or several.
        Unreachable: as every fetch.

    Spec: RFC 7033; PKD v0.8, Actor canonicalisation (the link with rel ``self``).
    """
    user, domain = parse_handle(handle)
    resource = f"acct:{user}@{domain}"
    url = f"https://{domain}/.well-known/webfinger?resource={quote(resource, safe='')}"
    response = fetcher.get(url, accept=", ".join(JRD_TYPES), max_bytes=MAX_JRD_BYTES)
    if response.status in (404, 410):
        raise NotLogged("UnknownHandle", f"{domain} knows no account {user}")
    if response.status != 200:
        raise Unreachable("BadStatus", f"{url} answers {response.status}")
    if response.content_type not in JRD_TYPES:
        raise Unreachable("BadContent", f"{url} is {response.content_type or 'of no type'}")
    return actor_of_jrd(parse_foreign_json(response.body), resource)


def actor_of_jrd(jrd: Any, resource: str) -> str:
    """The one actor id that a WebFinger answer gives for *resource* (``acct:user@domain``).

    Raises:
        Invalid: ``BadWebFinger``.
    """
    if not isinstance(jrd, dict):
        raise Invalid("BadWebFinger", "a WebFinger answer is an object")
    subject = jrd.get("subject")
    # Servers answer with the user name as it was registered; people type it in any case.
    if not isinstance(subject, str) or subject.lower() != resource.lower():
        raise Invalid(
            "BadWebFinger", f"the answer for {resource} is about {ascii(subject)[:120]}",
            hint="If the account lives on another domain, use the handle that its server gives it.",
        )
    links = jrd.get("links", [])
    if not isinstance(links, list):
        raise Invalid("BadWebFinger", "links of a WebFinger answer is a list")
    found = {link.get("href") for link in links if isinstance(link, dict) and _is_actor_link(link)}
    if len(found) != 1:
        raise Invalid("BadWebFinger", f"{resource} names {len(found)} actors where one belongs")
    href = found.pop()
    try:
        return parse_actor_id(href)
    except EncodingError as error:
        raise Invalid("BadWebFinger", error.message) from None


def _is_actor_link(link: dict[str, Any]) -> bool:
    return (
        link.get("rel") == "self"
        and isinstance(link.get("href"), str)
        and isinstance(link.get("type"), str)
        and is_activity_type(link["type"])
    )


def is_activity_type(content_type: str) -> bool:
    """Whether a media type says ActivityStreams: activity+json, or ld+json with its profile.

    Plain JSON does not: users of many servers can upload a file of that type under their server's name.

    Spec: ActivityStreams 2.0 §8; ActivityPub §3.2.
    """
    kind, parameters = media_type(content_type)
    return kind == ACTIVITY_JSON or (
        kind == LD_JSON and ACTIVITYSTREAMS in parameters.get("profile", "").split()
    )
