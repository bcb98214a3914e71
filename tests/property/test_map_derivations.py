"""Two derivations of one log: the operator's rows and the verifier's events come to the same map, entry by entry.

The histories are random: every kind of message, by the right signer and the wrong one, on old roots and foreign ones,
twice, against the rules; moves to and fro, burn-downs, tokens, re-enrolment, and erasures in between. What the
operator's rules refuse is logged all the same, so that both have to agree that it changes nothing.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.keys import ZERO_ROOT, encode_root, key_hash
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    UndoFireproof,
    aux_data_id,
)
from tests.erasure_log import ORIGIN
from tests.mapped_log import KEYS, LETTER, PEOPLE, MappedLog, check_same
from tests.pkd_samples import (  # noqa: F401 - the fixture works by being here
    NOW,
    bytes_of,
    public,
    quick_argon2,
    revoke_by_token,
)
from witness.derivation import Derivation

KINDS = (
    *["add"] * 7, *["add again"] * 2, *["move"] * 4, *["revoke"] * 3, "burn", "burn", "erase", "erase", "token",
    "proof", "proof", "datum", "datum", "datum", "undatum", "peer", "peer", "repeat", "repeat",
)
steps = st.tuples(
    st.sampled_from(KINDS), *[st.integers(0, 11)] * 4,
    st.sampled_from(["right"] * 16 + ["own", "own", "any", "old root", "old root", "zero root", "foreign root"]),
)
Step = tuple[str, int, int, int, int, str]


def choose(options: Any, number: int) -> Any:
    options = sorted(options)
    return options[number % len(options)] if options else None


def message_of(log: MappedLog, step: Step) -> Any:
    """The message that the numbers choose, by the rules or against them."""
    kind, i, j, k, m, _ = step
    time = NOW + m
    holders = {name: actor for name, actor in log.live.actors.items() if actor.keys}
    # Those about whom the step can say most; one step in four is about anybody.
    apt = {
        "revoke": {name for name, actor in holders.items() if len(actor.keys) > 1},
        "add again": {name for name, actor in log.live.actors.items() if actor.revoked},
        "move": {name for name, actor in holders.items() if actor.revoked or actor.aux or actor.fireproof},
        "undatum": {name for name, actor in holders.items() if actor.aux},
    }.get(kind, set()) or holders.keys()
    who = choose(apt if m % 4 and apt else PEOPLE, i)
    actor = log.live.actors.get(who)
    held = [LETTER[key.public_key] for key in actor.keys] if actor else []
    if kind in ("add", "add again", "repeat"):
        revoked = {letter for letter in KEYS if actor and key_hash(public(letter)) in actor.revoked}
        letters = revoked if kind == "add again" else set(KEYS) - set(held)
        return AddKey(who, public(choose(letters if k % 6 and letters else KEYS, j)), time)
    held = held or list(KEYS)
    match kind:
        case "move":
            free = set(PEOPLE) - holders.keys()
            return MoveIdentity(who, choose(free if k % 6 and free else PEOPLE, j), time)
        case "burn":
            return BurnDown(who, choose(holders if k % 3 and holders else PEOPLE, j), time)
        case "revoke":
            return RevokeKey(who, public(choose(held if k % 5 else KEYS, j)), time)
        case "token":
            return revoke_by_token(choose(held if k % 5 else KEYS, j))
        case "proof":
            fireproof = bool(actor and actor.fireproof)
            return (UndoFireproof if fireproof == bool(k % 5) else Fireproof)(who, time)
        case "peer":
            return CheckpointMessage(
                "https://keys.example.net", ZERO_ROOT, public("p"), "https://keys.example.com", ZERO_ROOT, time
            )
    text, aux_type = "xy"[j % 2], "test-v1" if k % 5 else "other-v1"
    aux_id = (None, aux_data_id("test-v1", text))[k // 5 % 2]
    if kind == "datum":
        return AddAuxData(who, aux_type, text, aux_id, time)
    return RevokeAuxData(who, aux_type, aux_id, None if aux_id and i % 2 else text, time)


def signer_of(log: MappedLog, message: Any, how: str, number: int) -> str:
    """The letter of the key that signs."""
    own = getattr(message, "public_key", None)
    if how == "any":
        return KEYS[number % len(KEYS)]
    if how == "own" and own is not None:
        return LETTER[own]
    if isinstance(message, CheckpointMessage):
        return "p"
    name = next((getattr(message, a) for a in ("operator", "old_actor", "actor") if hasattr(message, a)), "")
    actor = log.live.actors.get(name)
    others = [key.public_key for key in (actor.keys if actor else ()) if key.public_key != own]
    return LETTER[choose(others, number)] if others else LETTER[own] if own else "p"


def root_of(log: MappedLog, how: str, number: int) -> str:
    roots = log.live.roots
    match how:
        case "zero root":
            return ZERO_ROOT
        case "foreign root":
            return encode_root(bytes_of("no root of this log"))
        case "old root" if roots:
            return encode_root(roots[number * len(roots) // 12])
    return log.live.root_text


def take_step(log: MappedLog, derivation: Derivation, step: Step) -> None:
    """One step, by both; they agree whether it breaks a rule."""
    kind, i, _, _, number, how = step
    if kind == "erase":
        if (name := choose(log.live.actors, i)) is not None:
            derivation.erase(log.erase(name))
        return
    if kind == "repeat" and log.pages:
        at = max(0, len(log.pages) - 1 - number)
        if None in log.plains[at].values():
            return
        taken = log.repeat(at)
    else:
        message = message_of(log, step)
        taken = log.log(message, signer_of(log, message, how, number), root_of(log, how, number))
    if len(log.pages) > derivation.size:
        violation = log.give(derivation, derivation.size)
        assert (violation is None) == taken, (log.actions[-1], violation)


# One that encrypts a BurnDown's names and one that does not.
dialects = st.sampled_from(["php", "spec"])
stories = st.lists(steps, min_size=25, max_size=50)


@settings(max_examples=80, deadline=None)
@given(stories, dialects)
def test_both_derive_the_same_map(story: list[Step], dialect: str) -> None:
    log, derivation = MappedLog(DIALECTS[dialect]), Derivation(ORIGIN, commitments=False)
    for step in story:
        take_step(log, derivation, step)
        check_same(log, derivation)
    assert {one.leaf_index for one in derivation.violations} == log.void
    assert derivation.taken == []


def join(log: MappedLog, roots: dict[int, bytes]) -> Derivation:
    """A verifier that begins now, from what is left after the erasures: from the last of them on, root for root."""
    late = Derivation(ORIGIN, commitments=False, records=log.records)
    erased_at = log.records[-1].input_size if log.records else 0
    records = iter([*log.records, None])
    record = next(records)
    for at in range(len(log.pages) + 1):
        while record is not None and record.input_size == at:
            late.erase(record)
            record = next(records)
        if at >= erased_at and at in roots:
            assert late.map_root() == roots[at]
        if at < len(log.pages):
            assert log.give(late, at) is None
    late.check_withheld()
    check_same(log, late, barred=False)
    assert log.replayed().taken.keys() <= {one.leaf_index for one in late.taken}
    return late


@settings(max_examples=50, deadline=None)
@given(stories, dialects, st.integers(0, 50))
def test_who_comes_late_derives_the_same_map(story: list[Step], dialect: str, joined: int) -> None:
    """Whenever it comes. Then it follows, and agrees with every erasure of those whose past it was only told."""
    log, live = MappedLog(DIALECTS[dialect], refused_too=False), Derivation(ORIGIN, commitments=False)
    roots: dict[int, bytes] = {}
    late, told = None, 0
    for number, step in enumerate(story):
        if number == joined:
            late, told = join(log, roots), len(log.records)
        take_step(log, live, step)
        roots[live.size] = live.map_root()
        if late is not None:
            for at in range(late.size, len(log.pages)):
                assert log.give(late, at) is None
            for record in log.records[told:]:
                late.erase(record)
            told = len(log.records)
            assert late.map_root() == roots[live.size]
    join(log, roots)
