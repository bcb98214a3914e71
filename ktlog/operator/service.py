"""The sequencer's process: one write connection, one publisher, one Unix socket.

``python -m ktlog.operator.service --dir DIR``. It holds the log's lock file, so a second one ends
at once, and the leaf and checkpoint keys, which no other process of the log reads.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ktlog.config import Settings, load_settings, socket_path
from ktlog.durable import FileLock, reach, write_atomic
from ktlog.errors import (
    Conflict,
    EncodingError,
    KtlogError,
    MessageRejected,
    PolicyUnmet,
    StoreError,
    UsageError,
)
from ktlog.operator.create import ensure_map, load_public_keys
from ktlog.operator.keys import load_checkpoint_signers, load_leaf_key, load_map_signers
from ktlog.operator.lifeline import end_with_parent
from ktlog.operator.link import (
    SHRED_SECONDS,
    Receipt,
    Submission,
    TotpChange,
    decode_cosign,
    decode_shred,
    decode_submission,
    decode_totp_change,
    encode_receipt,
    encode_refusal,
    encode_shred_report,
    receive_frame,
    send_frame,
)
from ktlog.operator.mapping import MapCycle
from ktlog.operator.publisher import Publisher
from ktlog.operator.sequencer import BATCH_LIMIT, Sequencer
from ktlog.operator.shred import Shredder, resume, try_scrub
from ktlog.operator.witnessing import input_policy
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.keys import pkd_root
from ktlog.store.contracts import Cosignature
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import VERIFIERS, Policy, parse_policy
from ktlog.wire.fetch import Fetcher

# Below the web worker's total time for a request (ktlog.wire.deadline), so that the sender hears of it.
ANSWER_TIMEOUT_SECONDS = 20.0

NOTE_SECONDS = 60.0
"""How often, at most, it is written down how much of the log is public: a notice period may begin this late."""

PUBLISH_SECONDS = 10.0
"""How long an erasure waits, and every message with it, until all entries are published."""

PASSING = frozenset({"CannotOpen", "DiskFull", "InputOutput", "ReadOnly"})
"""Errors of the store at the start that somebody may mend while the supervisor tries again."""

TRY_AGAIN = 75  # EX_TEMPFAIL

SCRUB_SECONDS = 60.0
"""After which pause erased bytes that a reader kept from being overwritten are tried again."""

log = logging.getLogger("ktlog.sequencer")


Task = Callable[[], bytes]
"""Something else than a message for the sequencing thread to do; gives the answer's bytes."""


@dataclass
class _Waiting:
    """One submission, or task, and the connection thread that waits for its result."""

    submission: Submission | Task
    done: threading.Event = field(default_factory=threading.Event)
    result: Receipt | MessageRejected | bytes | None = None

    def finish(self, result: Receipt | MessageRejected | bytes) -> None:
        self.result = result
        self.done.set()


def load_publish_policy(settings: Settings) -> Policy:
    """Read the log's own publish policy. Without witnesses nothing is ever published.

    Raises:
        UsageError: no policy, or one that would let the log vouch for itself.
    """
    try:
        policy = parse_policy(settings.publish_policy.read_bytes())
        # Where there are verifiers, the witnesses alone decide about the log, and both about its map.
        policy.check_safe(require_verifiers=VERIFIERS in policy.groups)
        input_policy(policy).check_safe()
    except FileNotFoundError:
        raise UsageError(
            "NoPublishPolicy", f"{settings.publish_policy} does not exist; without witnesses nothing is published",
            hint="Write a tlog-policy there: `witness NAME VKEY URL` lines, a `group`, and a `quorum`.",
        ) from None
    except PolicyUnmet as error:
        raise PolicyUnmet(error.name, f"{settings.publish_policy}: {error.message}") from None
    except (KtlogError, OSError) as error:
        raise UsageError("BadPublishPolicy", f"{settings.publish_policy}: {error}") from None
    public = load_public_keys(settings)
    own = {parse_vkey(text).public_key for text in (*public.vkeys, *public.map_vkeys)}
    if any(witness.vkey.public_key in own for witness in policy.witnesses.values()):
        raise UsageError("BadPublishPolicy", f"{settings.publish_policy}: a witness has this log's own key")
    if not any(witness.url for witness in policy.witnesses.values()):
        raise UsageError("BadPublishPolicy", f"{settings.publish_policy}: no witness has a URL to be asked at")
    return policy


