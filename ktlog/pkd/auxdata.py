"""What a type of auxiliary data is: a name, where it is specified, and the check of its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ktlog.errors import MessageRejected
from ktlog.pkd.rejections import reject


@dataclass(frozen=True, slots=True)
class Extension:
    """One type of auxiliary data.

    Attributes:
        id: the ``aux-type`` that messages must name.
        aliases: other names it goes by. A log does not take them: the id of auxiliary data is hashed
            over the name, so that one key under two names would have to be revoked twice.
        version: of the type's specification.
        ref: URL of that specification.
        validate: returns, or raises ``MessageRejected("bad_aux_data")``, for the text of ``aux-data``.
    """

    id: str
    aliases: tuple[str, ...]
    version: str
    ref: str
    validate: Callable[[str], None]


def bad_aux_data(why: str) -> MessageRejected:
    """The error for text that is not in the form its type demands. *why* never quotes the text."""
    return reject("bad_aux_data", why)
