"""One bit of what is stored becomes another. Never may that lead to a signature over something inconsistent.

Every kind of object is flipped while the log is stopped, either when all is published or while the newest entries wait
for the witness. What follows is one of three: the log refuses, with a code; it heals, and nothing is wrong any more; or
it goes on, and its own check names the damage. And whatever it signed is held against what was there before the flip.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ktlog.tlog.checkpoint import parse_signed_checkpoint
from tests.faults.check import findings
from tests.faults.judge import Truth, bundle_truth, judge, read_truth
from tests.faults.kinds import Outcome, World, codes, drop_tree, feed, play, uncoded
from tests.faults.kinds import closing as close_well
from tests.faults.plan import Fault
from tests.faults.restores import attempt
from tests.faults.site import Run, Stuck, empty_wal
from tests.operator_world import ORIGIN

CELLS = {
    # object: (file, table, column, of which rows)
    "log.db entry": ("log.db", "entries", "entry"),
    "log.db leaf hash": ("log.db", "entries", "leaf_hash"),
    "log.db unique hash": ("log.db", "entries", "unique_hash"),
    "log.db root": ("log.db", "leaf_roots", "root"),
    "log.db state root": ("log.db", "log_state", "root"),
    "log.db frontier": ("log.db", "log_state", "frontier"),
    "log.db record": ("log.db", "records", "preimage"),
    "log.db record text": ("log.db", "record_plain", "plain"),
    "log.db record keys": ("log.db", "record_plain", "keys"),
    "log.db record salts": ("log.db", "record_plain", "salts"),
    "log.db directory key": ("log.db", "directory_keys", "public_key"),
    "log.db directory key hash": ("log.db", "directory_keys", "key_hash"),
    "log.db directory key id": ("log.db", "directory_keys", "key_id"),
    "log.db directory actor": ("log.db", "directory_actors", "actor_id"),
    "log.db directory salt": ("log.db", "directory_actors", "salt"),
    "log.db directory datum": ("log.db", "directory_aux", "aux_data"),
    "log.db directory sum": ("log.db", "directory_actors", "row_sum"),
    "log.db revoked key": ("log.db", "directory_revoked", "key_hash"),
    "log.db revoked token": ("log.db", "token_revoked", "key_hash"),
    "log.db revoked token's check": ("log.db", "token_revoked", "key_check"),
    "log.db move": ("log.db", "directory_moves", "history_root"),
    "log.db origin": ("log.db", "log_meta", "origin"),
    "map.db bucket": ("map.db", "map_buckets", "leaves"),
    "map.db node": ("map.db", "map_nodes", "nodes"),
    "map.db value": ("map.db", "map_values", "value"),
    "map.db opening": ("map.db", "map_values", "opening"),
    "map.db history": ("map.db", "map_values", "history"),
    "map.db history leaf": ("map.db", "map_values", "leaves"),
    "map.db output leaf": ("map.db", "output_leaves", "leaf"),
    "map.db output hash": ("map.db", "output_leaves", "leaf_hash"),
    "map.db checkpoint": ("map.db", "output_checkpoints", "note"),
    "map.db state root": ("map.db", "map_state", "root"),
    "map.db frontier": ("map.db", "map_state", "output_frontier"),
}
"""Values in a database, found by what they are, and flipped in the file's bytes."""

NUMBERS = {
    "log.db history": ("log.db", "directory_history", "role"),
    "log.db history's entry": ("log.db", "directory_history", "leaf_index"),
    "log.db operator": ("log.db", "directory_operated", "leaf_index"),
    "log.db fireproof": ("log.db", "directory_actors", "fireproof"),
    "log.db version": ("log.db", "directory_actors", "version"),
    "log.db generation": ("log.db", "directory_actors", "generation"),
    "log.db status": ("log.db", "directory_actors", "status"),
    "log.db key's entry": ("log.db", "directory_keys", "leaf_index"),
    "log.db key's time": ("log.db", "directory_keys", "created"),
    "log.db datum's entry": ("log.db", "directory_aux", "leaf_index"),
    "log.db record's time": ("log.db", "records", "created"),
    "log.db size": ("log.db", "log_state", "size"),
    "log.db entry's place": ("log.db", "entry_places", "prefix"),
    "log.db root's place": ("log.db", "root_places", "prefix"),
    "map.db size": ("map.db", "map_state", "input_size"),
    "map.db leaves": ("map.db", "map_state", "leaves"),
    "map.db tree": ("map.db", "map_state", "output_size"),
}
"""Numbers in a database, too small to be found by what they are: flipped by SQL, its guards taken away for that."""

