"""How pages write numbers, times, hashes and what became of a person's keys."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from urllib.parse import quote

from markupsafe import Markup, escape

from ktlog.pkd.actors import Cause, Role, Status
from ktlog.tlog.encoding import encode_base64
from ktlog.words import count_entries, some

STATUS = {
    Status.ACTIVE: "active", Status.BURNED: "burned down", Status.REVOKED: "all keys revoked",
    Status.MOVED: "moved away", Status.ERASED: "erased",
}
RESET = {
    Cause.FIRST: "it was enrolled",
    Cause.BURNED: "an operator of the instance took all keys away (BurnDown)",
    Cause.REVOKED: "the last key was revoked",
    Cause.MOVED: "the identity had moved away",
    Cause.ERASED: "the log had erased this actor",
    Cause.MOVED_IN: "another identity moved here",
}
"""By cause: before which new beginning something happened."""
ACTIONS = {
    "AddKey": "added a key",
    "RevokeKey": "revoked a key",
    "RevokeKeyThirdParty": "a key was revoked by its revocation token",
    "MoveIdentity": "moved",
    "BurnDown": "an operator of the instance took all keys and data away",
    "Fireproof": "became Fireproof: no BurnDown is possible",
    "UndoFireproof": "gave Fireproof up: BurnDown is possible again",
    "AddAuxData": "added auxiliary data",
    "RevokeAuxData": "revoked auxiliary data",
    "Checkpoint": "another directory's root was noted",
}
_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def action_words(action: str, role: int) -> str:
    if action == "MoveIdentity":
        return "moved here from" if role == Role.MOVED_IN else "moved away to"
    return ACTIONS.get(action, action)


def when(seconds: int) -> str:
    """A Unix time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", _utc(seconds))


def iso(seconds: int) -> str:
    """A Unix time as RFC 3339 writes it, for machines."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", _utc(seconds))


def _utc(seconds: int) -> time.struct_time:
    return time.gmtime(max(0, min(seconds, 253_402_300_799)))  # what a message claims may be any number


def span(seconds: int) -> str:
    """A length of time in its largest unit: ``3 minutes``."""
    seconds = max(0, seconds)
    size, name = next(unit for unit in _UNITS if seconds >= unit[0] or unit[0] == 1)
    return f"{seconds // size} {name}{'' if seconds // size == 1 else 's'}"


def number(value: int) -> str:
    return f"{value:,}"


def soft(text: str) -> Markup:
    """A name that goes on in the next line behind ``/``, ``.``, ``@`` or ``=``, not amid a word if it can be helped."""
    return Markup(re.sub(r"([/.@=]+)(?=.)", r"\1<wbr>", str(escape(text))))  # noqa: S704 - escaped just now


def groups(hexadecimal: str) -> Markup:
    """Hexadecimal digits in groups of four, for people who read them to each other."""
    text = str(escape(hexadecimal))
    return Markup("".join(f"<span>{text[at : at + 4]}</span> " for at in range(0, len(text), 4)))  # noqa: S704 - escaped


def short(text: str, length: int = 12) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def actor_path(actor_id: str) -> str:
    return f"/a/{quote(actor_id, safe='')}"


def base64(hexadecimal: str) -> str:
    """A hash as checkpoints write it."""
    return encode_base64(bytes.fromhex(hexadecimal))


FILTERS: dict[str, Callable[..., object]] = {
    "when": when, "iso": iso, "span": span, "number": number, "some": some, "entries": count_entries, "groups": groups,
    "short": short, "actor_path": actor_path, "soft": soft, "base64": base64,
    "shell": shlex.quote,  # of a word in a command line that people copy: an id may hold ; & $ ( ) and quotes
}
