"""The small files of a log: checkpoints, signed heads, the pending leaf, keys, the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ktlog.config import Settings
from ktlog.errors import EncodingError, Invalid, KtlogError, PolicyUnmet, StoreError
from ktlog.keymap.output import OutputLeaf, map_origin, parse_leaf
from ktlog.keymap.value import commit_value, parse_value
from ktlog.operator.create import load_public_keys
from ktlog.operator.findings import Findings
from ktlog.operator.fscktree import erasure_roots
from ktlog.operator.head import SignedHead, load_signed_head, signed_time
from ktlog.operator.journal import read_journal
from ktlog.operator.keys import PublicKeys, load_checkpoint_signers, load_leaf_key, load_map_signers
from ktlog.operator.mappending import Pending, load_pending
from ktlog.operator.rotate import check_signing_keys, check_web_keys, read_changes, web_halves
from ktlog.operator.stores import map_pending, map_signed_head, open_map_tiles, open_tiles, signed_head
from ktlog.operator.witnessing import input_policy
from ktlog.pkd.erasure import ErasureRecord
from ktlog.store.contracts import TileStore
from ktlog.store.documents import Document
from ktlog.store.mapcontract import Dead, MapStore
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Vkey, open_note, parse_vkey
from ktlog.tlog.policy import Policy, parse_policy
from ktlog.tlog.tree import Frontier, hash_leaf
from ktlog.words import count_entries, some

RootAt = Callable[[int], bytes | None]

AHEAD_SECONDS = 60
"""How far a signed head may be ahead of the clock that it is held against: clocks are set back by as much."""


@dataclass(frozen=True)
class Documents:
    """What was read of the small files, before the stores: they may lag behind these, never lead. None is none."""

    elsewhere: bool
    """Whether a signer of its own keeps the last heads."""
    checkpoint: Checkpoint | None
    signed_at: int
    """When the log says that it signed that checkpoint, Unix seconds; 0 for never. map_signed_at: the map's."""
    head: SignedHead | None
    map_checkpoint: Checkpoint | None
    map_signed_at: int
    map_note: bytes | None
    map_head: SignedHead | None
    pending: Pending | None
    keys: PublicKeys | None
    policy: Policy | None

    @property
    def vkeys(self) -> tuple[Vkey, ...]:
        return _vkeys(self.keys.vkeys + self.keys.retired_vkeys) if self.keys else ()

    @property
    def map_vkeys(self) -> tuple[Vkey, ...]:
        return _vkeys(self.keys.map_vkeys + self.keys.retired_map_vkeys) if self.keys else ()


def _vkeys(texts: Sequence[str]) -> tuple[Vkey, ...]:
    return tuple(map(parse_vkey, texts))


def read_documents(settings: Settings, findings: Findings) -> Documents:
    """Read all of them, and judge what each says by itself."""
    keys = _read_keys(settings, findings)
    policy = _read_policy(settings, findings)
    vkeys = _vkeys(keys.vkeys + keys.retired_vkeys) if keys else ()
    map_vkeys = _vkeys(keys.map_vkeys + keys.retired_map_vkeys) if keys else ()
    inner = None if policy is None else input_policy(policy)
    checkpoint, signed_at, _note = _read_note(
        lambda: open_tiles(settings, read_only=True), vkeys, inner, settings.origin, "CheckpointDamaged",
        "tiles/checkpoint", findings,
    )
    map_checkpoint, map_signed_at, map_note = _read_note(
        lambda: open_map_tiles(settings, read_only=True), map_vkeys, policy, map_origin(settings.origin),
        "MapCheckpointDamaged", "tiles/map/checkpoint", findings,
    )
    if settings.signer and signed_head(settings).read() is None:
        findings.skip("The last signed heads: the signer at another place keeps them.")
    return Documents(
        bool(settings.signer), checkpoint, signed_at, _read_head(signed_head(settings), findings), map_checkpoint,
        map_signed_at, map_note, _read_head(map_signed_head(settings), findings),
        _read_pending(map_pending(settings), findings), keys, policy,
    )


def _read_keys(settings: Settings, findings: Findings) -> PublicKeys | None:
    try:
        keys = load_public_keys(settings)
        _vkeys(keys.vkeys + keys.retired_vkeys), _vkeys(keys.map_vkeys + keys.retired_map_vkeys)
    except KtlogError as error:
        findings.add("PublicKeysDamaged", "public-keys.json", error.message)
        return None
    _judge_changes(settings, keys, findings)
    _judge_web_keys(settings, keys, findings)
    try:
        own = tuple(str(signer.vkey) for signer in load_checkpoint_signers(settings.keys, settings.origin))
        map_own = tuple(str(signer.vkey) for signer in load_map_signers(settings.keys, settings.origin))
        leaf = load_leaf_key(settings.keys).public
    except StoreError as error:
        if error.name == "BadSecret":
            findings.add("KeyDamaged", "keys", error.message)
        else:
            findings.skip(f"The secret keys: {error.name}.")
        return keys
    if not set(own) <= set(keys.vkeys) or not set(map_own) <= set(keys.map_vkeys) or leaf not in keys.leaf_keys:
        findings.add("KeyDamaged", "keys", "they are not those that public-keys.json names, or that file is damaged")
    return keys


