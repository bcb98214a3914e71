"""The judge: what was promised, against what is there. It hashes with hashlib and reads with SQL, and believes nobody.

Of the log's own code it uses the parsers and the signatures, and of the map the verifiers' derivation, which is written
apart from the operator's. Two lists: ``broken`` promises, which nothing excuses, and ``damage``, what is wrong with
stored bytes, which is excused where bytes were flipped on purpose, and only if the log refuses or its check names it.
"""

from __future__ import annotations

import itertools
import pickle
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from ktlog.errors import KtlogError, StoreError
from ktlog.keymap.output import parse_leaf
from ktlog.operator.create import load_public_keys
from ktlog.pkd.entry import leaf_key_hash, verify_entry
from ktlog.pkd.keys import pkd_root
from ktlog.store.contracts import Record
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import open_note
from ktlog.tlog.tiles import tile_path
from tests.faults.site import MAP, Base, Run
from tests.operator_world import ORIGIN
from witness.derivation import Derivation


@dataclass
class Verdict:
    broken: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


# A tree of its own: RFC 9162, section 2.1.1, and nothing else


class Tree:
    """Hashes of leaves; the root of any prefix."""

    def __init__(self, hashes: Sequence[bytes]) -> None:
        self.hashes = list(hashes)
        self._known: dict[tuple[int, int], bytes] = {}

    def root(self, size: int) -> bytes:
        return sha256(b"").digest() if size == 0 else self._of(0, size)

    def _of(self, start: int, end: int) -> bytes:
        if end - start == 1:
            return self.hashes[start]
        if (start, end) not in self._known:
            split = 1
            while split * 2 < end - start:
                split *= 2
            left, right = self._of(start, start + split), self._of(start + split, end)
            self._known[start, end] = sha256(b"\1" + left + right).digest()
        return self._known[start, end]

    def subtree(self, level: int, index: int) -> bytes:
        return self._of(index << level, (index + 1) << level)


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\0" + entry).digest()


@dataclass(frozen=True)
class Truth:
    """Entries and output leaves, and the records of the entries since the base; of a part only what is known."""

    entries: list[bytes]
    leaves: list[bytes]
    records: tuple[Record, ...] = ()


def read_truth(run: Run) -> Truth:
    """Of a log that nothing happened to yet."""
    rows = _read(run, Verdict())
    if rows is None:
        raise AssertionError("the log cannot be read before anything happened to it")
    with SqliteStore.open(run.settings.database, origin=ORIGIN, read_only=True) as store:
        return Truth(rows.entries, rows.leaves, store.records(run.base.size, len(rows.entries)))


def bundle_truth(run: Run) -> Truth:
    """Of a log whose database may have been hurt while it was written: what was answered, and what was published."""
    entries = {ack.leaf_index: ack.entry for ack in run.acks}
    leaves: list[bytes] = []
    for path in (run.settings.map_tiles / "tile" / "entries").rglob("*"):
        found = _split(path.read_bytes()) if path.is_file() and not path.name.startswith(".") else []
        leaves = max(leaves, found, key=len)
    return Truth([entries[at] for at in itertools.takewhile(entries.__contains__, itertools.count())], leaves)


def _split(bundle: bytes) -> list[bytes]:
    found, at = [], 0
    while at + 2 <= len(bundle):
        end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        found.append(bundle[at + 2 : end])
        at = end
    return found