FILES = {
    "log.db anywhere": "log.db",
    "map.db anywhere": "map.db",
    "log.db-wal": "log.db-wal",
    "map.db-wal": "map.db-wal",
    "tile, level 0": "tiles/tile/0/**",
    "tile, level 1": "tiles/tile/1/**",
    "entry bundle": "tiles/tile/entries/**",
    "checkpoint": "tiles/checkpoint",
    "map tile": "tiles/map/tile/0/**",
    "map bundle": "tiles/map/tile/entries/**",
    "map checkpoint": "tiles/map/checkpoint",
    "signed-head.json": "signed-head.json",
    "map-signed-head.json": "map-signed-head.json",
    "map-pending": "map-pending",
    "acked": "acked",
    "public-keys.json": "public-keys.json",
    "ktlog.toml": "ktlog.toml",
    "publish.policy": "publish.policy",
    "leaf key": "keys/leaf",
    "checkpoint key": "keys/checkpoint-*",
    "map key": "keys/map-*",
    "HPKE key": "keys/hpke",
    "key of answers": "keys/http-*",
    "key changes": "keys.jsonl",
    "map update": "tiles/map/updates/**",
}
LOST = ("acknowledged and lost", "signed and lost", "published and lost", "mapped and lost")
"""What a store says that has lost its end. Having signed two things is never among it."""

OBJECTS = (*CELLS, *NUMBERS, *FILES)


def flip_cell(run: Run, name: str, draw: random.Random) -> str | None:
    """Flip a bit of the value in the file itself; None if there is no such value."""
    file, table, column = CELLS[name]
    path = run.log / file
    database = sqlite3.connect(path)
    rows = database.execute(f"SELECT {column} FROM {table} WHERE length({column}) > 3").fetchall()  # noqa: S608
    database.close()
    if not rows:
        return None
    number = draw.choice((len(rows) - 1, draw.randrange(len(rows))))
    value = rows[number][0]
    value = value if isinstance(value, bytes) else value.encode()
    data = path.read_bytes()
    # A value longer than a page is in several pieces; its first bytes are in one.
    key = value[:24] if len(value) > 4000 else value
    places = _all(data, key)
    if not places:
        return None
    at = draw.choice(places) + draw.randrange(len(key))
    flip_byte(path, at, draw)
    return f"{name}, row {number + 1} of {len(rows)}, at {at}"


def flip_number(run: Run, name: str, draw: random.Random) -> str | None:
    """Flip a bit of a number; None if there is none."""
    file, table, column = NUMBERS[name]
    with closing(sqlite3.connect(run.log / file)) as database:
        rows = database.execute(f"SELECT * FROM {table}")  # noqa: S608
        names = [one[0] for one in rows.description]
        row = draw.choice(rows.fetchall() or [None])
        if row is None:
            return None
        guards = database.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?", (table,)).fetchall()
        database.execute("PRAGMA ignore_check_constraints = ON")
        for guard, _sql in guards:
            database.execute(f"DROP TRIGGER {guard}")
        old = row[names.index(column)]
        new = old ^ (1 << draw.randrange(1 if column == "fireproof" else 6))
        same = " AND ".join(f"{one} IS ?" for one in names)
        try:
            database.execute(f"UPDATE {table} SET {column} = ? WHERE {same}", (new, *row))  # noqa: S608
        except sqlite3.IntegrityError:
            return None  # there is such a row
        for _guard, words in guards:
            database.execute(words)
        database.commit()
    empty_wal(run.log / file)
    return f"{name}, {old} to {new}"


def _all(data: bytes, key: bytes) -> list[int]:
    found, at = [], data.find(key)
    while at >= 0 and len(found) < 8:
        found.append(at)
        at = data.find(key, at + 1)
    return found


def flip_file(run: Run, name: str, draw: random.Random) -> str | None:
    pattern = FILES[name]
    found = sorted(path for path in run.log.glob(pattern + ("/*" if pattern.endswith("**") else "")) if path.is_file())
    found = [path for path in found if path.stat().st_size]
    if not found:
        return None
    path = draw.choice(found)
    at = draw.randrange(path.stat().st_size)
    flip_byte(path, at, draw)
    return f"{path.relative_to(run.log)} at {at}"


def flip_byte(path: Path, at: int, draw: random.Random) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    path.chmod(mode)


