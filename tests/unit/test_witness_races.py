"""One request stands still at a named hook, and others run past it: what it was judged by may be true no more."""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager

import pytest

from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Note, open_note, parse_signature_lines
from tests.witness_log import NOW, Log
from tests.witness_site import SECONDS, WAYS, Session
from witness.mark import MARK_WRITTEN
from witness.store import BEFORE_COMMIT, WitnessStore
from witness.witness import CHECKED

FORKED = b"\x2a" * 32


class Stalled:
    """A session in which the next request stands still at a hook for as long as the block lasts."""

    def __init__(self, path, way) -> None:
        self._at = ""
        self._there, self._go_on = threading.Event(), threading.Event()
        self._taken = threading.Lock()
        self.session = Session(path, reach=self._reach)
        self._asked = way(self.session.witness)

    def _reach(self, name: str) -> None:
        with self._taken:
            mine = name == self._at
            if mine:
                self._at = ""
        if mine:
            self._there.set()
            assert self._go_on.wait(SECONDS)

    @contextmanager
    def at(self, hook: str, body: bytes):
        """The request with *body* stands at *hook* in the block; the list has its answer afterwards."""
        self._there.clear()
        self._go_on.clear()
        self._at = hook
        answers: list = []
        thread = threading.Thread(target=lambda: answers.append(self._asked.add_checkpoint(body)))
        thread.start()
        try:
            assert self._there.wait(SECONDS)
            yield answers
            assert not answers
        finally:
            self._go_on.set()
            thread.join(SECONDS)
        assert len(answers) == 1


@pytest.fixture(params=WAYS)
def stalled(request, tmp_path):
    stalled = Stalled(tmp_path, WAYS[request.param])
    assert stalled.session.submit(0, 3).status_code == 200
    yield stalled
    stalled.session.witness.store.close()


def told(answers) -> tuple[int, str]:
    return answers[0].status, answers[0].reason


def test_a_log_convicted_meanwhile_gets_nothing(stalled):
    session = stalled.session
    with stalled.at(CHECKED, session.log.submission(3, 5)) as answers:
        assert session.submit(3, 3, root=FORKED).status_code == 422
        assert session.size() == 3
    assert told(answers) == (403, "LogFrozen")
    assert (session.size(), session.witness.store.count_evidence()) == (3, 1)


def test_frozen_and_unfrozen_meanwhile_it_gets_what_the_operator_allowed(stalled):
    session = stalled.session
    with stalled.at(CHECKED, session.log.submission(3, 5)) as answers:
        session.submit(3, 3, root=FORKED)
        beside = WitnessStore.open(session.directory.database, beside_daemon=True)
        assert beside.lift_freeze(session.log.origin, NOW) == 1
        beside.close()
    assert told(answers) == (200, "")
    assert session.size() == 5


def test_a_fork_that_was_overtaken_still_convicts_or_is_refused(stalled):
    """Two branches from 3 to 5: the one that stands still comes second, and there is one root."""
    session = stalled.session
    branch = Log(prefix=b"other")
    with stalled.at(CHECKED, session.log.submission(3, 5)) as answers:
        again = session.log.submission(3, 5)
        assert session.post(again).status_code == 200
    assert told(answers) == (409, "SizeConflict")
    with stalled.at(CHECKED, session.log.submission(5, 5)) as answers:
        assert session.post(branch.submission(5, 5)).status_code == 422
    assert told(answers) == (403, "LogFrozen")
    assert session.witness.store.count_evidence() == 1


