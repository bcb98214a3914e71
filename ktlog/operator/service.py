"""The sequencer's process, assembled: one write connection, one desk with its doors, one publisher.

``python -m ktlog.operator.service --dir DIR``. It holds the log's lock file, so a second one ends
at once. The keys are in another process, which it starts (:mod:`ktlog.operator.signer`) and asks to sign.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import threading
import time
from functools import partial
from pathlib import Path

from ktlog import __version__
from ktlog.collector import look_rarely
from ktlog.config import Settings, load_settings
from ktlog.durable import FileLock
from ktlog.ending import call_when_told
from ktlog.errors import KtlogError, PolicyUnmet, StoreError, UsageError
from ktlog.operator.acked import AckMark
from ktlog.operator.administration import Administration, summary
from ktlog.operator.create import check_public_keys, ensure_map, load_public_keys
from ktlog.operator.custody import Custody, local_custody, open_custody
from ktlog.operator.desk import Desk
from ktlog.operator.fence import FencedHeads, epoch_fence
from ktlog.operator.keys import destroy_old
from ktlog.operator.lastbackup import last_backup
from ktlog.operator.lifeline import end_with_parent
from ktlog.operator.mapping import MapCycle
from ktlog.operator.numbers import Numbers, as_members, format_metrics
from ktlog.operator.publisher import Publisher
from ktlog.operator.refusalbook import RefusalBook
from ktlog.operator.roles import FAILED, Turn, make_door, wait_for_turn
from ktlog.operator.room import MIB, Room, Weight
from ktlog.operator.rotate import check_signing_keys
from ktlog.operator.rules import RulesKeeper
from ktlog.operator.sequencer import Sequencer
from ktlog.operator.shred import Shredder, resume, try_scrub
from ktlog.operator.sources import Source, load_sources, mirrors_of
from ktlog.operator.stores import open_log, open_tiles, rules_document
from ktlog.operator.tasks import Tasks
from ktlog.operator.witnessing import input_policy
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.entry import leaf_key_hash
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.upgrade import remove_copies
from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import VERIFIERS, Policy, parse_policy
from ktlog.wire import logs
from ktlog.wire.fetch import Fetcher
from ktlog.wire.prometheus import MetricsServer, Page, parse_metrics_listen

NOTE_SECONDS = 60.0
STANDING_SECONDS = 60.0
"""Entries wait so long for a checkpoint, as far as who asks can see, before that is told."""
"""How often, at most, it is written down how much of the log is public: a notice period may begin this late."""

PASSING = frozenset({
    "CannotOpen", "DiskFull", "InputOutput", "ReadOnly", "ConnectionLost", "OutOfResources", "TimedOut",
    # Another sequencer was faster, or was stopped in the middle of a write that the server has yet to give up.
    "Busy", "Fenced", "StateMoved", "DocumentMoved", "MapAdvanced", AMBIGUOUS,
    # It was killed while the sequencer began; or runs by itself, and is started again this moment.
    "SignerLost",
})
"""Errors at the start that somebody may mend while the supervisor tries again."""

TRY_AGAIN = 75  # EX_TEMPFAIL

SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter from another. To publish and to map is tens of milliseconds of Python at a
time, beside the thread that sequences, which gives the interpreter away at each row that it reads: it would wait ten
times as long for it."""

SCRUB_SECONDS = 60.0
"""After which pause erased bytes that a reader kept from being overwritten are tried again."""

log = logging.getLogger("ktlog.sequencer")


def load_publish_policy(settings: Settings) -> Policy:
    """Read the log's own publish policy. Without witnesses nothing is ever published.

    Raises:
        UsageError: no policy, or one that would let the log vouch for itself.
    """
    try:
        return check_publish_policy(parse_policy(settings.publish_policy.read_bytes()), settings)
    except FileNotFoundError:
        raise UsageError(
            "NoPublishPolicy", f"{settings.publish_policy} does not exist; without witnesses nothing is published",
            hint="`ktlog policy make` writes it, a tlog-policy, from what witnesses send you; `ktlog next --dir"
            f" {shlex.quote(str(settings.directory))}` says how.",
        ) from None
    except (PolicyUnmet, UsageError) as error:
        raise type(error)(error.name, f"{settings.publish_policy}: {error.message}") from None
    except StoreError:
        raise
    except (KtlogError, OSError) as error:
        raise UsageError("BadPublishPolicy", f"{settings.publish_policy}: {error}") from None