class Service:
    """Owns the queue between the connection threads and the one sequencing thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: queue.Queue[_Waiting] = queue.Queue(settings.queue_limit)
        self._stop = threading.Event()
        dialect = DIALECTS[settings.dialect]
        self._store = SqliteStore.open(settings.database, origin=settings.origin)
        if self._store.dialect != dialect.name:
            raise StoreError(
                "WrongDialect", f"ktlog.toml says dialect {dialect.name}, the log has {self._store.dialect}"
            )
        self._sequencer = Sequencer(
            store=self._store, origin=settings.origin, dialect=dialect, leaf_key=load_leaf_key(settings.keys),
            now=self._now, random=os.urandom,
        )
        resume(self._store, settings.journal, self._now)
        self._shredder = Shredder(
            self._store, settings.journal, settings.replies, settings.notice_seconds, self._now
        )
        ensure_map(settings)
        policy = load_publish_policy(settings)
        if VERIFIERS not in policy.groups:
            log.warning("no verifiers are in %s: the map is published unverified", settings.publish_policy)
        reader = SqliteStore.open(settings.database, origin=settings.origin, read_only=True)
        fetcher = Fetcher.from_environment(timeout=float(settings.witness_timeout_seconds))
        self._mapping = MapCycle(
            settings=settings, store=reader, signers=load_map_signers(settings.keys, settings.origin), policy=policy,
            fetcher=fetcher, now=self._now,
        )
        self._needed: tuple[Path, ...] = (settings.database,)
        self._noted_size = 0
        self._note_next = self._scrub_next = time.monotonic()
        self._publisher = Publisher(
            settings=settings, store=reader,
            tiles=TileFiles(settings.tiles), signers=load_checkpoint_signers(settings.keys, settings.origin),
            policy=input_policy(policy), fetcher=fetcher, now=self._now, mapping=self._mapping,
        )

    @staticmethod
    def _now() -> int:
        return int(time.time())

    def run(self) -> None:
        """Serve until told to stop; then finish what was accepted. The next process publishes what is left."""
        publisher = threading.Thread(target=self._publish, name="publisher")
        publisher.start()
        # A leaf is a signature too: until the witnesses have confirmed that this is no older copy of the
        # log, nobody can reach the sequencer, and the web workers answer 503.
        # And the map must have every erasure: it commits to each with exactly the entries before it.
        while not (self._publisher.compared.wait(0.1) and self._erasures_mapped()):
            if self._stop.wait(0.02):
                publisher.join()
                self._mapping.close()
                self._store.close()
                return
        listener = self._listen()
        threading.Thread(target=self._accept, args=(listener,), daemon=True, name="accept").start()
        try:
            self._sequence()
        finally:
            self._stop.set()
            publisher.join()
            listener.close()
            self._mapping.close()
            self._store.close()

    def _erasures_mapped(self) -> bool:
        erasures = self._store.erasure_count()
        return not erasures or self._mapping.erasures == erasures

    def stop(self) -> None:
        self._stop.set()

    def _publish(self) -> None:
        try:
            self._publisher.run(self._stop)
        except BaseException:
            # A log that accepts and never publishes would look alive: better to start afresh.
            log.exception("the publisher stops, and the sequencer with it")
            os._exit(70)

    def _listen(self) -> socket.socket:
        path = socket_path(self._settings)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        write_atomic(self._settings.socket_record, str(path).encode() + b"\n", mode=0o600)
        self._needed += (path, self._settings.socket_record)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._stop.is_set():
                    return
                # Such as too many open files: deaf for a moment, not for ever.
                log.error("no link accepted: %s", error)
                self._stop.wait(0.1)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="link").start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer one web worker's thread, frame by frame, until it closes."""
        with connection:
            try:
                while (request := receive_frame(connection)) is not None:
                    send_frame(connection, self._answer(request))
                    reach("sequencer.answered")
            except (OSError, EncodingError) as error:
                log.warning("a link closed: %s", error)

    def _answer(self, raw: bytes) -> bytes:
        seconds = ANSWER_TIMEOUT_SECONDS
        try:
            request = parse_json(raw)
            op = request.get("op")
            if op == "ping":
                return canonical({"ok": {"size": str(self._sequencer.state.size)}})
            waiting = _Waiting(self._task(op, request) or decode_submission(request))
        except (EncodingError, AttributeError) as error:
            return encode_refusal("bad_request", str(error))
        if op == "shred":
            seconds = SHRED_SECONDS
        unpublished = self._sequencer.state.size - min(self._publisher.published_size, self._mapping.input_size)
        if isinstance(waiting.submission, Submission) and unpublished >= self._settings.unpublished_limit:
            return encode_refusal("overloaded", f"{unpublished} entries wait for the witnesses; try again later")
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            return encode_refusal("overloaded", "the queue is full; try again in a second")
        if not waiting.done.wait(seconds) or waiting.result is None:
            return encode_refusal("overloaded", "sequencing takes too long; the message may still be accepted")
        if isinstance(waiting.result, Receipt):
            return encode_receipt(waiting.result)
        if isinstance(waiting.result, bytes):
            return waiting.result
        return encode_refusal(waiting.result.code, waiting.result.message)

    def _task(self, op: Any, request: Mapping[str, Any]) -> Task | None:
        """What a request other than a message asks for; None for a message."""
        if op == "totp":
            change = decode_totp_change(request)
            return lambda: self._set_totp(change)
        if op == "cosign":
            cosignature = decode_cosign(request)
            return lambda: self._add_cosignature(cosignature)
        if op == "shred":
            actor_id, preview = decode_shred(request)
            return lambda: self._shred(actor_id, preview)
        return None

    def _set_totp(self, change: TotpChange) -> bytes:
        try:
            stored = self._store.set_totp(
                change.domain, change.secret, change.used_window, change.expected_serial
            )
        except Conflict as error:
            raise MessageRejected("totp_moved", error.message) from None
        return canonical({"ok": {"serial": "" if stored is None else str(stored.serial)}})

    def _add_cosignature(self, cosignature: Cosignature) -> bytes:
        size = cosignature.tree_size
        if size > self._sequencer.state.size or pkd_root(size, self._store.root_after(size)) != cosignature.merkle_root:
            raise MessageRejected("unknown_root", "this log never had that root")
        return canonical({"ok": {"added": "yes" if self._store.add_cosignature(cosignature) else "no"}})

    def _shred(self, actor_id: str, preview: bool) -> bytes:
        """Erase between two checkpoints: every entry before the erasure is published and mapped, none comes after yet.

        Else an auditor would for a moment see text withheld by an erasure that is not published. And the map commits to
        an erasure with exactly the entries before it, so that no entry is taken until it has done so.
        """
        state = self._sequencer.state
        deadline = time.monotonic() + PUBLISH_SECONDS
        while not preview and not (
            self._publisher.published_size >= state.size and self._mapped(state.size, self._store.erasure_count())
        ):
            if time.monotonic() > deadline or self._stop.wait(0.02):
                raise MessageRejected("overloaded", "the newest entries are not published; try again when they are")
        report = self._shredder.shred(actor_id, state, preview=preview)
        while report.done and not self._mapped(state.size, self._store.erasure_count()):
            if self._stop.wait(0.02):
                # The next process publishes it, before it takes anything.
                return encode_shred_report(replace(report, scrubbed=False))
        return encode_shred_report(replace(report, scrubbed=report.scrubbed and not self._mapping.scrub_due()))

    def _mapped(self, size: int, erasures: int) -> bool:
        if self._mapping.covers(size, erasures):
            return True
        self._mapping.hurry.set()
        return False

    def _sequence(self) -> None:
        """Drain the queue in batches. An idle log commits at once; batches form under load."""
        while not (self._stop.is_set() and self._queue.empty()):
            try:
                batch = [self._queue.get(timeout=0.2)]
            except queue.Empty:
                batch = []
            while batch and len(batch) < BATCH_LIMIT and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                self._work(batch)
                self._keep_house()
            except StoreError as error:
                # Whether the batch was stored may not be known, so what is in memory may be wrong.
                # Ending here is the only answer that cannot fork: the next process reads the store.
                log.critical("the sequencer stops: %s", error.diagnostics())
                os._exit(70)

    def _work(self, batch: Sequence[_Waiting]) -> None:
        """Everybody's message in one batch, then the tasks one by one."""
        messages = [waiting for waiting in batch if isinstance(waiting.submission, Submission)]
        if messages:
            results = self._sequencer.process([waiting.submission for waiting in messages])
            for waiting, result in zip(messages, results, strict=True):
                waiting.finish(result)
        for waiting in batch:
            if not isinstance(waiting.submission, Submission):
                try:
                    waiting.finish(waiting.submission())
                except MessageRejected as refusal:
                    waiting.finish(refusal)

    def _keep_house(self) -> None:
        """Note what is public by now, and go on with a scrub that a reader kept from its end."""
        for path in self._needed:
            if not path.exists():
                # What is written to a removed store is lost, and without the others nobody reaches this process.
                raise StoreError("FileLost", f"{path} was removed while the log was running")
        size, now = self._publisher.published_size, time.monotonic()
        if size > self._noted_size and now >= self._note_next:
            self._store.note_published(size, self._now())
            self._noted_size, self._note_next = size, now + min(NOTE_SECONDS, self._settings.notice_seconds)
        if now >= self._scrub_next:
            self._scrub_next = now + SCRUB_SECONDS
            if self._store.scrub_due():
                try_scrub(self._store)


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        settings = load_settings(Path(arguments[arguments.index("--dir") + 1]))
        with FileLock(settings.directory / "sequencer.lock"):
            service = Service(settings)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: service.stop())
            end_with_parent(service.stop)
            service.run()
    except KtlogError as error:
        print(f"ktlog: {error.diagnostics()}", file=sys.stderr)
        return TRY_AGAIN if error.name in PASSING else error.exit_code
    except Exception:
        log.exception("the sequencer stops")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
