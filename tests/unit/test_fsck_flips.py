"""One flipped byte in each kind of stored object is found by ``ktlog fsck``, and named."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.commands import fsck as fsck_command
from ktlog.commands.fsck import command
from ktlog.errors import StoreError, UsageError
from ktlog.operator.fsck import Scope, check_log, examine
from ktlog.operator.fsckfiles import AHEAD_SECONDS
from ktlog.operator.head import load_signed_head, record_signed_head
from ktlog.operator.stores import open_log
from ktlog.operator.tilerepair import make_file, repair_tiles
from ktlog.store.documents import FileDocument
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.operator_world import NOW
from tests.pkd_samples import ALICE, CAROL, quick_argon2  # noqa: F401
from tests.whole_log import copy_of, resume, whole  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_argon2")

Damage = Callable[[Path], None]


def flip(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def row(database: str, table: str, column: str, where: str = "1", at: int = -1) -> Damage:
    """Flip a byte of one value, below every trigger and constraint."""

    def damage(directory: Path) -> None:
        db = sqlite3.connect(directory / database)
        db.execute("PRAGMA ignore_check_constraints=ON")
        for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        found, kind = db.execute(f"SELECT {column}, typeof({column}) FROM {table} WHERE {where} LIMIT 1").fetchone()
        if kind == "integer":
            changed: object = found ^ 1
        elif kind == "text":
            changed = flip(found.encode(), at).decode()
        else:
            changed = flip(found, at)
        key = db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ? AND {where}", (changed, found)).rowcount
        assert key >= 1
        db.commit()
        db.close()

    return damage


def file(name: str, at: int = -10) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / name
        path.write_bytes(flip(path.read_bytes(), at))

    return damage


CASES = {
    # log.db
    "entry": (row("log.db", "entries", "entry", "leaf_index = 3", 100), "EntryDamaged", "log.db entries 3"),
    "leaf hash": (row("log.db", "entries", "leaf_hash", "leaf_index = 3"), "LeafHashDamaged", "log.db entries 3"),
    "unique hash": (row("log.db", "entries", "unique_hash", "leaf_index = 3"), "RecordDamaged", "log.db records 3"),
    "root": (row("log.db", "leaf_roots", "root", "tree_size = 4"), "RootDamaged", "log.db leaf_roots 4"),
    "last root": (row("log.db", "leaf_roots", "root", "tree_size = 14"), "LogUnreadable", "log.db"),
    "state root": (row("log.db", "log_state", "root"), "LogUnreadable", "log.db"),
    "state size": (row("log.db", "log_state", "size"), "LogUnreadable", "log.db"),
    "frontier": (row("log.db", "log_state", "frontier"), "LogUnreadable", "log.db"),
    "greatest time": (row("log.db", "log_state", "greatest_time"), "StateDamaged", "log.db log_state"),
    "origin": (row("log.db", "log_meta", "origin", at=3), "LogUnreadable", "log.db"),
    "dialect": (row("log.db", "log_meta", "dialect", at=0), "LogUnreadable", "log.db"),
    "preimage": (row("log.db", "records", "preimage", "leaf_index = 3"), "PreimageDamaged", "log.db records 3"),
    "action": (row("log.db", "records", "action", "leaf_index = 3"), "RecordDamaged", "log.db records 3"),
    "created": (row("log.db", "records", "created", "leaf_index = 3"), "RecordDamaged", "log.db records 3"),
    "withheld": (row("log.db", "records", "withheld", "leaf_index = 3"), "RecordDamaged", "log.db records 3"),
    "plain": (row("log.db", "record_plain", "plain", "leaf_index = 4", -4), "PlaintextDamaged", "log.db records 4"),
    "plain JSON": (row("log.db", "record_plain", "plain", "leaf_index = 4", 0), "RecordDamaged", "log.db records 4"),
    "key": (row("log.db", "record_plain", "keys", "leaf_index = 4", -6), "PlaintextDamaged", "log.db records 4"),
    "salt of the record": (row("log.db", "record_plain", "salts", "leaf_index = 0", -6), "SaltDamaged", None),
    "salt": (row("log.db", "directory_actors", "salt", f"actor_id = '{ALICE}'"), "SaltDamaged", None),
    "actor's status": (row("log.db", "directory_actors", "status", f"actor_id = '{ALICE}'"), "ActorDamaged", None),
    "actor's version": (row("log.db", "directory_actors", "version", f"actor_id = '{CAROL}'"), "ActorDamaged", None),
    "actor's name": (row("log.db", "directory_actors", "actor_id", f"actor_id = '{CAROL}'"), "ActorDamaged", None),
    "actor's key": (row("log.db", "directory_keys", "public_key"), "ActorDamaged", None),
    "key's hash": (row("log.db", "directory_keys", "key_hash"), "ActorDamaged", None),
    "key id": (row("log.db", "directory_keys", "key_id"), "ActorDamaged", None),
    "aux data": (row("log.db", "directory_aux", "aux_data"), "ActorDamaged", None),
    "revoked key": (row("log.db", "token_revoked", "key_hash"), "TokenDamaged", "log.db token_revoked"),
    "revoked set": (row("log.db", "directory_revoked", "key_hash"), "ActorDamaged", None),
    "root's place": (row("log.db", "root_places", "prefix"), "RootPlaceDamaged", None),
    "entry's place": (row("log.db", "entry_places", "prefix"), "UniqueHashDamaged", None),
    "history": (row("log.db", "directory_history", "role", "leaf_index = 5"), "HistoryDamaged", None),
    "operator": (row("log.db", "directory_operated", "leaf_index"), "OperatedDamaged", "log.db directory_operated 8"),
    "move": (row("log.db", "directory_moves", "history_root"), "MoveDamaged", "log.db directory_moves 5"),
    "erasure": (row("log.db", "erasures", "record", at=15), "ErasureDamaged", "log.db erasures 0"),
    "erasure's size": (row("log.db", "erasures", "record", at=2), "ErasureDamaged", "log.db erasures 0"),
    "tombstone": (row("log.db", "tombstones", "version"), "TombstoneDamaged", None),
    # map.db
    "map origin": (row("map.db", "log_meta", "origin", at=3), "MapUnreadable", "map.db"),
    "map root": (row("map.db", "map_state", "root"), "MapRootDamaged", None),
    "map size": (row("map.db", "map_state", "input_size"), "MapStateDamaged", "map.db map_state"),
    "map leaves": (row("map.db", "map_state", "leaves"), "MapRootDamaged", None),
    "output size": (row("map.db", "map_state", "output_size"), "MapUnreadable", "map.db"),
    "output frontier": (row("map.db", "map_state", "output_frontier"), "MapStateDamaged", "map.db map_state"),
    "bucket index": (row("map.db", "map_buckets", "leaves", at=5), "MapLeafDamaged", None),
    "bucket commitment": (row("map.db", "map_buckets", "leaves", at=40), "MapLeafDamaged", None),
    "map value": (row("map.db", "map_values", "value", at=30), "MapValueDamaged", None),
    "opening": (row("map.db", "map_values", "opening"), "MapValueDamaged", None),
    "map history": (row("map.db", "map_values", "leaves"), "MapValueDamaged", None),
    "history frontier": (row("map.db", "map_values", "history"), "MapValueDamaged", None),
    "map tombstone": (row("map.db", "map_tombstones", "generation"), "MapValueDamaged", None),
    "output leaf": (row("map.db", "output_leaves", "leaf", "leaf_index = 2", 40), "OutputLeafDamaged", None),
    "output hash": (row("map.db", "output_leaves", "leaf_hash", "leaf_index = 2"), "OutputLeafDamaged", None),
    "output config": (row("map.db", "output_leaves", "leaf", "leaf_index = 0", 40), "OutputLeafDamaged", None),
    "output checkpoint": (
        row("map.db", "output_checkpoints", "note", "size = 3", 30), "OutputCheckpointDamaged", "map.db output_checkpoints 3",
    ),
    # files
    "tile": (file("tiles/tile/0/000.p/14"), "TileDamaged", "tiles/tile/0/000.p/14"),
    "older tile": (file("tiles/tile/0/000.p/5"), "TileDamaged", "tiles/tile/0/000.p/5"),
    "bundle": (file("tiles/tile/entries/000.p/14"), "BundleDamaged", "tiles/tile/entries/000.p/14"),
    "bundle's length": (file("tiles/tile/entries/000.p/5", 0), "BundleDamaged", "tiles/tile/entries/000.p/5"),
    "map tile": (file("tiles/map/tile/0/000.p/6"), "TileDamaged", "tiles/map/tile/0/000.p/6"),
    "map bundle": (file("tiles/map/tile/entries/000.p/6"), "BundleDamaged", "tiles/map/tile/entries/000.p/6"),
    "map update": (file("tiles/map/updates/004", 40), "UpdateDamaged", "tiles/map/updates/004"),
    "checkpoint": (file("tiles/checkpoint", 25), "CheckpointDamaged", "tiles/checkpoint"),
    "checkpoint's cosignature": (file("tiles/checkpoint", -50), "CheckpointDamaged", "tiles/checkpoint"),
    "map checkpoint": (file("tiles/map/checkpoint", -50), "MapCheckpointDamaged", "tiles/map/checkpoint"),
    "signed head": (file("signed-head.json", 12), "SignedHeadDamaged", None),
    "map signed head": (file("map-signed-head.json", 12), "SignedHeadDamaged", None),
    "journal": (file("journal.jsonl", 40), "JournalDamaged", "journal.jsonl"),
    "leaf key": (file("keys/leaf", 4), "KeyDamaged", "keys"),
    "checkpoint key": (file("keys/checkpoint-mldsa44", 4), "KeyDamaged", "keys"),
    "map key": (file("keys/map-ed25519", 4), "KeyDamaged", "keys"),
    "HPKE key": (file("keys/hpke", 4), "KeyDamaged", "keys"),
    "key of answers": (file("keys/http-ed25519", 4), "KeyDamaged", "keys"),
    "other key of answers": (file("keys/http-mldsa44", 4), "KeyDamaged", "keys"),
    "public half of a key of answers": (file("public-keys.json", -20), "KeyDamaged", "keys"),
    "public keys": (file("public-keys.json", 60), "PublicKeysDamaged", "public-keys.json"),
    "policy": (file("publish.policy", 2), "PolicyDamaged", "publish.policy"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_flipped_byte_is_named(whole, tmp_path, case):  # noqa: F811
    damage, name, where = CASES[case]
    settings = copy_of(whole, tmp_path / "copy")
    damage(settings.directory)
    found = check_log(settings)
    names = {finding.name for finding in found}
    assert name in names, found
    if where is not None:
        assert where in {finding.where for finding in found if finding.name == name}
    assert all(finding.hint for finding in found)


def test_a_whole_log_is_clean(whole, tmp_path):  # noqa: F811
    examined = examine(copy_of(whole, tmp_path / "copy"))
    assert examined.findings.kept == []
    assert examined.findings.checked["entries"] == whole.desk.size


def test_a_checkpoint_that_is_gone_is_missed(whole, tmp_path):  # noqa: F811
    settings = copy_of(whole, tmp_path / "copy")
    with open_log(settings) as store:
        store.note_published(store.state().size, NOW)
    assert check_log(settings) == []
    (settings.tiles / "checkpoint").unlink()
    assert ("CheckpointMissing", "tiles/checkpoint") in {(one.name, one.where) for one in check_log(settings)}


@pytest.mark.parametrize("name", ["tiles/tile/0/000.p/14", "tiles/tile/entries/000.p/14", "tiles/map/tile/0/000.p/6"])
@pytest.mark.parametrize("gone", [False, True])
def test_damaged_tiles_are_made_again(whole, tmp_path, name, gone):  # noqa: F811
    settings = copy_of(whole, tmp_path / "copy")
    path = settings.directory / name
    before = path.read_bytes()
    path.unlink() if gone else path.write_bytes(flip(before, 7))
    examined = examine(settings)
    assert {finding.name for finding in examined.findings.kept} <= {
        "TileMissing", "TileDamaged", "BundleMissing", "BundleDamaged"
    }
    assert repair_tiles(settings, examined) == 1
    assert path.read_bytes() == before
    assert check_log(settings) == []


def test_tiles_of_a_damaged_log_are_not_made_again(whole, tmp_path):  # noqa: F811
    settings = copy_of(whole, tmp_path / "copy")
    row("log.db", "entries", "entry", "leaf_index = 3", 100)(settings.directory)
    file("tiles/tile/0/000.p/14")(settings.directory)
    with pytest.raises(UsageError, match="NotRepairable"):
        repair_tiles(settings, examine(settings))


def test_a_subtree_is_computed_from_entries_alone():
    entries = [bytes([number % 256, number // 256]) for number in range(1024)]

    def read(start: int, end: int) -> list[bytes]:
        return entries[start:end]

    hashes = [hash_leaf(entry) for entry in entries]
    wanted = b"".join(root_hash(256, leaf_reader(hashes[at : at + 256])) for at in range(0, 1024, 256))
    assert make_file("tile/1/000.p/4", read) == wanted
    assert make_file("tile/0/001", read) == b"".join(hashes[256:512])


def test_every_entry_and_root_may_be_wrong_at_once_and_it_ends(whole, tmp_path):  # noqa: F811
    settings = copy_of(whole, tmp_path / "copy")
    for place in range(14):
        row("log.db", "entries", "entry", f"leaf_index = {place}", 100)(settings.directory)
    found = check_log(settings)
    assert [one.where for one in found if one.name == "EntryDamaged"] == [f"log.db entries {at}" for at in range(14)]


def test_a_directory_in_use_is_not_disturbed(whole):  # noqa: F811
    """The writer's own handle is open, with what it wrote still in the write-ahead log."""
    epoch = whole.store.state().epoch
    assert check_log(whole.settings) == []
    assert whole.store.state().epoch == epoch
    whole.store.note_published(1, 1)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(whole, tmp_path, as_json, monkeypatch):  # noqa: F811
    monkeypatch.setattr(fsck_command.time, "time", lambda: float(whole.clock()))
    settings = copy_of(whole, tmp_path / "copy")
    arguments = ["--dir", str(settings.directory), *(["--json"] if as_json else [])]
    clean = CliRunner().invoke(command, arguments)
    assert clean.exit_code == 0, clean.output
    file("tiles/tile/0/000.p/14")(settings.directory)
    damaged = CliRunner().invoke(command, arguments)
    assert damaged.exit_code == 5
    assert "TileDamaged" in damaged.output and "--repair-tiles" in damaged.output
    if as_json:
        assert json.loads(damaged.output)["findings"][0]["where"] == "tiles/tile/0/000.p/14"
    repaired = CliRunner().invoke(command, [*arguments, "--repair-tiles"])
    assert repaired.exit_code == 0, repaired.output
    assert CliRunner().invoke(command, []).exception.name == "BadArguments"
    monkeypatch.setattr(fsck_command.time, "time", lambda: whole.clock() - 1000.0)
    assert "SignedHeadAhead: signed-head.json" in CliRunner().invoke(command, arguments[:2]).output


