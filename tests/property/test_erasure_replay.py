"""Random histories with erasures at random times: a replay of what is left gives the live state.

Moves in chains and circles, operators erased after they burned somebody down, tokens for keys that
only erased actors had, re-enrolment and a second erasure: all come up.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlog.errors import MessageRejected
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    UndoFireproof,
)
from tests.erasure_log import ErasingLog, check_same
from tests.pkd_samples import (  # noqa: F401 - the fixture works by being here
    NOW,
    public,
    quick_argon2,
    revoke_by_token,
)

PEOPLE = tuple(f"https://example.com/users/{name}" for name in ("ann", "ben", "cleo", "dan"))
KEYS = "pqrstuv"

KINDS = (
    "add", "add", "add", "move", "move", "move", "burn", "burn", "erase", "erase", "revoke", "token", "proof",
    "datum", "undatum",
)
# A kind, and three numbers that choose among whom and what there is.
steps = st.tuples(st.sampled_from(KINDS), *[st.integers(0, 11)] * 3)
LETTER = {public(letter): letter for letter in KEYS}


def choose(options: Any, number: int) -> Any:
    options = sorted(options)
    return options[number % len(options)] if options else None


def message_of(log: ErasingLog, kind: str, i: int, j: int, k: int) -> Any:
    """The message that the numbers choose; None when there is nobody to choose."""
    enrolled = {name: row for name, row in log.live.actors.items() if row.keys}
    who, time = choose(enrolled, i), NOW + k % 5
    if kind == "add":
        return AddKey(choose(PEOPLE, i), public(choose(KEYS, j)), time)
    if who is None:
        return None
    held = [LETTER[key.public_key] for key in enrolled[who].keys]
    match kind:
        case "move":
            target = choose(set(PEOPLE) - enrolled.keys(), j)
            return None if target is None else MoveIdentity(who, target, time)
        case "burn":
            return BurnDown(who, choose(enrolled.keys() - {who} or {who}, j), time)
        case "revoke":
            return RevokeKey(who, public(choose(held, j)), time)
        case "token":
            return revoke_by_token(choose(held, j))
        case "proof":
            return (UndoFireproof if enrolled[who].fireproof else Fireproof)(who, time)
        case "datum":
            return AddAuxData(who, "test-v1", "xy"[j % 2], None, time)
    return RevokeAuxData(who, "test-v1", None, "xy"[j % 2], time)


def signer_of(log: ErasingLog, message: Any) -> str:
    """A key that may sign, so that most messages are taken."""
    name = next((getattr(message, a) for a in ("operator", "old_actor", "actor") if hasattr(message, a)), "")
    row, mine = log.live.actors.get(name), getattr(message, "public_key", None)
    others = [key.public_key for key in (row.keys if row else ()) if key.public_key != mine]
    return LETTER[others[-1] if others else mine or public("p")]


def run(log: ErasingLog, story: list[tuple[str, int, int, int]]) -> None:
    for kind, i, j, k in story:
        if kind == "erase":
            if (name := choose(log.live.actors, i)) is not None:
                log.erase(name)
        elif (message := message_of(log, kind, i, j, k)) is not None:
            with contextlib.suppress(MessageRejected):
                log.send(message, signer_of(log, message))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.lists(steps, min_size=24, max_size=40), st.sampled_from(sorted(DIALECTS)))
def test_a_late_joiner_comes_to_the_live_state(story: list[tuple[str, int, int, int]], dialect: str) -> None:
    log = ErasingLog(DIALECTS[dialect])
    run(log, story)
    check_same(log.replayed(), log.live)
    readable = log.readable()
    for person in set(PEOPLE) - log.live.actors.keys():
        assert person not in readable
    check_keys_left(log, readable)


def check_keys_left(log: ErasingLog, readable: set[str]) -> None:
    """Once everybody is erased, no key is readable either. Who came late before that follows it like everybody."""
    log.followers.append(log.replayed())
    for person in list(log.live.actors):
        log.erase(person)
    check_same(log.replayed(), log.live)
    left = {text for text in log.readable() if text.startswith("mldsa44:") or text in ("x", "y")}
    assert not left, "a key or datum outlived everybody who had it"
    assert any(text.startswith("mldsa44:") for text in readable) or not log.live.actors


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
def test_a_circle_of_moves(dialect: str) -> None:
    """The same key moves to and fro between two actors: what was carried when is not in the keys."""
    ann, ben, cleo, _ = PEOPLE
    log = ErasingLog(DIALECTS[dialect])
    log.send(AddKey(ann, public("p"), NOW), "p")
    log.send(MoveIdentity(ann, ben, NOW), "p")
    log.send(Fireproof(ben, NOW), "p")
    log.send(AddKey(ben, public("q"), NOW), "p")
    log.send(MoveIdentity(ben, ann, NOW), "p")
    log.send(RevokeKey(ann, public("p"), NOW), "q")
    log.send(MoveIdentity(ann, cleo, NOW), "q")
    before = log.live.actors[cleo]
    log.erase(ann)
    check_same(log.replayed(), log.live)
    log.erase(ben)
    check_same(log.replayed(), log.live)
    assert log.live.actors[cleo] == before and before.fireproof
    readable = log.readable()
    assert encode_public_key(public("q")) in readable and encode_public_key(public("p")) not in readable