def check_publish_policy(policy: Policy, settings: Settings) -> Policy:
    """Refuse a policy under which the log in *settings* could vouch for itself; gives the policy.

    Raises:
        PolicyUnmet: ``UnsafePolicy``. UsageError: ``BadPublishPolicy``. StoreError: no public keys are there.
    """
    # Where there are verifiers, the witnesses alone decide about the log, and both about its map.
    policy.check_safe(require_verifiers=VERIFIERS in policy.groups)
    input_policy(policy).check_safe()
    public = load_public_keys(settings)
    own = {parse_vkey(text).public_key for text in (*public.vkeys, *public.map_vkeys)}
    if any(witness.vkey.public_key in own for witness in policy.witnesses.values()):
        raise UsageError("BadPublishPolicy", "a witness has this log's own key")
    if not any(witness.url for witness in policy.witnesses.values()):
        raise UsageError("BadPublishPolicy", "no witness has a URL to be asked at")
    return policy


class Service:
    """The parts of the process, and the order in which they begin and end.

    Args:
        custody: what signs; the process closes it. Without one, the keys are read here.
    """

    def __init__(self, settings: Settings, custody: Custody | None = None) -> None:
        self._settings = settings
        self._stop = threading.Event()
        if settings.metrics_listen:
            parse_metrics_listen(settings.metrics_listen)
        dialect = DIALECTS[settings.dialect]
        self._store = open_log(settings)
        if self._store.dialect != dialect.name:
            raise StoreError(
                "WrongDialect", f"ktlog.toml says dialect {dialect.name}, the log has {self._store.dialect}"
            )
        custody = local_custody(settings, self._now) if custody is None else custody
        public = check_public_keys(settings, custody.public)
        check_signing_keys(settings, public)
        mark = AckMark(settings.acked)
        mark.check(self._store)
        self._sequencer = Sequencer(
            store=self._store, origin=settings.origin, dialect=dialect, sign_entries=custody.sign_entries,
            now=self._now, random=os.urandom, before_answers=mark.advance,
        )
        epoch = self._sequencer.state.epoch
        resume(self._store, settings.journal, self._now)
        ensure_map(settings)
        policy = load_publish_policy(settings)
        if VERIFIERS not in policy.groups:
            log.warning("no verifiers are in %s: the map is published unverified", settings.publish_policy)
        reader = open_log(settings, read_only=True)
        fence = epoch_fence(reader, epoch)
        fetcher = Fetcher.from_environment(timeout=float(settings.witness_timeout_seconds))
        self._mapping = MapCycle(
            settings=settings, store=reader, signers=FencedHeads(custody.map_heads, fence), policy=policy,
            fetcher=fetcher, now=self._now, retired=tuple(map(parse_vkey, public.retired_map_vkeys)), epoch=epoch,
        )
        self._publisher = Publisher(
            settings=settings, store=reader, tiles=open_tiles(settings),
            signers=FencedHeads(custody.log_heads, fence), policy=input_policy(policy), fetcher=fetcher, now=self._now,
            mapping=self._mapping, retired=tuple(map(parse_vkey, public.retired_vkeys)), epoch=epoch,
        )
        shredder = Shredder(self._store, settings.journal, settings.replies, settings.notice_seconds, self._now)
        self._rules = RulesKeeper(rules_document(settings, epoch=epoch))
        book = RefusalBook()
        databases = () if settings.uses_postgres else (settings.database, settings.map_database)
        self._tasks = Tasks(
            self._store, self._sequencer, self._publisher, self._mapping, shredder, self._stop,
            Administration(self._rules, book, self._now),
            partial(remove_copies, *databases),
        )
        self._room = Room(settings.directory, settings.free_space_floor_mib * MIB)
        self._weight = Weight(settings.tiles)
        self._mirrored: tuple[Source, ...] = ()
        with contextlib.suppress(KtlogError):  # the process that mirrors says what is wrong
            self._mirrored = load_sources(settings)
        self._stands = (-1, time.monotonic())  # the published size, and since when entries wait behind it
        self.desk = Desk(
            self._sequencer, self._tasks.plan, status=self._status, unpublished=self._unpublished,
            unpublished_limit=settings.unpublished_limit, queue_limit=settings.queue_limit,
            leaf_key=leaf_key_hash(public.leaf_keys[-1]), shortage=self._room.shortage, judge=self._rules.check,
            book=book, now=self._now,
        )
        self._needed: tuple[Path, ...] = () if settings.uses_postgres else (settings.database,)
        self._noted_size = 0
        self._note_next = self._scrub_next = time.monotonic()

    @staticmethod
    def _now() -> int:
        return int(time.time())

    def run(self) -> None:
        """Serve until told to stop; then finish what was accepted. The next process publishes what is left."""
        listen = self._settings.metrics_listen
        metrics = MetricsServer(listen, self._metrics, self._unready) if listen else None
        try:
            self._run()
        finally:
            if metrics is not None:
                metrics.close()

    def _run(self) -> None:
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
        door = make_door(self._settings, self.desk, self._stop, self._sequencer.state.epoch)
        self._needed += door.needed
        door.open()
        look_rarely()
        try:
            self._sequence()
        finally:
            self._stop.set()
            publisher.join()
            door.close()
            self._mapping.close()
            self._store.close()

    def _metrics(self) -> bytes:
        process = Page("ktlog_")
        process.add_process()
        return format_metrics(self.numbers()) + process.encode()

    def _status(self) -> dict[str, object]:
        return as_members(self.numbers()) | {"rules": summary(self._rules.rules), "version": __version__}

    def numbers(self) -> Numbers:
        """How the log does. Safe in any thread."""
        desk, publisher = self.desk, self._publisher
        backup = last_backup(self._settings)
        fetches, blocked = desk.fetches()
        return Numbers(
            sequenced=self._sequencer.state.size, integrated=publisher.integrated_size,
            published=publisher.published_size, mapped=self._mapping.input_size, waiting=desk.queue.qsize(),
            accepted=desk.accepted, batches=desk.batches, commit_seconds=self._sequencer.commit_seconds,
            batch_seconds=desk.batch_seconds, refused=desk.refusals.counts(), free_bytes=self._room.free(),
            now=self._now(), log=publisher.fresh, map=self._mapping.fresh, oldest_seconds=desk.oldest_seconds(),
            database_bytes=self._database_bytes(), tiles_bytes=self._tiles_bytes(),
            messages=dict(self._sequencer.messages), fetches=fetches, blocked=blocked,
            paused=self._rules.rules.paused is not None, heartbeat_seconds=self._settings.heartbeat_seconds,
            backup=None if backup is None else backup.time, mirrors=mirrors_of(self._mirrored),
        )

    def _tiles_bytes(self) -> int | None:
        return self._weight.bytes() if self._settings.tiles.is_dir() else None  # else in a bucket

    def _database_bytes(self) -> dict[str, int]:
        if self._settings.uses_postgres:
            return {}
        found = {}
        for name, path in (("log", self._settings.database), ("map", self._settings.map_database)):
            with contextlib.suppress(OSError):  # removed under us: the sequencer notices, and says so
                found[name] = path.stat().st_size
        return found

    def _unready(self) -> str | None:
        """Why a message would not be taken, or not be published, now: for whoever looks at the metrics' listener."""
        if not self._publisher.compared.is_set():
            return "NotCompared"
        if self._rules.rules.paused is not None:
            return "Paused"
        if why := self.desk.why_not_now():
            return f"Overloaded: {why}"
        stood = time.monotonic() - self._stands[1]
        return f"NotPublished: entries wait for a checkpoint for {stood:.0f} s" if stood > STANDING_SECONDS else None

    def stop(self) -> None:
        self._stop.set()

    def _erasures_mapped(self) -> bool:
        erasures = self._store.erasure_count()
        return not erasures or self._mapping.erasures == erasures

    def _unpublished(self) -> int:
        return self._sequencer.state.size - min(self._publisher.published_size, self._mapping.input_size)

    def _publish(self) -> None:
        try:
            self._publisher.run(self._stop)
            return
        # A log that accepts and never publishes would look alive: better to start afresh.
        except StoreError as error:
            log.critical("the publisher stops, and the sequencer with it: %s", error.diagnostics())
        except BaseException:
            log.exception("the publisher stops, and the sequencer with it")
        os._exit(FAILED)

    def _sequence(self) -> None:
        """Work off the desk until told to stop. An idle log commits at once; batches form under load."""
        while not (self._stop.is_set() and self.desk.queue.empty()):
            try:
                self.desk.work(0.2)
                self._keep_house()
            except StoreError as error:
                # Whether the batch was stored may not be known, so what is in memory may be wrong.
                # Ending here is the only answer that cannot fork: the next process reads the store.
                log.critical("the sequencer stops: %s", error.diagnostics())
                os._exit(FAILED)

    def _keep_house(self) -> None:
        """Note what is public by now, and go on with a scrub that a reader kept from its end."""
        for path in self._needed:
            if not path.exists():
                # What is written to a removed store is lost, and without the others nobody reaches this process.
                raise StoreError("FileLost", f"{path} was removed while the log was running")
        size, now = self._publisher.published_size, time.monotonic()
        if size != self._stands[0] or size >= self._sequencer.state.size:
            self._stands = size, now
        if size > self._noted_size and now >= self._note_next:
            self._store.note_published(size, self._now())
            self._noted_size, self._note_next = size, now + min(NOTE_SECONDS, self._settings.notice_seconds)
        if now >= self._scrub_next:
            self._scrub_next = now + SCRUB_SECONDS
            for path in destroy_old(self._settings.keys, self._now()):
                log.info("%s is destroyed: its time is over", path)
            if self._store.scrub_due():
                try_scrub(self._store)