@pytest.mark.parametrize("where", ["signed-head.json", "map-signed-head.json"])
def test_the_time_in_a_signed_head(whole, tmp_path, where):  # noqa: F811
    """Not before what was signed, nor in the future; what lies between may be."""
    settings = copy_of(whole, tmp_path / "copy")
    document = FileDocument(settings.directory / where)
    signed = load_signed_head(document)

    def found(time: int, now: int) -> list[tuple[str, str]]:
        record_signed_head(document, replace(signed, time=time))
        return [(one.name, one.where) for one in examine(settings, Scope(quick=True), now=now).findings.kept]

    assert found(signed.time, signed.time) == []
    assert found(signed.time - 1, signed.time) == [("SignedHeadDamaged", where)]
    assert found(signed.time + 1, signed.time + 1) == []
    assert found(signed.time + AHEAD_SECONDS, signed.time) == []
    assert found(signed.time + AHEAD_SECONDS + 1, signed.time) == [("SignedHeadAhead", where)]
    record_signed_head(document, replace(signed, time=1 << 40))
    assert check_log(settings) == [], "without a clock nothing is ahead"


def test_quick_looks_at_no_message(whole, tmp_path):  # noqa: F811
    settings = copy_of(whole, tmp_path / "copy")
    row("log.db", "records", "preimage", "leaf_index = 3")(settings.directory)
    assert check_log(settings, Scope(quick=True)) == []
    file("tiles/tile/0/000.p/14")(settings.directory)
    assert [one.name for one in check_log(settings, Scope(quick=True))] == ["TileDamaged"]


