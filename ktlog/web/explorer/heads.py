"""Trees of different sizes: whether one continues the other, and what a checkpoint that somebody saved is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid, KtlogError, StoreError
from ktlog.operator.nodes import LogNodes
from ktlog.pkd.keys import pkd_root
from ktlog.store.contracts import LogStore
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import Evidence, format_evidence, inconsistent, two_roots
from ktlog.tlog.note import Note, Verified, Vkey, open_note
from ktlog.tlog.tree import prove_consistency, root_hash, verify_consistency
from ktlog.web.explorer.standing import BAD, NONE, OK
from ktlog.web.explorer.words import number
from ktlog.web.logview import Published
from ktlog.words import count_entries, some

SAVED_BYTES = 65_536
"""Of a checkpoint that is pasted."""


@dataclass(frozen=True)
class Judgement:
    """What a saved checkpoint is worth here. members: for the page. evidence: a file, when the log forked."""

    members: dict[str, object]
    evidence: bytes | None = None


def consistency_members(
    store: LogStore, read_tile: Callable[[str], bytes | None], old_size: int, new_size: int, published_size: int
) -> dict[str, object]:
    """The proof that the first *old_size* entries stayed what they were; checked here before it is shown."""
    old_root, new_root = store.root_after(old_size), store.root_after(new_size)
    proof = prove_consistency(old_size, new_size, LogNodes(store, read_tile, published_size))
    try:
        verify_consistency(old_size, new_size, proof, old_root, new_root)
    except Invalid as error:
        raise StoreError("CorruptTree", f"the log's own consistency proof fails: {error}") from None
    return {
        "old-size": old_size, "old-root": encode_base64(old_root), "old-merkle-root": pkd_root(old_size, old_root),
        "new-size": new_size, "new-root": encode_base64(new_root), "new-merkle-root": pkd_root(new_size, new_root),
        "proof": [encode_base64(node) for node in proof],
    }


def judge_saved(
    text: str, origin: str, vkeys: tuple[Vkey, ...], store: LogStore, published: Published | None,
    read_tile: Callable[[str], bytes | None],
) -> Judgement:
    """Compare a checkpoint that somebody saved with what this log serves now."""
    try:
        data = _as_note(text)
        note, checkpoint = parse_signed_checkpoint(data)
    except EncodingError as error:
        return _judged(
            NONE, "unreadable", "This is no signed checkpoint.",
            f"It must be pasted whole, all lines of it: {error.message}.",
        )
    if checkpoint.origin != origin:
        return _judged(
            NONE, "other-log", "This is a checkpoint of another log.",
            "Paste it at the log that it names in its first line.",
        )
    signed, bad = _opened(note, vkeys)
    if not signed:
        return _judged(
            BAD, "not-signed", "This log did not sign this text.",
            "Either it was changed since, or somebody else made it. It proves nothing about this log.", checkpoint,
        )
    judged = _compared(data, checkpoint, signed, store, published, read_tile)
    if not bad:
        return judged
    return Judgement({**judged.members, "advice": (
        f"{judged.members['advice']} {some(bad, 'line')} of this log's in your copy did not verify: damaged, or put"
        " there by somebody. That takes nothing from the line that did."
    )}, judged.evidence)


def _opened(note: Note, vkeys: tuple[Vkey, ...]) -> tuple[tuple[Verified, ...], int]:
    """The lines of the log that verify, and under how many of its keys one does not.

    Each key by itself: whoever damages one line of two does not make the other unsaid.
    """
    signed: list[Verified] = []
    bad = 0
    for vkey in vkeys:
        try:
            signed += open_note(note, (vkey,))
        except Invalid:
            bad += 1
    return tuple(signed), bad


def _compared(
    data: bytes, checkpoint: Checkpoint, signed: tuple[Verified, ...], store: LogStore,
    published: Published | None, read_tile: Callable[[str], bytes | None],
) -> Judgement:
    """What a checkpoint that the log did sign says about what it has now."""
    size = store.state().size
    if checkpoint.size > size:
        return _judged(
            BAD, "rolled-back", "This log signed a larger log than the one that it has now.",
            f"It has {count_entries(size)} here, and {number(checkpoint.size)} by your checkpoint. If that lasts,"
            " entries are gone: keep what you have, and show it to the log's witnesses, who know how far it was.",
            checkpoint,
        )
    if store.root_after(checkpoint.size) == checkpoint.root:
        return _judged(
            OK, "extends", f"What this log has now begins with the {count_entries(checkpoint.size)} that you saw.",
            "Nothing of it was changed or taken out since, if this page is true.", checkpoint,
        )
    return _forked(data, checkpoint, signed, store, published, read_tile)


def _forked(
    data: bytes, checkpoint: Checkpoint, signed: tuple[Verified, ...], store: LogStore,
    published: Published | None, read_tile: Callable[[str], bytes | None],
) -> Judgement:
    """The log signed another history than the one that it serves. The evidence needs nobody's word."""
    found = (_evidence(line.vkey, data, checkpoint, store, published, read_tile) for line in signed)
    made = [evidence for evidence in found if evidence is not None]
    if not made:
        return _judged(
            BAD, "differs", "Your checkpoint has another root than this log has for that many entries.",
            "The log signed yours, and has not published a larger one yet. Keep it, and ask again in a minute.",
            checkpoint,
        )
    return _judged(
        BAD, "forked", "This log signed two histories that cannot both be true.",
        "That is a fork: some were shown other entries than others. Download the evidence: whoever knows this log's key"
        " can check it without asking anybody. Then stop relying on this log, and send it to the log's witnesses.",
        checkpoint, format_evidence(made[0]),
    )


def _evidence(
    vkey: Vkey, data: bytes, checkpoint: Checkpoint, store: LogStore, published: Published | None,
    read_tile: Callable[[str], bytes | None],
) -> Evidence | None:
    if published is None or published.checkpoint.size < checkpoint.size:
        return None
    new_size = published.checkpoint.size
    try:
        if new_size == checkpoint.size:
            return two_roots(vkey, data, published.raw, origin=published.checkpoint.origin)
        nodes = LogNodes(store, read_tile, new_size)
        return inconsistent(
            vkey, data, published.raw, prove_consistency(checkpoint.size, new_size, nodes),
            root_hash(checkpoint.size, nodes),
        )
    except KtlogError:  # the published checkpoint bears no line of this key, which was replaced: another may do
        return None


def _as_note(text: str) -> bytes:
    """A note as it was, from a form: with the line ends that HTML forms make undone, and the last one put back."""
    lines = text.replace("\r\n", "\n").strip("\n")
    return f"{lines}\n".encode("utf-8", "surrogatepass")


def _judged(
    state: str, code: str, sentence: str, advice: str, checkpoint: Checkpoint | None = None,
    evidence: bytes | None = None,
) -> Judgement:
    return Judgement({
        "state": state, "code": code, "sentence": sentence, "advice": advice,
        "size": None if checkpoint is None else checkpoint.size,
        "root": None if checkpoint is None else encode_base64(checkpoint.root),
        "evidence": None if evidence is None else evidence.decode("utf-8"),
    }, evidence)