def lost_signer() -> None:
    """Without its signer the process can do nothing: the supervisor starts both anew."""
    log.critical("the signer ended, and the sequencer with it")
    os._exit(FAILED)


class _Ending:
    """That the process was told to end, before its service runs or while it does."""

    def __init__(self) -> None:
        self._told: list[int] = []
        self._service: Service | None = None
        call_when_told(self.end)
        end_with_parent(self.end)

    def end(self) -> None:
        self._told.append(1)
        if self._service is not None:
            self._service.stop()

    def told(self) -> bool:
        return bool(self._told)

    def ends(self, service: Service) -> None:
        self._service = service
        if self._told:
            service.stop()


def _take_turn(settings: Settings, turn: Turn, ending: _Ending) -> None:
    """Be the sequencer until told to end."""
    try:
        custody = open_custody(settings, lost_signer)
        try:
            service = Service(settings, custody)
            ending.ends(service)
            service.run()
        finally:
            custody.close()
    except StoreError as error:
        if error.name == "Locked":  # not the lock of this directory: rows of the database
            raise StoreError("Busy", error.message, hint=error.hint) from error
        raise
    finally:
        turn.release()


def main(arguments: list[str]) -> int:
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        settings = load_settings(Path(arguments[arguments.index("--dir") + 1]))
        logs.configure_daemon(settings.log_format, settings.log_level)
        ending = _Ending()
        with FileLock(settings.directory / "sequencer.lock"):
            turn = wait_for_turn(settings, ending.told)
            if turn is not None:
                _take_turn(settings, turn, ending)
    except KtlogError as error:
        logs.say_why(error)
        return TRY_AGAIN if error.name in PASSING else error.exit_code
    except Exception:
        log.exception("the sequencer stops")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
