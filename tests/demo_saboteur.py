"""What a saboteur can do to a demo that waits, with hands on its processes and its files but without any key."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ktlog.keymap.bundle import Bundle, parse_bundle
from ktlog.pkd.canonical import canonical
from ktlog.pkd.keys import encode_public_key, key_hash, private_key_from_seed
from ktlog.store.rows import fill_sums
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64url, encode_base64, encode_base64url
from ktlog.tlog.envelope import Note, SignatureLine, format_note
from ktlog.tlog.note import signer_from_seed
from ktlog.tlog.policy import format_policy, parse_policy
from tests.demo_between import Between
from tests.demo_run import Paused, wait_for

STRANGER = private_key_from_seed(b"\x77" * 32)
"""A key that nobody in the story has."""
STRANGER_PUBLIC = STRANGER.public_key().public_bytes_raw()


def flip(data: bytes, at: int) -> bytes:
    """*data* with one bit of the byte at *at* (from the end when negative) the other way round."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def drop_lines(note: Note, *names: str) -> Note:
    """*note* without the signature lines of *names*."""
    return replace(note, signatures=tuple(line for line in note.signatures if line.name not in names))


def flip_lines(note: Note, name: str) -> Note:
    """*note* with every signature line of *name* broken."""
    return replace(note, signatures=tuple(
        SignatureLine(name, line.key_id, flip(line.blob, -5)) if line.name == name else line
        for line in note.signatures
    ))


