"""Load from a store what one transition looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ktlog.pkd.keys import key_hash
from ktlog.pkd.messages import Message, RevokeKeyThirdParty
from ktlog.pkd.state import Actor, View, touched_by


def view_for(
    message: Message,
    actor: Callable[[str], Actor | None],
    token_revoked: Callable[[bytes], bool],
    holders: Callable[[bytes], tuple[str, ...]],
) -> View:
    """The rows that ``apply`` needs for *message*, through whatever look-ups the caller has."""
    held: Mapping[bytes, tuple[str, ...]] = {}
    if isinstance(message, RevokeKeyThirdParty):
        hashed = key_hash(message.token.public_key)
        held = {hashed: holders(hashed)}
    touched = touched_by(message, lambda hashed: held[hashed])
    return View({actor_id: actor(actor_id) for actor_id in touched}, token_revoked, held)