def _judge_web_keys(settings: Settings, keys: PublicKeys, findings: Findings) -> None:
    if not keys.web:
        findings.skip("The keys of web workers: public-keys.json does not name them until the log is started again.")
    try:
        check_web_keys(settings)
        missing = sorted(keys.web.keys() - web_halves(settings).keys())
    except StoreError as error:
        if error.name == "RotationUnfinished":
            findings.add(error.name, "keys.jsonl", error.message)
        elif error.name in ("MissingStore", "MissingSecret"):
            findings.skip(f"The keys of web workers: {error.name}.")
        elif error.name not in ("BadKeyChanges", "KeyChangesLost"):  # said already
            findings.add("KeyDamaged", "keys", error.message)
        return
    if missing:
        findings.skip(f"The keys {', '.join(missing)}: they are not here.")


def _judge_changes(settings: Settings, keys: PublicKeys, findings: Findings) -> None:
    """The chain of key changes: its hashes, its signatures, and that it leads to the keys that are in use."""
    try:
        findings.checked["key changes"] += len(read_changes(settings))
        check_signing_keys(settings, keys)
    except StoreError as error:
        if error.name not in ("BadKeyChanges", "KeyChangesLost", "RotationUnfinished"):
            raise
        findings.add(error.name, "keys.jsonl", error.message)


def _read_policy(settings: Settings, findings: Findings) -> Policy | None:
    try:
        return parse_policy(settings.publish_policy.read_bytes())
    except FileNotFoundError:
        findings.skip("Cosignatures: there is no publish.policy.")
    except (KtlogError, OSError) as error:
        findings.add("PolicyDamaged", "publish.policy", str(error))
    return None


def _read_note(
    opened: Callable[[], TileStore], vkeys: Sequence[Vkey], policy: Policy | None, origin: str, name: str, where: str,
    findings: Findings,
) -> tuple[Checkpoint | None, int, bytes | None]:
    """What is published, when it was signed, and its bytes."""
    try:
        raw = opened().checkpoint()
    except StoreError as error:
        findings.add(name, where, error.message)
        return None, 0, None
    if raw is None:
        return None, 0, None
    try:
        note, checkpoint = parse_signed_checkpoint(raw)
        signed = {verified.vkey.algorithm for verified in open_note(note, vkeys)}
        if checkpoint.origin != origin:
            raise Invalid("WrongLog", f"it is of {checkpoint.origin!a}")
        if vkeys and signed != {vkey.algorithm for vkey in vkeys}:
            raise Invalid("BadLogSignature", "a key of the log has not signed it")
        if policy is not None:
            lines = policy.open_cosignatures(note)
            if not policy.satisfied([line.vkey for line in lines]):
                raise PolicyUnmet("TooFewWitnesses", "its cosignatures do not satisfy publish.policy")
    except KtlogError as error:
        findings.add(name, where, error.message)
        return None, 0, raw
    findings.checked["checkpoints"] += 1
    return checkpoint, signed_time(note, vkeys), raw


def _read_head(document: Document, findings: Findings) -> SignedHead | None:
    try:
        return load_signed_head(document)
    except StoreError as error:
        findings.add("SignedHeadDamaged", str(document), error.message)
        return None


def _read_pending(document: Document, findings: Findings) -> Pending | None:
    try:
        pending = load_pending(document)
        if pending is not None:
            parse_leaf(pending.leaf)
        return pending
    except (StoreError, EncodingError) as error:
        findings.add("PendingDamaged", str(document), error.message)
        return None


def judge_times(documents: Documents, now: int | None, findings: Findings) -> None:
    """The times in the signed heads, before which nothing more is signed, against those that were signed and the clock.

    What lies between the two is not known: each signing writes its time, published or not.
    """
    for where, head, signed_at in (
        ("signed-head.json", documents.head, documents.signed_at),
        ("map-signed-head.json", documents.map_head, documents.map_signed_at),
    ):
        if head is None:
            continue
        if head.time < signed_at:
            what = f"it says that nothing was signed after {head.time}, and what is published was signed at {signed_at}"
            findings.add("SignedHeadDamaged", where, what)
        elif now is not None and head.time > now + AHEAD_SECONDS:
            what = f"it says {head.time}, which is in {head.time - now} s; what is published was signed at {signed_at}"
            findings.add("SignedHeadAhead", where, what)


def judge_log(
    documents: Documents, size: int, root_at: RootAt, findings: Findings, *, public: bool = False
) -> None:
    """The checkpoint and the signed head against the log's own tree. public: the store knows of entries that are."""
    published, head = documents.checkpoint, documents.head
    if published is None and public and "CheckpointDamaged" not in findings.counts:
        findings.add("CheckpointMissing", "tiles/checkpoint", "it is gone, and something was published")
    if published is not None:
        _judge_tree("CheckpointBeyondLog", "tiles/checkpoint", published.size, published.root, size, root_at, findings)
    if head is not None:
        _judge_tree("SignedHeadDamaged", "signed-head.json", head.size, head.root, size, root_at, findings)
    lost = published is not None and (not documents.elsewhere if head is None else head.size < published.size)
    if published is not None and lost and "SignedHeadDamaged" not in findings.counts:
        what = f"a checkpoint of {count_entries(published.size)} is published"
        findings.add("SignedHeadLost", "signed-head.json", what)