def flipped(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    return flip_object(world, base, directory, draw, draw.choice(OBJECTS))


def flip_object(world: World, base: str, directory: Path, draw: random.Random, name: str) -> Outcome:
    waiting = draw.random() < 0.5 or name == "map-pending"
    log_wal, map_wal = name == "log.db-wal", name == "map.db-wal"

    def act(run: Run) -> Outcome:
        faults = [Fault("rename", "tiles/map/checkpoint", 2, "kill")] if map_wal else ()
        child = run.start(faults, prepare=world.prepare)
        feed(run, child, draw, 2)
        if waiting and child.poll() is None:
            run.witness.awake = False
            run.send(child, next(run.bank), next(run.bank))
            run.pump(child, lambda: run.settings.map_pending.exists() or "not published" in run.words(), seconds=8)
        run.stop(child, signal.SIGKILL if log_wal or name == "map-pending" else signal.SIGTERM)
        run.witness.awake = True
        if not (log_wal or map_wal):
            for database in (run.settings.database, run.settings.map_database):
                empty_wal(database)
        truth, acks = read_truth(run), list(run.acks)
        shutil.copytree(run.log, run.directory / "newest", ignore=shutil.ignore_patterns("*.sock", "*.addr"))
        flip = flip_cell if name in CELLS else flip_number if name in NUMBERS else flip_file
        where = flip(run, name, draw)
        if where is None:
            return close_well(run, world, Outcome("flipped", name, "missed"))
        what = f"{where}{', unpublished' if waiting else ''}"
        return look(run, world, truth, acks, Outcome("flipped", what, ""))

    return play(world, world.bases[base], directory, act)


def look(run: Run, world: World, truth: Truth, acks: list, outcome: Outcome) -> Outcome:
    """Run on with the flipped byte; then judge by what was there before it, and by what the log's check says."""
    before = len(run.witness.memory.notes)
    result = attempt(run, world)
    outcome.codes = codes(run)
    verdict = judge(run, truth)
    outcome.why += verdict.broken + uncoded(run) + signed_over(run, before, verdict.damage)
    named = findings(run)
    if result == "refused":
        outcome.result = "refused"
        if not outcome.codes:
            outcome.why.append("refused without a code: " + run.words()[-300:])
        if len(run.witness.memory.notes) == before:
            run.acks = acks  # what it answered, on a store whose bytes were wrong, it never signed
            drop_tree(run.log)
            shutil.copytree(run.directory / "newest", run.log)
            return close_well(run, world, outcome)
        # It signed on before it came to the damage: an older copy is no cure any more.
        if verdict.damage and not named:
            outcome.why.append(f"fsck is blind to it: {verdict.damage[:3]}")
    outcome.result = "named" if named else "healed"
    if verdict.damage and not named:
        outcome.why.append(f"fsck is blind to it: {verdict.damage[:3]}")
    if outcome.why:
        outcome.result = "VIOLATED"
    return outcome


def signed_over(run: Run, before: int, damage: list[str]) -> list[str]:
    """Requirement R1: of an entry that is not what it was, no head may be signed for the first time."""
    sizes = [parse_signed_checkpoint(note)[1] for note in run.witness.memory.notes]
    old = max((one.size for one in sizes[:before] if one.origin == ORIGIN), default=0)
    new = max((one.size for one in sizes[before:] if one.origin == ORIGIN), default=0)
    changed = [int(line.split()[1].rstrip(":")) for line in damage if line.startswith("entry ") and "changed" in line]
    return [f"signed over a damaged entry: {at}" for at in changed if old <= at < new]


def bad_write(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """A bit flips on its way to the disk, and nobody is told: requirement R1, what Yeti 2022 and Nimbus 2018 died of."""
    keys = sorted(key for key in world.counts[base] if key.split()[0] in ("write", "db.write") and "sequencer" not in key)
    key = draw.choice(keys)
    fault = Fault(*key.split(), draw.randrange(world.counts[base][key]) + 1, "flip")

    def act(run: Run) -> Outcome:
        child = run.start([fault], prepare=world.prepare)
        try:
            feed(run, child, draw, 3)
        except Stuck:
            pass
        run.stop(child, draw.choice((signal.SIGTERM, signal.SIGKILL)))
        outcome = Outcome("bad write", str(fault), "refused")
        if not run.faults:
            return close_well(run, world, Outcome("bad write", str(fault), "missed"))
        result = attempt(run, world)
        outcome.codes = codes(run)
        verdict = min((judge(run), judge(run, bundle_truth(run))), key=lambda one: len(one.broken))
        named = findings(run)
        # Its only copy was hurt: what is left is to say so, and to sign nothing more.
        told = result == "refused" or named or outcome.codes
        excused = {line for line in verdict.broken if told and line.startswith(LOST)}
        outcome.why += [line for line in verdict.broken if line not in excused] + uncoded(run)
        if verdict.damage and result == "accepted" and not named:
            outcome.why.append(f"fsck is blind to it: {verdict.damage[:3]}")
        outcome.result = result if result == "refused" else "named" if named else "healed"
        if outcome.why:
            outcome.result = "VIOLATED"
        return outcome

    return play(world, world.bases[base], directory, act)


_Flip = Callable[[Run, str, random.Random], str | None]