def test_commitments_are_checked_when_asked_for(whole, tmp_path):  # noqa: F811
    settings = copy_of(whole, tmp_path / "copy")
    examined = examine(settings, Scope(commitments=True))
    assert examined.findings.kept == []
    assert examined.findings.checked["commitments"] == examined.findings.checked["texts"]


# --- what the small log does not have


def grown(whole, directory: Path):  # noqa: F811
    """The same log some actors later, whose map has node pages, and of which an output leaf waits for cosigners."""
    copy_of(whole, directory)
    log = resume(whole, directory)
    log.enrol_many(4)
    log.cycle()
    log.network.answers.clear()
    log.cycle(log.settings.heartbeat_seconds - 30)
    assert log.settings.map_pending.exists()
    log.close()
    return log.settings


def test_a_leaf_that_waits_is_no_damage(whole, tmp_path):  # noqa: F811
    assert check_log(grown(whole, tmp_path / "copy")) == []


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (row("map.db", "map_nodes", "nodes", at=-9), "MapNodesDamaged"),
        (row("map.db", "map_nodes", "nodes", at=-1), "MapNodesDamaged"),
        (row("map.db", "map_nodes", "nodes", at=0), "MapNodesDamaged"),
        (row("map.db", "map_buckets", "leaves", at=-1), "MapNodesDamaged"),
        (file("map-pending", 60), "PendingDamaged"),
        (file("map-pending", 0), "PendingDamaged"),
        (file("map-pending", 320), "PendingDamaged"),
        (lambda directory: (directory / "map-pending").unlink(), "PendingLost"),
        (lambda directory: (directory / "signed-head.json").unlink(), "SignedHeadLost"),
        (lambda directory: (directory / "map-signed-head.json").unlink(), "SignedHeadLost"),
        (lambda directory: (directory / "map.db").unlink(), "MapUnreadable"),
        (lambda directory: (directory / "log.db").unlink(), "LogUnreadable"),
        (lambda directory: (directory / "tiles" / "tile" / "0" / "000.p" / "18").unlink(), "TileMissing"),
    ],
)
def test_what_waits_and_what_is_gone(whole, tmp_path, damage, name):  # noqa: F811
    settings = grown(whole, tmp_path / "copy")
    damage(settings.directory)
    assert name in {finding.name for finding in check_log(settings)}


def test_an_index_out_of_order_is_named_and_fsck_ends(whole, tmp_path):  # noqa: F811
    """Whoever goes on after the last name that was listed begins anew where that one comes before all others."""
    settings = copy_of(whole, tmp_path / "copy")
    with open_log(settings, read_only=True) as store:
        last = re.escape(store.actor_ids("", 100)[-1].encode())
    with closing(sqlite3.connect(settings.database)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data, count = re.subn(b'(?<!")h(?=%s)' % last[1:], b"!", settings.database.read_bytes())  # in a record it is quoted
    assert count > 1, "in the table, and in its index"
    settings.database.write_bytes(data)
    assert ("ActorDamaged", "log.db directory_actors") in {(one.name, one.where) for one in check_log(settings)}
    with open_log(settings, read_only=True) as store, pytest.raises(StoreError, match="Corrupt"):
        store.actor_ids("", 100)


def test_a_log_without_its_keys_is_not_damaged(whole, tmp_path):  # noqa: F811
    settings = copy_of(whole, tmp_path / "copy")
    shutil.rmtree(settings.keys)
    examined = examine(settings)
    assert examined.findings.kept == []
    assert sum("keys" in sentence for sentence in examined.findings.skipped) == 2
