"""What the map says of one actor, and the commitment that its leaf holds.

A leaf commits to the whole value: a proof that the leaf is in the map is therefore a proof that the list of keys
is complete. The opening is secret until an answer discloses it, and gone with the salt once the actor is erased.

Spec: directory map v1 §1 (derivations) and §2 (value, history).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256

from ktlog.errors import MessageRejected
from ktlog.pkd.actors import Actor, Cause, Role, Status
from ktlog.pkd.identity import check_actor_id
from ktlog.pkd.keys import key_hash
from ktlog.pkd.pae import pae
from ktlog.tlog.binary import Reader, s8, s16, s32, u8, u16, u32, u64
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.tlog.tree import EMPTY_ROOT

OPENING_BYTES = 16
ML_DSA_44 = 1
"""The one algorithm of keys so far."""


@dataclass(frozen=True, slots=True)
class ListedKey:
    """leaf_index: of its AddKey. key_hash: 32 bytes, see :func:`ktlog.pkd.keys.key_hash`."""

    leaf_index: int
    key_hash: bytes


@dataclass(frozen=True, slots=True)
class ListedAux:
    """aux_id: 43 characters of base64url, as everywhere in PKD."""

    leaf_index: int
    aux_type: str
    aux_id: str


@dataclass(frozen=True, slots=True)
class Value:
    """One actor, complete: keys and auxiliary data by leaf index, and a commitment to the entries behind them."""

    actor_id: str
    version: int
    generation: int
    erasures: int
    cause: int
    generation_leaf: int
    status: int
    status_leaf: int
    fireproof: bool
    keys: tuple[ListedKey, ...]
    aux: tuple[ListedAux, ...]
    history_size: int
    history_root: bytes


def value_of(actor: Actor, history_size: int, history_root: bytes) -> Value:
    """The value of an actor that is not erased.

    Args:
        history_size, history_root: of the tree of :mod:`ktlog.pkd.history` since the actor's last erasure.
    """
    return Value(
        actor.actor_id, actor.version, actor.generation, actor.erasures, actor.cause, actor.generation_leaf,
        actor.status, actor.status_leaf, actor.fireproof,
        tuple(ListedKey(key.leaf_index, key_hash(key.public_key)) for key in actor.keys),
        tuple(ListedAux(aux.leaf_index, aux.aux_type, aux.aux_id) for aux in actor.aux),
        history_size, history_root,
    )


def encode_value(value: Value) -> bytes:
    """Inverse of :func:`parse_value`. 150 bytes for an actor with a short id and one key."""
    return b"".join([
        u8(1), s16(value.actor_id.encode("ascii")), u32(value.version), u32(value.generation), u32(value.erasures),
        u8(value.cause), u64(value.generation_leaf), u8(value.status), u64(value.status_leaf), u8(value.fireproof),
        u16(len(value.keys)), *(u64(key.leaf_index) + u8(ML_DSA_44) + key.key_hash for key in value.keys),
        u16(len(value.aux)),
        *(
            u64(aux.leaf_index) + s8(aux.aux_type.encode("ascii")) + decode_base64url(aux.aux_id, 32)
            for aux in value.aux
        ),
        u64(value.history_size), value.history_root,
    ])


def parse_value(data: bytes) -> Value:
    """Read a value: every field in range, in order, without duplicates, and nothing behind it.

    Raises:
        EncodingError: ``BadValue``.
    """
    read = Reader(data, "BadValue")
    if read.u8() != 1:
        raise read.refuse("the value has an unknown version")
    value = Value(
        actor_id=_actor_id(read), version=read.u32(), generation=read.u32(), erasures=read.u32(), cause=read.u8(),
        generation_leaf=read.u64(), status=read.u8(), status_leaf=read.u64(), fireproof=_flag(read),
        keys=_keys(read), aux=_aux(read), history_size=read.u64(), history_root=read.take(32),
    )
    read.end()
    _check(value, read)
    return value


def parse_version(data: bytes) -> int:
    """The version that a value says, without reading the rest of it: for one that was checked before it was stored.

    Raises:
        EncodingError: ``BadValue``.
    """
    read = Reader(data, "BadValue")
    if read.u8() != 1:
        raise read.refuse("the value has an unknown version")
    read.s16()
    return read.u32()


def _actor_id(read: Reader) -> str:
    raw = read.s16()
    if not raw.isascii():
        raise read.refuse("the actor id is not ASCII")
    try:
        return check_actor_id(raw.decode("ascii"))
    except MessageRejected as error:
        raise read.refuse(f"the actor id is not canonical: {error.message}") from None


def _flag(read: Reader) -> bool:
    flag = read.u8()
    if flag > 1:
        raise read.refuse("fireproof is neither 0 nor 1")
    return flag == 1


def _keys(read: Reader) -> tuple[ListedKey, ...]:
    keys = []
    for _ in range(read.u16()):
        leaf_index = read.u64()
        if read.u8() != ML_DSA_44:
            raise read.refuse("a key has an unknown algorithm")
        keys.append(ListedKey(leaf_index, read.take(32)))
    return tuple(keys)


def _aux(read: Reader) -> tuple[ListedAux, ...]:
    found = []
    for _ in range(read.u16()):
        leaf_index, aux_type = read.u64(), read.s8()
        if not aux_type.isascii() or not aux_type:
            raise read.refuse("an auxiliary data type is not ASCII")
        found.append(ListedAux(leaf_index, aux_type.decode("ascii"), encode_base64url(read.take(32))))
    return tuple(found)


def _check(value: Value, read: Reader) -> None:
    """What holds for the value of every actor that followed the rules (directory map §2 and §3)."""
    keys = [key.leaf_index for key in value.keys]
    aux = [item.leaf_index for item in value.aux]
    rules = {
        "keys are in order": _rising(keys),
        "keys are distinct": len({key.key_hash for key in value.keys}) == len(keys),
        "auxiliary data are in order": _rising(aux),
        "auxiliary data are distinct": len({item.aux_id for item in value.aux}) == len(aux),
        "status is in range": value.status in list(Status)[1:],
        "cause is in range": value.cause in list(Cause),
        "active means having keys": (value.status == Status.ACTIVE) == bool(keys),
        "without keys there are no auxiliary data": bool(keys) or not aux,
        "a generation comes before its end": value.generation_leaf <= value.status_leaf,
        "an active status began with its generation":
            value.status != Status.ACTIVE or value.status_leaf == value.generation_leaf,
        "every generation is a version": 1 <= value.generation <= value.version,
        "a value has a history": value.history_size >= 1 and value.history_root != EMPTY_ROOT,
        "every entry of the history is a version": value.history_size <= value.version,
    }
    for rule, holds in rules.items():
        if not holds:
            raise read.refuse(f"the value breaks a rule: {rule}")


def _rising(numbers: list[int]) -> bool:
    return all(first < second for first, second in zip(numbers, numbers[1:], strict=False))


# -- history


def parse_history_leaf(data: bytes) -> tuple[int, int, tuple[int, bytes] | None]:
    """Inverse of :func:`ktlog.pkd.history.history_leaf`. Raises EncodingError(``BadHistoryLeaf``)."""
    read = Reader(data, "BadHistoryLeaf")
    role, leaf_index = read.u8(), read.u64()
    if role not in list(Role):
        raise read.refuse("unknown role")
    moved_from = (read.u64(), read.take(32)) if role == Role.MOVED_IN else None
    read.end()
    return role, leaf_index, moved_from


# -- commitments


def derive_opening(salt: bytes, version: int) -> bytes:
    """The 16 bytes that open a commitment: another for every version, none without the 32-byte salt."""
    return hmac.digest(salt, pae(["ktlog/v1/opening", u32(version)]), "sha256")[:OPENING_BYTES]


def commit_value(index: bytes, version: int, value: bytes, opening: bytes) -> bytes:
    """The commitment in the leaf at *index*: 32 bytes.

    Spec: KEYTRANS "Commitment", with the index for a label; directory map v1 §1.
    """
    return hmac.digest(b"ktlog/v1/commitment", opening + s8(index) + u32(version) + s32(value), "sha256")


def tombstone(origin: str, index: bytes, version: int, generation: int, erasure_number: int) -> bytes:
    """What the leaf of an erased actor holds in place of a commitment: 32 bytes that anybody can recompute."""
    pieces = ["ktlog/v1/erased", origin, index, u32(version), u32(generation), u64(erasure_number)]
    return sha256(pae(pieces)).digest()