def test_the_same_fork_shown_by_many_at_once_is_one_piece_of_evidence(stalled):
    session = stalled.session
    body = session.log.submission(3, 3, root=FORKED)
    met = threading.Barrier(6, timeout=SECONDS)
    record, answers = session.witness.store.record_evidence, []

    def together(*arguments, **options):
        met.wait()
        return record(*arguments, **options)

    session.witness.store.record_evidence = together
    threads = [
        threading.Thread(target=lambda: answers.append(session.witness.add_checkpoint(body).status)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert answers == [422] * 6
    (one,) = session.witness.store.convictions()
    assert one.freezes
    assert session.witness.store.count_writes() == session.witness.store._mark.count == 2


def test_evidence_under_a_key_that_was_retired_since_freezes_nothing(stalled):
    session = stalled.session
    new = Log(seed=2)
    session.witness.store.add_log(new.origin, new.vkeys, NOW)
    record = session.witness.store.record_evidence

    def later(*arguments, **options):
        keys = [(session.log.origin, vkey) for vkey in session.log.vkeys]
        session.witness.store.retire_keys(keys, NOW, "")
        return record(*arguments, **options)

    session.witness.store.record_evidence = later
    assert session.submit(3, 3, root=FORKED).status_code == 422
    (one,) = session.witness.store.convictions()
    assert (one.freezes, one.retired_key) == (False, session.log.vkeys[1].key_id.hex())
    assert session.post(new.submission(3, 4)).status_code == 200


def test_others_do_not_wait_for_one_that_is_being_checked(stalled):
    session = stalled.session
    other = Log("other.example", algorithms=(1,))
    session.witness.store.add_log(other.origin, other.vkeys, NOW)
    with stalled.at(CHECKED, session.log.submission(3, 5)) as answers:
        for old, new in ((0, 1), (1, 4), (4, 4)):
            assert session.post(other.submission(old, new)).status_code == 200
        assert session.monitor().status_code == 200
        assert session.submit(3, 4).status_code == 200  # of the same log, too
    assert told(answers) == (409, "SizeConflict")


@pytest.mark.parametrize("hook", [BEFORE_COMMIT, MARK_WRITTEN])
def test_nobody_hears_of_what_is_not_on_the_disk_and_counted(stalled, hook):
    """While one write is under way no other cosignature leaves: not of this log, nor of another."""
    session = stalled.session
    other = Log("other.example", algorithms=(1,))
    session.witness.store.add_log(other.origin, other.vkeys, NOW)
    ways: list = []
    bodies = [session.log.submission(3, 5), other.submission(0, 2)]
    threads = [
        threading.Thread(target=lambda body=body: ways.append(session.witness.add_checkpoint(body).status))
        for body in bodies
    ]
    with stalled.at(hook, session.log.submission(3, 5)) as answers:
        for thread in threads:
            thread.start()
        threads[1].join(0.2)
        assert 200 not in ways
    for thread in threads:
        thread.join(SECONDS)
    assert told(answers) == (200, "")
    assert sorted(ways) == [200, 409]


@pytest.mark.parametrize("way", WAYS)
def test_threads_at_random_never_get_two_trees_for_one_log(tmp_path, way):
    """Eight clients, three logs, of each an honest branch and two that fork: what was answered is one history each."""
    session = Session(tmp_path)
    asked, own = WAYS[way](session.witness), [signer.vkey for signer in session.witness.signers]
    branches = {
        origin: [Log(origin, algorithms=(1,), prefix=prefix) for prefix in (b"entry", b"entry", b"fork", b"branch")]
        for origin in ("a.example", "b.example", "c.example")
    }
    for logs in branches.values():
        session.witness.store.add_log(logs[0].origin, logs[0].vkeys, NOW)
    bodies = {
        (log, old, new): log.submission(old, new)
        for logs in branches.values() for log in logs[1:] for new in range(1, 6) for old in range(new + 1)
    }
    cosigned: list[tuple[str, int, bytes]] = []
    unforeseen: list = []
    finished: list[int] = []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        sizes = dict.fromkeys(branches, 0)
        for _ in range(40):
            origin = draw.choice(list(branches))
            log = draw.choice(branches[origin][1:]) if draw.random() < 0.2 else branches[origin][1]
            new = min(5, max(1, sizes[origin] + draw.randrange(2)))
            answer = asked.add_checkpoint(bodies[log, min(new, sizes[origin]), new])
            if answer.status == 200:
                text = format_checkpoint(Checkpoint(origin, new, log.root(new)))
                opened = open_note(Note(text, parse_signature_lines(answer.body)), own)
                assert len(opened) == len(own), "each gets the signatures of what he sent"
                cosigned.append((origin, new, log.root(new)))
                sizes[origin] = new
            elif answer.status == 409:
                sizes[origin] = int(answer.body)
            elif answer.reason == "LogFrozen" and draw.random() < 0.5:
                with_lift(session, origin)
            elif answer.status not in (403, 422, 429) and answer.reason != "Busy":
                unforeseen.append(answer)
        finished.append(seed)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS * 2)
    assert not unforeseen and len(finished) == 8 and len(cosigned) > 10  # how many, the scheduler decides
    for origin, logs in branches.items():
        roots = {(size, root) for one, size, root in cosigned if one == origin}
        assert len({size for size, _ in roots}) == len(roots)
        (branch,) = {log.prefix for log in logs if all(log.root(size) == root for size, root in roots)}
        latest = session.witness.store.log(origin).latest
        _, checkpoint = parse_signed_checkpoint(latest.note)
        assert checkpoint.size == max(size for size, _ in roots)
        assert branch in (b"entry", b"fork", b"branch")
    assert session.witness.store.count_writes() == session.witness.store._mark.count
    session.witness.store.close()


def with_lift(session: Session, origin: str) -> None:
    from ktlog.errors import UsageError

    try:
        session.witness.store.lift_freeze(origin, NOW)
    except UsageError:
        pass  # somebody else did
