"""Checks a lookup bundle against a head that already passed: what remains is hashing. Bytes in, answer out.

The head (a checkpoint of the output log, with its quorum) is checked by whoever holds the policy; here it is a size
and a root. The order of the checks is the specification's, and every failure has its own name.

Spec: directory map v1 §9, steps 5 to 10.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid, Stale
from ktlog.keymap.bundle import Bundle, NoLeaf, Presented, Tombstone
from ktlog.keymap.output import MapConfig, OutputLeaf, hash_config, map_origin, parse_leaf
from ktlog.keymap.prefix import Kind, verify
from ktlog.keymap.value import Value, commit_value, parse_value, tombstone
from ktlog.pkd.actions import aux_data_id
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import derive_key_id, key_hash
from ktlog.tlog.tree import hash_leaf, verify_inclusion

CLOCK_SKEW_SECONDS = 300


@dataclass(frozen=True, slots=True)
class CurrentKey:
    """An active key. public_key: 1312 raw bytes. leaf_index: of the AddKey that enrolled it."""

    public_key: bytes
    key_id: str
    leaf_index: int


@dataclass(frozen=True, slots=True)
class CurrentAux:
    """Active auxiliary data. aux_data is None when it was not asked for."""

    aux_type: str
    aux_id: str
    leaf_index: int
    aux_data: str | None


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the newest map says of an actor.

    outcome: :class:`~ktlog.keymap.bundle.NoLeaf`, ``Presented`` or ``Tombstone``. value, keys and aux belong to
    ``Presented`` alone. commitment: what its leaf holds, None without a leaf.
    """

    actor_id: str
    leaf: OutputLeaf
    outcome: NoLeaf | Presented | Tombstone
    commitment: bytes | None
    value: Value | None = None
    keys: tuple[CurrentKey, ...] = ()
    aux: tuple[CurrentAux, ...] = ()


def check_bundle(
    bundle: Bundle, actor_id: str, config: MapConfig | str, size: int, root: bytes, *, now: int, as_of: int,
    max_age: int,
) -> Mapped:
    """What *bundle* proves about *actor_id* under the output log's head of *size* and *root*.

    Args:
        actor_id: the one that was asked for; never the bundle's own.
        config: of the log that is fixed for the actor's domain; its origin alone where the configuration is not
            known, and then it is not compared. now, as_of: Unix seconds; as_of is when the quorum last saw the
            head. max_age: seconds.

    Raises:
        Invalid, Stale: with the specification's names.
    """
    origin = config if isinstance(config, str) else config.origin
    leaf = newest_leaf(bundle, config, size, root)
    if now - leaf.time > max_age:
        raise Stale(
            "OldMap", f"the map is {now - leaf.time} seconds old; at most {max_age} are allowed",
            hint="The log stopped publishing its map, or somebody shows you an old copy. Check your clock, too.",
        )
    if leaf.time > as_of + CLOCK_SKEW_SECONDS:
        raise Invalid("BadOutputLeaf", f"the map claims to be {leaf.time - as_of} seconds newer than its cosignatures")
    index = map_index(origin, actor_id)
    match bundle.outcome:
        case NoLeaf():
            _search(bundle, index, None, leaf.map_root)
            return Mapped(actor_id, leaf, bundle.outcome, None)
        case Tombstone(version, generation, number):
            expected = tombstone(origin, index, version, generation, number)
            if number >= leaf.erasures:
                raise Invalid("CommitmentMismatch", f"erasure {number} of {leaf.erasures} does not exist")
            _search(bundle, index, expected, leaf.map_root)
            return Mapped(actor_id, leaf, bundle.outcome, expected)
        case Presented(encoded, opening):
            return _present(bundle, actor_id, origin, leaf, index, encoded, opening)
    raise AssertionError("a bundle has one of three outcomes")


