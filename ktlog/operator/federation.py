"""What the log overhears and says as an ActivityPub actor. Nothing here is fetched, kept or sent.

Servers tell everyone whom they know that an account was deleted, also those who never heard of it, and whoever was
mentioned who likes or shares that: what is none of a log's business is recognised by its type alone, before a
signature is looked at or a key is fetched.

The result of a protocol message goes back to its sender as a direct message too. Only a protocol message
is answered, and an answer is none: two programs that answer each other have nothing to go on about.

Spec: ActivityPub §7; PKD v0.8, "Wire Format for Protocol Messages".
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ktlog.errors import EncodingError, KtlogError
from ktlog.operator.activity import open_envelope, read_activity
from ktlog.operator.instance import direct_message
from ktlog.pkd.canonical import parse_json
from ktlog.wire.actor_id import actor_domain, parse_https_url
from ktlog.wire.media import parse_foreign_json
from ktlog.wire.receipts import LOG_ACTOR_PATH


def is_noise(body: bytes) -> bool:
    """Whether *body* is an activity of a type that means nothing to a log: any but ``Create``, which may be a message.

    A ``Create`` in another spelling (``create``, ``as:Create``) is none either: its sender should hear of it.
    """
    try:
        return is_noise_value(parse_foreign_json(body))
    except EncodingError:
        return False


def is_noise_value(activity: Any) -> bool:
    """:func:`is_noise` of what the body says."""
    kinds = activity.get("type") if isinstance(activity, dict) else None
    if not isinstance(kinds, list):
        kinds = [kinds]
    return bool(kinds) and all(isinstance(kind, str) and kind and not _is_create(kind) for kind in kinds)


def _is_create(kind: str) -> bool:
    return re.split("[#:/]", kind.strip())[-1].casefold() == "create"


@dataclass(frozen=True)
class Question:
    """A direct message that gets an answer. actor: who sent it. note: the URL of their note, if it has one."""

    actor: str
    note: str | None


def parse_question(body: bytes, inbox_actor: str) -> Question | None:
    """The message in *body* as one to be answered; None when it gets no answer.

    Answered is what has the shape of a protocol message to *inbox_actor*, good or bad, and is not
    itself a reply. Another log gets none: it has its receipt, and a message that is none of its own protocol's
    would be counted against us there. The caller has verified that the actor signed it: nobody else's
    word makes us write to them.
    """
    try:
        return read_question(parse_json(body), inbox_actor)
    except KtlogError:
        return None


def read_question(value: Any, inbox_actor: str, *, opened: bool = False) -> Question | None:
    """:func:`parse_question` of what ``parse_json`` made of the body. opened: all of it was found good before."""
    if not opened:
        try:
            open_envelope(read_activity(value, inbox_actor).content)
        except KtlogError:
            return None
    actor, note = value["actor"], value["object"]
    if note.get("inReplyTo") is not None or actor.endswith(LOG_ACTOR_PATH):
        return None
    return Question(actor, _own_url(note["id"], actor))


def _own_url(url: str, actor: str) -> str | None:
    """*url*, if it is one on the host of *actor*: nobody is made to point at things of others."""
    try:
        return url if parse_https_url(url).host == actor_domain(actor) else None
    except EncodingError:
        return None


def reply(
    log_actor: str, question: Question, result: str, now: int, random: Callable[[int], bytes]
) -> dict[str, Any]:
    """The direct message with *result*, JSON text of ours, as its content.

    now: Unix seconds. random: gives that many random bytes, for the ids.
    """
    activity = direct_message(question.actor, log_actor, escape_html(result), random)
    published = datetime.datetime.fromtimestamp(now, tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    note = activity["object"] | {
        "published": published,
        # Without a mention some servers show a direct message to nobody.
        "tag": [{"type": "Mention", "href": question.actor, "name": question.actor}],
    }
    if question.note is not None:
        note["inReplyTo"] = question.note
    return activity | {"published": published, "object": note}


_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&"}


def escape_html(text: str) -> str:
    """JSON text that means the same, and that nothing reads as HTML: servers show a note's content as such."""
    if not any(character in text for character in "<>&"):
        return text
    json.loads(text)  # the escapes below are only right within JSON
    return text.translate(_ESCAPES)
