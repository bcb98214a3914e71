"""What protocol messages travel in: a direct message, or the body of one of the two other endpoints.

The inbox takes one shape: a ``Create`` of a ``Note`` from one actor to this log alone, with the
content exactly as a program writes it. HTML, which a person's composer adds, is refused and never
repaired: a repaired message is not the one that was signed. A BurnDown comes as the bare plaintext
envelope, a revocation token among the parameters of its own endpoint.

Source: PKD specification, "Wire Format for Protocol Messages", "POST api/burndown", "POST api/revoke".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ktlog.errors import EncodingError, MessageRejected
from ktlog.pkd.actions import PKD_CONTEXT, TOKEN_ACTION
from ktlog.pkd.canonical import parse_json
from ktlog.tlog.encoding import parse_decimal
from ktlog.wire.actor_id import parse_actor_id
from ktlog.wire.media import parse_foreign_json

ENCRYPTED_CONTEXT = "fedi-e2ee:v1-encrypted-message"
PLAINTEXT_CONTEXT = "fedi-e2ee:v1-plaintext-message"
REVOKE_CONTEXT = "fedi-e2ee:v1/api/revoke"
_REVOCATION_MEMBERS = frozenset({"!pkd-context", "action", "current-time", "revocation-token"})
_PUBLIC = ("https://www.w3.org/ns/activitystreams#Public", "as:Public", "Public")


@dataclass(frozen=True)
class Activity:
    """Who sent what, before anything of it is believed."""

    actor: str
    content: str


@dataclass(frozen=True)
class Envelope:
    """The content: one of ``encrypted`` ("hpke:…") and ``plaintext`` (JSON text) is set."""

    actor: str
    encrypted: str | None
    plaintext: str | None


def parse_activity(body: bytes, inbox_actor: str) -> Activity:
    """Take a direct message apart.

    Raises:
        MessageRejected: ``not_a_direct_message``, ``actor_mismatch``, ``bad_request``.
    """
    return read_activity(parse_json(body), inbox_actor)


def read_activity(value: Any, inbox_actor: str) -> Activity:
    """:func:`parse_activity` of what ``parse_json`` made of the body."""
    activity = _object(value, "the activity")
    if activity.get("type") != "Create":
        raise MessageRejected("not_a_direct_message", "this inbox takes Create activities and no other")
    note = _object(activity.get("object"), "the activity's object")
    if note.get("type") != "Note":
        raise MessageRejected("not_a_direct_message", "the activity's object is not a Note")
    actor = parse_actor_id(_text(activity, "actor"))
    if note.get("attributedTo") != actor:
        raise MessageRejected("actor_mismatch", "the Note is attributed to another actor than the activity's")
    _text(activity, "id")
    _text(note, "id")
    _check_recipients(activity, inbox_actor)
    _check_recipients(note, inbox_actor)
    return Activity(actor, _text(note, "content"))


def is_small_talk(body: bytes) -> bool:
    """Whether *body* is a ``Create`` that no client of this protocol has made: to the public, or about something else.

    Of such the Fediverse is full: whoever mentions the log's actor sends it one, which is no attempt at anything.
    A content that begins like an envelope is one, however wrong it is.
    """
    try:
        activity = parse_foreign_json(body)
    except EncodingError:
        return False
    if not isinstance(activity, dict) or activity.get("type") != "Create":
        return False
    note = activity.get("object")
    if not isinstance(note, dict):
        return True
    content = note.get("content")
    is_envelope = isinstance(content, str) and content.lstrip().startswith("{") and "!pkd-context" in content
    return not is_envelope or any(address in _PUBLIC for address in _addressees(activity) + _addressees(note))


def open_envelope(content: str) -> Envelope:
    """Parse the Note's content, the JSON that the PKD specification puts there.

    Raises:
        MessageRejected: ``html_content``, ``wrong_context``, ``bad_request``.
    """
    if content.lstrip().startswith("<") or "&quot;" in content:
        raise MessageRejected(
            "html_content", "the content is HTML; send the JSON itself, not what a post composer makes of it"
        )
    return _envelope(_object(parse_json(content), "the content"))


def parse_burndown(body: bytes) -> Envelope:
    """Take the body of a POST to /api/burndown apart; ``plaintext`` is always set.

    Raises:
        MessageRejected: ``burndown_encrypted`` ("MUST NOT be encrypted"), ``wrong_context``, ``bad_request``.
    """
    envelope = _envelope(_object(parse_json(body), "the body"))
    if envelope.plaintext is None:
        raise MessageRejected("burndown_encrypted", "a BurnDown must not be encrypted")
    return envelope


def parse_revocation(body: bytes) -> str:
    """The revocation token in the body of a POST to /api/revoke; whether it is one is not checked.

    The body is either the endpoint's parameters (``current-time`` must then be there) or the
    protocol message itself (then ``action``), which existing clients send; both together are one too.
    A token is good at any time, so the time is read and not compared with the clock.

    Raises:
        MessageRejected: ``wrong_context``, ``unknown_action``, ``bad_time``, ``bad_request``.
    """
    fields = _object(parse_json(body), "the body")
    if fields.get("!pkd-context") not in (REVOKE_CONTEXT, PKD_CONTEXT):
        raise MessageRejected("wrong_context", f"the body's !pkd-context must be {REVOKE_CONTEXT}")
    if not {"!pkd-context", "revocation-token"} <= set(fields) <= _REVOCATION_MEMBERS or not (
        {"current-time", "action"} & set(fields)
    ):
        raise MessageRejected(
            "bad_request", "the body must have !pkd-context, current-time, revocation-token and no more"
        )
    if "action" in fields and fields["action"] != TOKEN_ACTION:
        raise MessageRejected("unknown_action", f"this endpoint takes {TOKEN_ACTION} and no other action")
    if "current-time" in fields:
        try:
            parse_decimal(_text(fields, "current-time"))
        except EncodingError:
            raise MessageRejected("bad_time", "current-time: want Unix seconds as a decimal string") from None
    return _text(fields, "revocation-token")


def _envelope(fields: Mapping[str, Any]) -> Envelope:
    context = fields.get("!pkd-context")
    members = {ENCRYPTED_CONTEXT: "encrypted-message", PLAINTEXT_CONTEXT: "message"}
    member = members.get(context) if isinstance(context, str) else None
    if member is None:
        raise MessageRejected("wrong_context", "the content's !pkd-context is not one of this protocol")
    if set(fields) != {"!pkd-context", "actor", member}:
        raise MessageRejected("bad_request", f"the content must have !pkd-context, actor, {member} and no more")
    actor = parse_actor_id(_text(fields, "actor"))
    text = _text(fields, member)
    return Envelope(actor, text, None) if context == ENCRYPTED_CONTEXT else Envelope(actor, None, text)


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise MessageRejected("bad_request", f"{what} is not a JSON object")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise MessageRejected("bad_request", f"{name} is missing or is not a string")
    return value


def _addressees(fields: Mapping[str, Any]) -> list[Any]:
    named: list[Any] = []
    for member in ("to", "cc", "bto", "bcc", "audience"):
        value = fields.get(member, [])
        named += value if isinstance(value, list) else [value]
    return named


def _check_recipients(fields: Mapping[str, Any], inbox_actor: str) -> None:
    """Every address named must be this log: a message that others also get is not a direct one."""
    named = _addressees(fields)
    if any(address in _PUBLIC for address in named):
        raise MessageRejected("not_a_direct_message", "the message is addressed to the public")
    if inbox_actor not in named or any(address != inbox_actor for address in named):
        raise MessageRejected("not_a_direct_message", f"the message must be addressed to {inbox_actor} alone")