def newest_leaf(bundle: Bundle, config: MapConfig | str, size: int, root: bytes) -> OutputLeaf:
    """The newest leaf of the output log under a head of *size* and *root*, with nothing checked about its age.

    Raises:
        Invalid: ``WrongLog``, ``NotNewestLeaf``, ``BadOutputProof``, ``BadOutputLeaf``, ``WrongConfig``.
        Stale: ``BundleBehindCheckpoint``.
    """
    origin = map_origin(config if isinstance(config, str) else config.origin)
    if bundle.origin != origin:
        raise Invalid("WrongLog", f"the bundle is of {bundle.origin!a}, not of {origin}")
    if bundle.output_size != size:
        raise Stale(
            "BundleBehindCheckpoint", f"the bundle goes with checkpoint {bundle.output_size}, not with {size}",
            hint="Fetch both again.",
        )
    if size < 2:
        raise Invalid("NotNewestLeaf", "the output log has no map yet")
    try:
        verify_inclusion(hash_leaf(bundle.output_leaf), size - 1, size, bundle.output_path, root)
    except Invalid as error:
        raise Invalid("BadOutputProof", f"the map's leaf is not the newest: {error.message}") from None
    try:
        leaf = parse_leaf(bundle.output_leaf)
    except EncodingError as error:
        raise Invalid("BadOutputLeaf", f"the map's leaf is malformed: {error.message}") from None
    if not isinstance(config, str) and leaf.config != hash_config(config):
        raise Invalid("WrongConfig", "the map follows another configuration than this log's")
    return leaf


def _search(bundle: Bundle, index: bytes, commitment: bytes | None, map_root: bytes) -> None:
    """Check that the search for *index* ends at a leaf with *commitment*, or, if None, at no leaf of its own."""
    found = bundle.proof.searches[0].kind == Kind.INCLUSION
    if found != (commitment is not None):
        raise Invalid("OutcomeMismatch", "the map's proof shows another kind of answer than the one given")
    try:
        verify(bundle.proof, [index], map_root, [commitment])
    except Invalid as error:
        if not found:
            raise
        # One hash stands for where the leaf lies and for what it says: which of them is wrong cannot be told.
        raise Invalid("CommitmentMismatch", f"the answer is not what the map committed to: {error.message}") from None


def _present(
    bundle: Bundle, actor_id: str, origin: str, leaf: OutputLeaf, index: bytes, encoded: bytes, opening: bytes
) -> Mapped:
    try:
        value = parse_value(encoded)
    except EncodingError as error:
        raise Invalid("BadValue", f"the map's value is malformed: {error.message}") from None
    commitment = commit_value(index, value.version, encoded, opening)
    _search(bundle, index, commitment, leaf.map_root)
    if value.actor_id != actor_id:
        raise Invalid("WrongActor", f"the value is of {value.actor_id}, not of {actor_id}")
    indexes = [
        value.generation_leaf, value.status_leaf, *(key.leaf_index for key in value.keys),
        *(aux.leaf_index for aux in value.aux),
    ]
    if max(indexes) >= leaf.input_size:
        raise Invalid("BadValue", f"the value names entry {max(indexes)}; the map covers {leaf.input_size} entries")
    return Mapped(
        actor_id, leaf, bundle.outcome, commitment, value, _keys(bundle, origin, value), _aux(bundle, value)
    )


def _keys(bundle: Bundle, origin: str, value: Value) -> tuple[CurrentKey, ...]:
    if len(bundle.keys) != len(value.keys):
        raise Invalid("OmittedKey", f"{len(bundle.keys)} keys are given, {len(value.keys)} are listed")
    for key, listed in zip(bundle.keys, value.keys, strict=True):
        if key_hash(key) != listed.key_hash:
            raise Invalid("UnlistedKey", f"the key given for entry {listed.leaf_index} is not the one listed")
    return tuple(
        CurrentKey(key, derive_key_id(origin, listed.leaf_index), listed.leaf_index)
        for key, listed in zip(bundle.keys, value.keys, strict=True)
    )


def _aux(bundle: Bundle, value: Value) -> tuple[CurrentAux, ...]:
    texts = (None,) * len(value.aux) if bundle.aux is None else bundle.aux
    if len(texts) != len(value.aux):
        raise Invalid("WrongAuxData", f"{len(texts)} auxiliary data are given, {len(value.aux)} are listed")
    for text, listed in zip(texts, value.aux, strict=True):
        if text is not None and aux_data_id(listed.aux_type, text) != listed.aux_id:
            raise Invalid("WrongAuxData", f"the auxiliary data of entry {listed.leaf_index} are not those listed")
    return tuple(
        CurrentAux(listed.aux_type, listed.aux_id, listed.leaf_index, text)
        for text, listed in zip(texts, value.aux, strict=True)
    )