def _judge_tree(
    name: str, where: str, size: int, root: bytes, have: int, root_at: RootAt, findings: Findings
) -> None:
    if size > have:
        findings.add(name, where, f"it is of {count_entries(size)}, and there are {have:,}")
    elif root_at(size) not in (None, root):
        findings.add(name, where, f"it has another root of {count_entries(size)}")


def judge_output(
    documents: Documents, tree: Frontier, root_at: RootAt, map_store: MapStore, findings: Findings
) -> None:
    """The same of the output log, whose stored tree is *tree*."""
    head, published, pending = documents.map_head, documents.map_checkpoint, documents.pending
    if published is not None:
        _judge_tree(
            "MapCheckpointDamaged", "tiles/map/checkpoint", published.size, published.root, tree.size, root_at, findings
        )
        if published.size <= tree.size and documents.map_note != map_store.checkpoint(published.size):
            findings.add("MapCheckpointDamaged", "tiles/map/checkpoint", "it is not the one in map.db")
    if head is not None and head.size > tree.size + 1:
        findings.add("MapBehindSigned", "map.db", f"{head.size} leaves were signed, and there are {tree.size}")
    elif head is not None and head.size <= tree.size and root_at(head.size) not in (None, head.root):
        what = f"it has another root of {some(head.size, 'leaf', 'leaves')}"
        findings.add("SignedHeadDamaged", "map-signed-head.json", what)
    known = head.size if head else tree.size if documents.elsewhere else 1
    if known < tree.size and "SignedHeadDamaged" not in findings.counts:
        findings.add("SignedHeadLost", "map-signed-head.json", f"the map's log has {some(tree.size, 'leaf', 'leaves')}")
    if pending is None and head is not None and head.size == tree.size + 1 and "PendingDamaged" not in findings.counts:
        findings.add("PendingLost", "map-pending", "it is gone, and its leaf was signed")
    if pending is not None and pending.leaf_index >= tree.size:
        wrong = _judge_pending(pending, tree, head, map_store)
        if wrong is not None:
            findings.add("PendingDamaged", "map-pending", wrong)


def _judge_pending(pending: Pending, tree: Frontier, head: SignedHead | None, map_store: MapStore) -> str | None:
    """What is wrong with the leaf that comes next, or with the changes that lead to it."""
    if pending.leaf_index > tree.size:
        return f"it is leaf {pending.leaf_index}, and there are {tree.size}"
    after, leaf, draft = tree.append(hash_leaf(pending.leaf)), parse_leaf(pending.leaf), pending.draft
    if head is not None and head.size == after.size and head.root != after.root():
        return "its leaf is not the one that was signed"
    if (draft.input_size, draft.input_root, draft.erasures, draft.erasures_root) != (
        leaf.input_size, leaf.input_root, leaf.erasures, leaf.erasures_root,
    ):
        return "its leaf and its changes are not of one state"
    for change in draft.changes:
        if isinstance(change, Dead):
            continue
        try:
            value = parse_value(change.value)
        except EncodingError as error:
            return error.message
        before = None if change.afresh else map_store.live(change.index)
        history = Frontier() if before is None else Frontier.decode(before.history)
        history = history.extend(map(hash_leaf, change.news))
        if commit_value(change.index, value.version, change.value, change.opening) != change.commitment or (
            (history.encode(), history.root()) != (change.history, value.history_root)
        ):
            return f"the change of {change.index.hex()} does not hold together"
    return None


def judge_journal(
    settings: Settings, records: Sequence[ErasureRecord], newest: OutputLeaf | None, findings: Findings
) -> None:
    """The journal against the erasures of the store. newest: leaf of the output log, which says which is right."""
    try:
        journaled = [line.record for line in read_journal(settings.journal)]
    except StoreError as error:
        findings.add("JournalDamaged", "journal.jsonl", error.message)
        return
    findings.checked["journaled erasures"] += len(journaled)
    if len(journaled) > len(records):
        what = f"{len(journaled)} are journaled, the store has {len(records)}"
        findings.add("ErasureUndone", "log.db erasures", what)
        return
    for number, record in enumerate(journaled):
        if record == records[number]:
            continue
        count = 0 if newest is None else newest.erasures
        if newest is not None and count <= len(journaled) and erasure_roots(journaled)[count] == newest.erasures_root:
            findings.add("ErasureDamaged", f"log.db erasures {number}", "the journal and the map have another")
        else:
            findings.add("JournalDamaged", "journal.jsonl", f"it has another erasure {number} than the store")
    if len(journaled) < len(records):
        findings.skip("The newest erasures in the journal: it is written right after an erasure, or at a start.")