def _ended(pid: int) -> bool:
    """Whether the process is gone, or only waits to be told so of its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


class Saboteur:
    """Hands on one demo. ``log``, ``origin`` and the rest are of the instance alpha."""

    origin = "keys.alpha.example"

    def __init__(self, paused: Paused) -> None:
        self.directory = paused.directory
        self._processes = paused.processes
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._locks: list[int] = []
        self._between: list[Between] = []

    def close(self) -> None:
        self._stop.set()
        for between in self._between:
            between.close()
        for thread in self._threads:
            thread.join()
        for handle in self._locks:
            os.close(handle)

    # Places

    @property
    def log(self) -> Path:
        return self.directory / "log-alpha"

    @property
    def checkpoint(self) -> Path:
        return self.log / "tiles" / "checkpoint"

    @property
    def client(self) -> Path:
        """The state of the client that looks into alpha's log."""
        return self.directory / "client-beta"

    @property
    def client_head(self) -> Path:
        return self.client / "heads" / "keys.alpha.example%2Fmap.json"

    @property
    def auditor_head(self) -> Path:
        """Where an auditor of before there was a database kept its head; it takes such a file over."""
        return self.directory / "auditor-alpha" / "heads" / "keys.alpha.example.note"

    def auditor_forgets(self, instance: str = "alpha") -> None:
        """Take from the auditor all that it knows of *instance*'s log."""
        for path in (self.directory / f"auditor-{instance}").glob("audit.db*"):
            path.unlink()

    # Processes

    def pids(self) -> dict[str, int]:
        """What alpha's supervisor says that it runs."""
        path = self.log / "pids.json"
        return json.loads(wait_for("pids.json", lambda: path.exists() and path.read_text()))

    def pid(self, name: str) -> int:
        return self._processes[name][0]

    def kill(self, name: str) -> None:
        """Until it is dead: on a busy machine that takes a moment, in which it has ended for nobody yet."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        wait_for(f"the end of {name}", lambda: _ended(pid))

    def kill_all(self, name: str) -> None:
        """With its workers, which else serve on until they notice that they are alone."""
        pid = self.pid(name)
        os.killpg(pid, signal.SIGKILL)
        wait_for(f"the end of {name}", lambda: _ended(pid))

    def freeze(self, name: str) -> None:
        """Stop it, and its workers if it leads a group of its own."""
        pid = self.pid(name)
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGSTOP)
        else:
            os.kill(pid, signal.SIGSTOP)

    def restart_sequencer(self) -> None:
        """Let the supervisor start it anew, with what is on disk now."""
        os.kill(self.pids()["sequencer"], signal.SIGKILL)

    def restart_web(self) -> None:
        """The same for the web workers; returns when the new ones answer."""
        before = self.pids()["web"]
        os.kill(before, signal.SIGTERM)
        wait_for("other web workers", lambda: self.pids()["web"] != before)
        port = self._processes["log-alpha"][1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=60) as answer:
            assert answer.read() == b"ok\n"

    # Files

    def flip(self, name: str, at: int) -> None:
        """Flip a bit of a file in the demo's directory, whatever its mode says."""
        path = self.directory / name
        self.replace(name, flip(path.read_bytes(), at))

    def replace(self, name: str, data: bytes) -> None:
        """Put another file in the place of one, atomically, with its mode."""
        path = self.directory / name
        other = path.with_name(f".{path.name}.sabotage")
        other.write_bytes(data)
        other.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        other.rename(path)

    def wait_published(self, size: int) -> None:
        """Wait until alpha's log has published *size* entries: what is tampered with then stays so."""
        def published() -> bool:
            return self.checkpoint.exists() and parse_signed_checkpoint(self.checkpoint.read_bytes())[1].size == size

        wait_for(f"{size} entries to be published", published)

    def head(self) -> tuple[int, bytes]:
        """Size and root that alpha's log has published."""
        _, checkpoint = parse_signed_checkpoint(self.checkpoint.read_bytes())
        return checkpoint.size, checkpoint.root

    @contextmanager
    def database(self, path: str = "log-alpha/log.db") -> Iterator[sqlite3.Connection]:
        """Somebody with a SQL prompt, for whom the triggers that keep a log append-only are no obstacle."""
        connection = sqlite3.connect(self.directory / path, timeout=20, isolation_level=None)
        try:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("BEGIN IMMEDIATE")
            for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            yield connection
            connection.execute("COMMIT")
        finally:
            connection.close()

    def sql(self, statement: str, *values: Any, path: str = "log-alpha/log.db") -> None:
        """One statement that must change something."""
        with self.database(path) as database:
            assert database.execute(statement, values).rowcount > 0, statement

    def change_plaintext(self, leaf_index: int) -> None:
        """Publish another public key than the one that a message committed to, of the same form and length."""
        def edit(plain: dict[str, Any]) -> None:
            raw = decode_base64url(plain["public-key"].removeprefix("mldsa44:"))
            plain["public-key"] = "mldsa44:" + encode_base64url(flip(raw, 700))

        self.edit_plain(leaf_index, edit)

    def edit_plain(self, leaf_index: int, edit: Callable[[dict[str, Any]], None]) -> None:
        """Change the published plaintext of one entry."""
        with self.database() as database:
            (text,) = database.execute(
                "SELECT plain FROM record_plain WHERE leaf_index = ?", (leaf_index,)
            ).fetchone()
            plain = json.loads(text)
            edit(plain)
            database.execute(
                "UPDATE record_plain SET plain = ? WHERE leaf_index = ?", (json.dumps(plain), leaf_index)
            )

    def flip_stored_leaf_hash(self, leaf_index: int) -> None:
        """An entry that does not hash to what is stored for it: damage that no reader sees."""
        with self.database() as database:
            (found,) = database.execute(
                "SELECT leaf_hash FROM entries WHERE leaf_index = ?", (leaf_index,)
            ).fetchone()
            database.execute(
                "UPDATE entries SET leaf_hash = ? WHERE leaf_index = ?", (flip(found, 0), leaf_index)
            )

    def publish_foreign_leaf_keys(self) -> None:
        """Let the log say that it signs entries with another key."""
        path = self.log / "public-keys.json"
        found = json.loads(path.read_text())
        found["leaf-keys"] = [encode_public_key(STRANGER_PUBLIC)]
        self.replace("log-alpha/public-keys.json", json.dumps(found).encode())
        self.restart_web()

    def swap_stored_key(self, actor_id: str) -> None:
        """Put the stranger's key in the directory's row of an actor, as a lying log would: its hash and sum fit."""
        with self.database() as database:
            database.execute(
                "UPDATE directory_keys SET public_key = ?, key_hash = ? WHERE actor_number ="
                " (SELECT actor_number FROM directory_actors WHERE actor_id = ?)",
                (STRANGER_PUBLIC, key_hash(STRANGER_PUBLIC), actor_id),
            )
            fill_sums(database)

    def edit_checkpoint(self, edit: Callable[[Note], Note]) -> None:
        """Change alpha's published checkpoint."""
        note, _ = parse_signed_checkpoint(self.checkpoint.read_bytes())
        self.replace("log-alpha/tiles/checkpoint", format_note(edit(note)))

    def map_checkpoint(self, log: str = "log-alpha") -> bytes:
        """The checkpoint that a log published last of its map."""
        with self.database(f"{log}/map.db") as database:
            return database.execute("SELECT note FROM output_checkpoints ORDER BY size DESC LIMIT 1").fetchone()[0]

    def publish_map_checkpoint(self, note: bytes) -> None:
        """Put *note* in the place of the checkpoint that alpha published last of its map."""
        self.sql(
            "UPDATE output_checkpoints SET note = ? WHERE size = (SELECT max(size) FROM output_checkpoints)", note,
            path="log-alpha/map.db",
        )

    def edit_map_checkpoint(self, edit: Callable[[Note], Note]) -> None:
        note, _ = parse_signed_checkpoint(self.map_checkpoint())
        self.publish_map_checkpoint(format_note(edit(note)))

    def edit_bundles(self, edit: Callable[[Bundle], Bundle | bytes], log: str = "alpha") -> None:
        """Stand between a log and its readers, and change its answers from the map."""
        self._between.append(Between(self.directory / "front", f"keys.{log}.example", edit))

    def bundle(self, actor_id: str, log: str = "alpha") -> Bundle:
        """What a log answers about an actor now."""
        port = self._processes[f"log-{log}"][1]
        url = f"http://127.0.0.1:{port}/map/bundle/{quote(actor_id, safe='')}?aux=true"
        request = urllib.request.Request(url, headers={"Host": f"keys.{log}.example"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return parse_bundle(answer.read())

    def name_other_cosigners(self, *roles: str, policy: str = "trust.policy") -> None:
        """Let a policy of the demo name the cosigners of these roles (witness, verifier) with keys not theirs."""
        found = parse_policy((self.directory / policy).read_bytes())
        witnesses = {
            name: replace(witness, vkey=signer_from_seed(
                witness.vkey.name, witness.vkey.algorithm, bytes([number]) * 32
            ).vkey) if witness.vkey.name.split(".")[1] in roles else witness
            for number, (name, witness) in enumerate(found.witnesses.items(), 1)
        }
        self.replace(policy, format_policy(replace(found, witnesses=witnesses)))

    def remember_head(self, note: bytes) -> None:
        """Let the client remember *note* as the head of alpha's map that it verified last."""
        found = json.loads(self.client_head.read_text())
        self.replace(
            str(self.client_head.relative_to(self.directory)), canonical({**found, "note": encode_base64(note)})
        )

    def hold_auditor(self, log: str = "alpha") -> None:
        """Be another auditor with the same directory: the lock is ours until the test ends."""
        path = self.directory / f"auditor-{log}" / "lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._locks.append(os.open(path, os.O_RDWR | os.O_CREAT))
        fcntl.flock(self._locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)

    # In the background

    def watch(self, act: Callable[[], bool]) -> None:
        """Call *act* again and again beside the demo, until it says that it is done."""
        def run() -> None:
            while not self._stop.is_set():
                with suppress(OSError, ValueError):
                    if act():
                        return
                time.sleep(0.005)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)

    def kill_liar(self, lie: str) -> None:
        """Kill the liar as soon as it has told the witnesses its lie. Linux only."""
        out = self.directory / f"lie-{lie}.json"
        wanted = str(out).encode()

        def act() -> bool:
            if not out.exists():
                return False
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if wanted in (process / "cmdline").read_bytes().split(b"\0"):
                        os.kill(int(process.name), signal.SIGKILL)
            return True

        self.watch(act)
