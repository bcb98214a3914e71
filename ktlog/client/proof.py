"""What a lookup bundle proves, from bytes alone: no network, no clock, no memory.

Store ``answer.bundle`` beside what you sealed with a key, and anybody with the policy can check later
why that key was used::

    answer = verify_bundle(data, None, policy, "https://example.social/users/alice", now)

Spec: directory map v1 §9. What needs memory (steps 4 and 11) is :mod:`ktlog.client.mapped`'s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ktlog.client import verify
from ktlog.client.answer import (
    CAUSE,
    NOT_PROVEN_BY_FULL,
    NOT_PROVEN_BY_LIGHT,
    NOT_PROVEN_OF_ABSENT,
    NOT_PROVEN_OF_ERASED,
    STATUS,
    TAKEN_NOT_PROVEN,
    Answer,
    Erased,
    MapBasis,
    NeverEnrolled,
    PendingMessage,
    Present,
    ProvenAux,
    ProvenKey,
    serving,
)
from ktlog.client.full import FullCheck, check_full
from ktlog.client.page import HistoryRow
from ktlog.client.replay import Map, check_row, judge_pending
from ktlog.client.verify import Cosigned, Head, Log
from ktlog.errors import EncodingError, Invalid, UsageError
from ktlog.keymap.bundle import Bundle, Tombstone, encode_bundle, parse_bundle
from ktlog.keymap.check import Mapped, check_bundle
from ktlog.keymap.evidence import counters, history_root
from ktlog.keymap.output import MAP_SUFFIX, MapConfig, map_origin
from ktlog.pkd.actors import Role
from ktlog.tlog.policy import VERIFIERS, WITNESSES, Policy
from ktlog.tlog.proof import TlogProof, format_proof
from ktlog.wire.actor_id import canonical_actor_id
from ktlog.words import count_entries, some

UNLINKED = "that this head extends one that was trusted before: nothing is remembered here"
_NOT_NAMED = "that {} serves the domain: nobody named the log, and the policy has the map of no other"
_NO_CONFIG = "that the map follows the configuration that the log began with: it was not at hand"
_NO_LEAF_KEYS = "that the log's own leaf keys signed these messages: the keys were not at hand"


@dataclass(frozen=True)
class Found:
    """A bundle that holds under its checkpoint, and what it proves. history: the leaves, when it is a full one."""

    log: Log
    head: Head
    cosigned: Cosigned
    bundle: Bundle
    mapped: Mapped
    history: tuple[bytes, ...] | None


def read_bundle(data: bytes) -> Bundle:
    """Raises Invalid(``MalformedBundle``)."""
    try:
        bundle = parse_bundle(data)
    except EncodingError as error:
        raise Invalid("MalformedBundle", f"the bundle does not parse: {error.message}") from error
    return bundle


def read_whole_bundle(data: bytes) -> Bundle:
    """As :func:`read_bundle`, and a page alone is refused."""
    bundle = read_bundle(data)
    if bundle.page is not None:
        raise Invalid("MalformedBundle", "the bundle is one page of a longer one")
    return bundle


def find_in_map(
    log: Log, head: Head, cosigned: Cosigned, bundle: Bundle, actor_id: str, config: MapConfig | str, now: int,
    max_age: int,
) -> Found:
    """Steps 5 to 10, and that a history, where there is one, is the one that the value commits to.

    Raises:
        Invalid, Stale: as :func:`ktlog.keymap.check.check_bundle`; ``HistoryMismatch``.
    """
    mapped = check_bundle(
        bundle, actor_id, config, head.size, head.root, now=now, as_of=cosigned.as_of, max_age=max_age
    )
    history = None
    if bundle.history is not None and mapped.value is not None:
        history = tuple(item.leaf for item in bundle.history)
        if (len(history), history_root(history)) != (mapped.value.history_size, mapped.value.history_root):
            raise Invalid("HistoryMismatch", "the messages shown are not those that the value commits to")
    return Found(log, head, cosigned, bundle, mapped, history)


def verify_bundle(
    bundle: bytes, checkpoint: bytes | None, policy: Policy, actor_id: str, now: int, *, origin: str | None = None,
    config: MapConfig | None = None, max_age_seconds: int = verify.DEFAULT_MAX_AGE_SECONDS, pq: bool = False,
    leaf_keys: Mapping[bytes, bytes] | None = None,
) -> Answer:
    """What *bundle* and *checkpoint* prove about *actor_id*. A full bundle is checked in full.

    Args:
        checkpoint: the signed note of the bundle's own size; None when the bundle holds it.
        actor_id: whom you ask about; nothing in the bundle may choose it.
        now: Unix seconds. For an answer kept from an earlier day, that day.
        origin: the log that you know to serve the actor's domain. It may be left out when the policy names the
            map of one log only.
        config: leaf 0 of the output log, where you know it.
        leaf_keys: the log's leaf keys by SHA-256, for the full check.

    Raises:
        PolicyUnmet, Invalid, Stale: with the specification's names, in its order.
        UsageError: ``UnknownLog``.
        EncodingError: the actor id is none.
    """
    policy.check_safe(require_verifiers=True)
    actor_id = canonical_actor_id(actor_id)
    parsed = read_whole_bundle(bundle)
    log = verify.find_log(policy, map_origin(_only_origin(policy) if origin is None else origin))
    note = parsed.checkpoint if checkpoint is None else checkpoint
    if note is None:
        raise Invalid("MalformedBundle", "the bundle holds no checkpoint, and none was given")
    head = verify.open_head(note, log)
    cosigned = verify.check_cosigned(head, policy, now, max_age_seconds, pq=pq)
    plain_origin = log.origin.removesuffix(MAP_SUFFIX)
    found = find_in_map(log, head, cosigned, parsed, actor_id, config or plain_origin, now, max_age_seconds)
    answer = complete(found, policy, None, None, leaf_keys, full=parsed.history is not None, linked=None)
    more = [UNLINKED, *([] if config else [_NO_CONFIG])]
    if origin is None:
        more.append(_NOT_NAMED.format(plain_origin))
    else:
        answer = replace(answer, checks=(serving(plain_origin), *answer.checks))
    return replace(answer, not_proven=(*answer.not_proven, *more))


def _only_origin(policy: Policy) -> str:
    origins = {line.vkey.name for line in policy.logs if line.vkey.name.endswith(MAP_SUFFIX)}
    if len(origins) != 1:
        raise UsageError(
            "UnknownLog", f"the policy names the maps of {len(origins)} logs; say which of them serves the actor",
            hint="--origin ORIGIN on the command line, origin=\"ORIGIN\" in Python: the log's host name, without /map.",
        )
    return origins.pop().removesuffix(MAP_SUFFIX)


def export_proof(bundle: bytes, checkpoint: bytes | None = None) -> tuple[bytes, bytes]:
    """The map's newest leaf, as (a ``.tlog-proof`` file, the leaf): tools that know C2SP formats alone can check these.

    Raises:
        Invalid: ``MalformedBundle``.
        EncodingError: the checkpoint is none.
    """
    parsed = read_whole_bundle(bundle)
    note = parsed.checkpoint if checkpoint is None else checkpoint
    if note is None or parsed.output_size < 1:
        raise Invalid("MalformedBundle", "the bundle holds no checkpoint, and none was given")
    return format_proof(TlogProof(parsed.output_size - 1, parsed.output_path, note)), parsed.output_leaf


# From what was found to an answer


def complete(
    found: Found, policy: Policy, handle: str | None, before: Mapped | None, leaf_keys: Mapping[bytes, bytes] | None,
    *, full: bool, linked: str | None, map_rows: Map = map,
) -> Answer:
    """Steps 12 (if *full*) and 13, and the answer.

    Args:
        before: what was remembered of the actor and does not contradict what was found.
        linked: what the head was compared with, in words; None without any memory.

    Raises:
        Invalid: as :func:`ktlog.client.full.check_full`, and the same names for a pending entry.
    """
    origin = found.log.origin.removesuffix(MAP_SUFFIX)
    mapped = found.mapped
    checked = None
    if full and mapped.value is not None:
        checked = check_full(found.bundle, mapped, origin, leaf_keys, map_rows)
    pending = tuple(map_rows(lambda row: check_row(row, leaf_keys), _pending_rows(found)))
    if checked is not None and any(item.wire.unique_hash in checked.unique for item in pending):
        raise Invalid("BadEntry", "a pending message is in the log already")
    created = {} if checked is None else checked.created
    keys = tuple(
        ProvenKey(key.public_key, key.key_id, key.leaf_index, created.get(key.leaf_index)) for key in mapped.keys
    )
    usable, shown = judge_pending(mapped.actor_id, keys, pending)
    answer = _answer(found, policy, handle, before, checked, keys, usable, shown, linked)
    if (checked is not None or pending) and leaf_keys is None:
        answer = replace(answer, not_proven=(*answer.not_proven, _NO_LEAF_KEYS))
    return answer


def _pending_rows(found: Found) -> list[HistoryRow]:
    """Pending entries as rows. Their place in the log is a claim, but none where the map has looked already."""
    input_size = found.mapped.leaf.input_size
    if any(item.leaf_index < input_size for item in found.bundle.pending):
        raise Invalid("BadEntry", f"an entry is shown as pending, and the map covers the first {input_size}")
    return [
        HistoryRow(item.leaf_index, int(Role.SUBJECT), item.entry, item.preimage, item.plain, None)
        for item in found.bundle.pending
    ]


def _answer(
    found: Found, policy: Policy, handle: str | None, before: Mapped | None, checked: FullCheck | None,
    keys: tuple[ProvenKey, ...], usable: tuple[ProvenKey, ...], pending: tuple[PendingMessage, ...],
    linked: str | None,
) -> Answer:
    mapped, value = found.mapped, found.mapped.value
    known = () if before is None else before.keys
    held = {key.public_key for key in keys}
    new = tuple(key for key in keys if before is not None and key.public_key not in {old.public_key for old in known})
    common = {
        "actor_id": mapped.actor_id, "handle": handle, "origin": found.log.origin.removesuffix(MAP_SUFFIX),
        "gone_keys": tuple(key.key_id for key in known if key.public_key not in held),
        "reset": reset_since(before, mapped), "tree_size": mapped.leaf.input_size,
        "root_hash": mapped.leaf.input_root, "as_of": found.cosigned.as_of, "cosigners": found.cosigned.names,
        "checks": _checks(found, policy, before, checked, linked), "pending": pending,
        "map": MapBasis(
            found.head.size, found.head.root, mapped.leaf.time, mapped.leaf.erasures, checked is not None,
            linked is not None,
        ),
        "bundle": _kept(found, full=checked is not None),
    }
    if value is not None:
        created = {} if checked is None else checked.created
        taken = () if checked is None else checked.taken
        never = NOT_PROVEN_BY_LIGHT if checked is None else NOT_PROVEN_BY_FULL
        aux = tuple(
            ProvenAux(one.aux_type, one.aux_id, one.aux_data, one.leaf_index, created.get(one.leaf_index))
            for one in mapped.aux
        )
        return Present(
            keys=keys, usable_keys=usable, aux=aux, fireproof=value.fireproof, status=STATUS[value.status],
            cause=CAUSE[value.cause], version=value.version, generation=value.generation, new_keys=new, taken=taken,
            not_proven=(TAKEN_NOT_PROVEN, *never) if taken else never, **common,
        )
    if isinstance(mapped.outcome, Tombstone):
        tombstone = mapped.outcome
        return Erased(
            version=tombstone.version, generation=tombstone.generation, erasure_number=tombstone.erasure_number,
            not_proven=NOT_PROVEN_OF_ERASED, **common,
        )
    return NeverEnrolled(not_proven=NOT_PROVEN_OF_ABSENT, **common)


def _kept(found: Found, *, full: bool) -> bytes:
    """What proves the answer again: complete with its checkpoint, and with the messages that were checked."""
    bundle = replace(found.bundle, checkpoint=found.head.note)
    return encode_bundle(bundle if full else replace(bundle, history=None, old_histories=()))


def reset_since(before: Mapped | None, now: Mapped) -> str | None:
    """Why the trust in an actor starts over since *before*; None if it does not."""
    if before is None or before.commitment == now.commitment:
        return None
    if isinstance(now.outcome, Tombstone):
        return "erasure by the log"
    if now.value is None or counters(now)[1] == counters(before)[1]:
        return None
    return CAUSE[now.value.cause]


def _checks(
    found: Found, policy: Policy, before: Mapped | None, checked: FullCheck | None, linked: str | None
) -> tuple[str, ...]:
    head, leaf, value = found.head, found.mapped.leaf, found.mapped.value
    signed = {role: _named(policy, role, found.cosigned.names) for role in (WITNESSES, VERIFIERS)}
    said = "; ".join(f"{role} {', '.join(names) or 'none'}" for role, names in signed.items())
    texts = [
        f"the head of the map's log ({count_entries(head.size)}) is signed by the log",
        f"the quorum cosigned it: {said}; as of {_moment(found.cosigned.as_of)}",
    ]
    texts += [linked] if linked else []
    texts.append(
        f"the newest map under that head is of {_moment(leaf.time)}, over {count_entries(leaf.input_size)} of the log"
        f" and {some(leaf.erasures, 'erasure')}"
    )
    if value is not None:
        texts.append(f"the actor's leaf is in the map and commits to exactly the {len(value.keys)} keys listed")
    elif isinstance(found.mapped.outcome, Tombstone):
        texts.append("the actor's leaf in the map is a tombstone, and nothing else")
    else:
        texts.append("the map has no leaf for the actor: the search for it ends at somebody else's, or at nothing")
    if before is not None:
        texts.append("nothing contradicts what was remembered of the actor")
    if checked is not None:
        texts.append(
            f"every message behind the value ({checked.messages}) is in the log, says what it committed to (Argon2id),"
            f" was signed by a key valid then, and together they lead to exactly this value"
            + (", but for what is taken" if checked.taken else "")
        )
    return tuple(texts)


def _named(policy: Policy, group: str, signed: tuple[str, ...]) -> list[str]:
    """Which of *signed* belong to *group* of the policy."""
    names, found = [group], set()
    while names:
        name = names.pop()
        if name in policy.groups:
            names.extend(policy.groups[name].members)
        elif name in policy.witnesses:
            found.add(policy.witnesses[name].vkey.name)
    return [name for name in signed if name in found]


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