def _told(run: Run, rows: Truth | None, truth: Truth, verdict: Verdict) -> Truth:
    """*truth*, and what the log has taken since."""
    found = rows or Truth(
        truth.entries + _since(run.settings.database, "SELECT entry FROM entries WHERE leaf_index = ?", truth.entries),
        truth.leaves + _since(run.settings.map_database, "SELECT leaf FROM output_leaves WHERE leaf_index = ?", truth.leaves),
    )
    for name, old, new in (("entry", truth.entries, found.entries), ("output leaf", truth.leaves, found.leaves)):
        verdict.damage += [f"{name} {at}: changed" for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
        verdict.damage += [f"{name}: lost"] if len(new) < len(old) else []
    return Truth(
        truth.entries + found.entries[len(truth.entries) :], truth.leaves + found.leaves[len(truth.leaves) :],
        truth.records,
    )


def _since(path: Path, query: str, known: Sequence[bytes]) -> list[bytes]:
    """What came after *known*, row by row, from a database that is hurt somewhere, or beside one that is."""
    found: list[bytes] = []
    with suppress(sqlite3.Error), _database(path) as database:
        while (row := database.execute(query, (len(known) + len(found),)).fetchone()) is not None:
            found.append(row[0])
    return found


def judge(run: Run, truth: Truth | None = None) -> Verdict:
    """Everything about the log in *run*, which nobody runs now.

    Args:
        truth: what the log held before bytes of it were flipped: what was signed is held against that, and a row that
            differs is damage.
    """
    verdict = Verdict()
    rows = _read(run, verdict)
    if truth is not None:
        rows = _told(run, rows, truth, verdict)
    if rows is None:
        return verdict
    tree = Tree([leaf_hash(entry) for entry in rows.entries])
    outputs = Tree([leaf_hash(leaf) for leaf in rows.leaves])
    _acknowledged(run, rows, tree, verdict)
    _signed(run, {ORIGIN: tree, MAP: outputs}, verdict)
    _published(run, run.settings.tiles, ORIGIN, tree, rows.entries, verdict)
    _published(run, run.settings.map_tiles, MAP, outputs, rows.leaves, verdict)
    _derived(run, rows, tree, verdict)
    return verdict


def _read(run: Run, verdict: Verdict) -> Truth | None:
    """The rows themselves, by SQL; SQLite's own check; and each hash and root beside its entry."""
    try:
        with _database(run.settings.database) as database:
            for pragma in ("integrity_check", "foreign_key_check"):
                found = database.execute(f"PRAGMA {pragma}").fetchall()
                if found not in ([], [("ok",)]):
                    verdict.damage.append(f"log.db: {pragma}: {found[:2]}")
            entries = database.execute("SELECT leaf_index, entry, leaf_hash FROM entries ORDER BY 1").fetchall()
            roots = database.execute("SELECT tree_size, root FROM leaf_roots ORDER BY 1").fetchall()
            size, root = database.execute("SELECT size, root FROM log_state").fetchone()
        with _database(run.settings.map_database) as database:
            leaves = database.execute("SELECT leaf_index, leaf, leaf_hash FROM output_leaves ORDER BY 1").fetchall()
    except sqlite3.Error as error:
        verdict.damage.append(f"unreadable: {error}")
        return None
    for name, table in (("entry", entries), ("output leaf", leaves)):
        if [row[0] for row in table] != list(range(len(table))):
            verdict.damage.append(f"{name}: a hole")
            return None
        verdict.damage += [f"{name} {row[0]}: another hash" for row in table if leaf_hash(row[1]) != row[2]]
    tree = Tree([leaf_hash(row[1]) for row in entries])
    verdict.damage += [f"root of {size_}" for size_, root_ in roots if size_ > len(entries) or tree.root(size_) != root_]
    if len(entries) != size or len(roots) != size or tree.root(len(entries)) != root:
        verdict.damage.append("the state is not that of the entries")
    return Truth([row[1] for row in entries], [row[1] for row in leaves])


def _database(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise sqlite3.OperationalError(f"{path.name} is gone")
    return _Closing(f"{path.as_uri()}?mode=ro", uri=True)


class _Closing(sqlite3.Connection):
    def __exit__(self, *_error: object) -> None:  # type: ignore[override]
        self.close()


def _acknowledged(run: Run, rows: Truth, tree: Tree, verdict: Verdict) -> None:
    """Requirement R5: every answer that was given holds, byte for byte."""
    at: dict[bytes, int] = {}
    for ack in run.acks:
        if ack.leaf_index >= len(rows.entries):
            verdict.broken.append(f"acknowledged and lost: entry {ack.leaf_index}")
        elif rows.entries[ack.leaf_index] != ack.entry:
            verdict.broken.append(f"acknowledged as another one: entry {ack.leaf_index}")
        elif pkd_root(ack.leaf_index + 1, tree.root(ack.leaf_index + 1)) != ack.root:
            verdict.broken.append(f"acknowledged with another root: entry {ack.leaf_index}")
        if at.setdefault(ack.preimage, ack.leaf_index) != ack.leaf_index:
            verdict.broken.append(f"one message acknowledged at {at[ack.preimage]} and at {ack.leaf_index}")


def _signed(run: Run, trees: dict[str, Tree], verdict: Verdict) -> None:
    """Requirement R2: whatever left the process under the log's keys is a prefix of what is there now."""
    seen: dict[tuple[str, int], bytes] = {}
    for note_bytes in dict.fromkeys(run.witness.memory.notes):
        note, checkpoint = parse_signed_checkpoint(note_bytes)
        name = f"{checkpoint.origin} {checkpoint.size}"
        try:
            if not open_note(note, run.base.vkeys.get(checkpoint.origin, ())):
                verdict.damage.append(f"{name}: signed by a key that is not the log's")
                continue
        except KtlogError as error:
            verdict.damage.append(f"{name}: {error}")
            continue
        if seen.setdefault((checkpoint.origin, checkpoint.size), checkpoint.root) != checkpoint.root:
            verdict.broken.append(f"forked: two roots signed for {name}")
        tree = trees[checkpoint.origin]
        # One output leaf may be signed and wait for its cosignatures; an entry is there before it is signed.
        if checkpoint.size > len(tree.hashes):
            if checkpoint.origin != MAP or checkpoint.size > len(tree.hashes) + 1:
                verdict.broken.append(f"signed and lost: {name}; there are {len(tree.hashes)}")
        elif tree.root(checkpoint.size) != checkpoint.root:
            verdict.broken.append(f"signed inconsistently: {name}")
    verdict.broken += [f"the witness refused {why}" for why in run.witness.memory.refusals if "Root" in why or "Proof" in why]


def _published(
    run: Run, tiles: Path, origin: str, tree: Tree, entries: Sequence[bytes], verdict: Verdict
) -> None:
    """The checkpoint shown was signed and cosigned; every tile of its tree is there, and no file says anything else."""
    latest = run.witness.memory.latest.get(origin)
    try:
        raw = (tiles / "checkpoint").read_bytes()
        note, checkpoint = parse_signed_checkpoint(raw)
        own = open_note(note, run.base.vkeys[origin])
    except (OSError, KtlogError) as error:
        verdict.damage.append(f"{origin}: the checkpoint: {error}")
        return
    size = checkpoint.size
    if len(own) != 2 or checkpoint.origin != origin:
        verdict.damage.append(f"{origin}: the checkpoint is not signed by this log")
    elif size > len(entries):
        verdict.broken.append(f"published and lost: {origin} {size}; there are {len(entries)}")
    elif tree.root(size) != checkpoint.root:
        verdict.broken.append(f"{origin}: the checkpoint of {size} is not of these entries")
    if latest is not None and size > latest.checkpoint.size:
        verdict.broken.append(f"{origin}: published {size}, cosigned {latest.checkpoint.size}")
    have = {
        str(path.relative_to(tiles)): path for path in (tiles / "tile").rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    for name in _wanted(min(size, len(entries))) - have.keys():
        verdict.damage.append(f"{origin}: {name} is missing")
    for name, path in have.items():
        if path.read_bytes() != _content(name, tree, entries):
            verdict.damage.append(f"{origin}: {name} is not what the entries say")


def _wanted(size: int) -> set[str]:
    """The tiles of a tree of *size*, and its bundles."""
    names: set[str] = set()
    level = 0
    while (width := size >> (8 * level)) > 0:
        for kind in (level, *(("entries",) if level == 0 else ())):
            names |= {tile_path(kind, number) for number in range(width // 256)}
            names |= {tile_path(kind, width // 256, width % 256)} if width % 256 else set()
        level += 1
    return names


def _content(name: str, tree: Tree, entries: Sequence[bytes]) -> bytes | None:
    """What the file *name* must hold; None where no tree of these entries has it."""
    _tile, kind, *numbers = name.split("/")
    width = int(numbers.pop()) if numbers[-2:-1] and numbers[-2].endswith(".p") else 256
    number = int("".join(part.strip("x").removesuffix(".p") for part in numbers))
    first, level = number * 256, 0 if kind == "entries" else int(kind)
    if (first + width) << (8 * level) > len(entries):
        return None
    if kind == "entries":
        return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries[first : first + width])
    return b"".join(tree.subtree(8 * level, index) for index in range(first, first + width))


# What the entries mean


def derive(base: Base) -> None:
    """Derive the base once, for every run from it to go on with."""
    with SqliteStore.open(base.log / "log.db", origin=ORIGIN, read_only=True) as store:
        records = store.records(0, store.state().size)
    derivation = Derivation(ORIGIN, commitments=False)
    roots = {0: derivation.map_root()}
    for record in records:
        _take(derivation, record)
        roots[derivation.size] = b""
    roots[derivation.size] = derivation.map_root()
    base.state = pickle.dumps((derivation, roots, [record.entry for record in records]))


def _take(derivation: Derivation, record: Record) -> object:
    return derivation.entry(
        record.leaf_index, record.entry, record.preimage, record.plain, record.salts, record.withheld
    )


def _derived(run: Run, rows: Truth, tree: Tree, verdict: Verdict) -> None:
    """Every new entry is signed by the leaf key and keeps the rules; every new map root is what the entries make."""
    derivation, roots, old = pickle.loads(run.base.state)
    if rows.entries[: len(old)] != old:
        verdict.damage.append("an entry of before the fault is another one")
        return
    keys = {leaf_key_hash(key): key for key in load_public_keys(_settings_of(run.base)).leaf_keys}
    try:
        with SqliteStore.open(run.settings.database, origin=ORIGIN, read_only=True) as store:
            known = len(old) + len(rows.records)
            records = (*rows.records, *(store.records(known, len(rows.entries)) if known < len(rows.entries) else ()))
        if [record.entry for record in records] != rows.entries[len(old) :]:
            raise StoreError("Corrupt", "the newest entries are other ones")
        for record in records:
            verify_entry(record.entry, record.preimage, keys)
            violation = _take(derivation, record)
            if violation is not None:
                verdict.broken.append(f"logged against the rules: {violation}")
            roots[derivation.size] = derivation.map_root()
        _mapped(run, rows, tree, roots, verdict)
    except KtlogError as error:
        verdict.damage.append(f"{type(error).__name__}: {error}")


def _mapped(run: Run, rows: Truth, tree: Tree, roots: dict[int, bytes], verdict: Verdict) -> None:
    told = (0, 0, 0)
    for number, data in enumerate(rows.leaves[1:], 1):
        leaf = parse_leaf(data)
        if (leaf.time, leaf.input_size, leaf.erasures) < told:
            verdict.broken.append(f"output leaf {number} goes back")
        told = (leaf.time, leaf.input_size, leaf.erasures)
        if leaf.input_size > len(rows.entries):
            verdict.broken.append(f"mapped and lost: {leaf.input_size} by output leaf {number}")
        elif tree.root(leaf.input_size) != leaf.input_root:
            verdict.broken.append(f"output leaf {number} is of other entries")
        elif roots.get(leaf.input_size) not in (b"", leaf.map_root):
            verdict.broken.append(f"output leaf {number} has a map that the entries do not make")


def _settings_of(base: Base) -> object:
    from ktlog.config import load_settings

    return load_settings(base.log, environment={})
