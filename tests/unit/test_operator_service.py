"""The sequencer's process from inside: what it answers on the socket, and what it will not start with."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ktlog.config import write_settings
from ktlog.durable import FileLock
from ktlog.errors import KtlogError, MessageRejected, PolicyUnmet, StoreError, UsageError
from ktlog.operator import desk as desk_module
from ktlog.operator import service as service_module
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.door import Door
from ktlog.operator.link import SequencerLink, encode_submission, receive_frame, send_frame
from ktlog.operator.service import STANDING_SECONDS, Service, load_publish_policy, main
from ktlog.operator.supervisor import HOPELESS
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.pkd.messages import AddKey, Fireproof
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Vkey, parse_vkey
from ktlog.tlog.policy import Group, LogKey, Policy, Witness, format_policy
from tests.operator_world import ORIGIN, WITNESS_NAMES, Clock, FakeWitness, submission, witness_policy
from tests.pkd_samples import ALICE, BOB, public, quick_argon2  # noqa: F401

NOW = int(time.time())


def policy_text(**changes) -> bytes:
    witness = FakeWitness(WITNESS_NAMES[0], 10, Clock())
    return format_policy(replace(witness_policy([witness], 1), **changes))


@pytest.fixture
def settings():
    directory = Path(tempfile.mkdtemp(prefix="kt"))  # a socket's path must stay short
    made = create_log(directory / "log", ORIGIN, "spec", bytes(32))
    made.publish_policy.write_bytes(policy_text())
    yield made
    shutil.rmtree(directory)


@pytest.fixture
def service(settings):
    made = Service(settings)
    yield made
    made._store.close()


@pytest.fixture
def running(service):
    """Its queue is worked off, and its publisher publishes nothing: no witness answers."""
    service._publisher.run = lambda stop: stop.wait()
    service._publisher.compared.set()
    thread = threading.Thread(target=service.run)
    thread.start()
    record = service._settings.socket_record
    deadline = time.monotonic() + 20
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield service
    service.stop()
    thread.join(20)
    assert not thread.is_alive()


def add(actor: str, name: str) -> AddKey:
    return AddKey(actor, public(name), NOW)


def ask(service: Service, request: bytes) -> dict:
    return parse_json(service.desk.answer(request))


# --- on the socket


def test_messages_over_the_socket(running):
    link = SequencerLink(running._settings.socket_record)
    link.ping()
    message = submission(add(ALICE, "a"))
    receipt = link.append(message)
    assert (receipt.leaf_index, receipt.duplicate) == (0, False)
    assert link.append(message) == replace(receipt, duplicate=True)
    with pytest.raises(MessageRejected, match="merkle_root_stale"):
        link.append(submission(add(BOB, "b"), "b"))
    assert link.append(submission(Fireproof(ALICE, NOW), "a", receipt.root)).leaf_index == 1
    with SqliteStore.open(running._settings.database, read_only=True) as store:
        assert store.entries(0, 1) == (receipt.entry,)
        assert store.state().size == 2


def settle(running: Service) -> None:
    """Until it has kept house once more: that is done after each batch, and five times a second."""
    seen = threading.Event()
    with pytest.MonkeyPatch.context() as patched:
        keep = running._keep_house
        patched.setattr(running, "_keep_house", lambda: (keep(), seen.set()))
        assert seen.wait(20)


def test_ready_means_that_messages_are_taken_and_published(running):
    running._stands = 0, time.monotonic() - STANDING_SECONDS - 1
    settle(running)
    assert running._unready() is None, "nobody asked for long, and nothing waited"
    SequencerLink(running._settings.socket_record).append(submission(add(ALICE, "a")))
    settle(running)
    assert running._unready() is None, "it came just now"
    published, since = running._stands
    running._stands = published, since - STANDING_SECONDS - 1
    assert running._unready().startswith("NotPublished: ")
    running._publisher.published_size = 1
    settle(running)
    assert running._unready() is None
    running.desk._shortage = lambda: "the log's disk has 1 MiB left"
    assert running._unready() == "Overloaded: the log's disk has 1 MiB left"
    running._publisher.compared.clear()
    assert running._unready() == "NotCompared"
    running._publisher.compared.set()


def test_many_at_once_get_each_their_own_answer(running):
    link = SequencerLink(running._settings.socket_record)
    root = link.append(submission(add(ALICE, "a"))).root
    names = [f"https://example.com/users/u{number}" for number in range(12)]
    sent = {name: submission(add(name, "b"), "b", root) for name in names}
    receipts: dict[str, int] = {}

    def send(name: str) -> None:
        receipts[name] = link.append(sent[name]).leaf_index

    threads = [threading.Thread(target=send, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(receipts.values()) == list(range(1, 13))
    with SqliteStore.open(running._settings.database, read_only=True) as store:
        for name, leaf_index in receipts.items():
            assert store.history(name) == ((leaf_index, 1),)


def test_a_link_that_sends_rubbish_is_closed_and_the_others_go_on(running):
    address = running._settings.socket_record.read_text().strip()
    for rubbish in (b"\xff\xff\xff\xff", b"\0\0\0\5ab", b"\0"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(address)
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(address)
        send_frame(connection, b"not json")
        assert parse_json(receive_frame(connection))["error"]["code"] == "bad_request"
        send_frame(connection, canonical({"op": "ping"}))
        assert parse_json(receive_frame(connection)) == {"ok": {"size": "0"}}
    SequencerLink(running._settings.socket_record).ping()


def test_the_socket_is_the_owner_s(running):
    address = Path(running._settings.socket_record.read_text().strip())
    assert address.stat().st_mode & 0o777 == 0o600
    assert address.parent.stat().st_mode & 0o077 == 0
    assert running._settings.socket_record.stat().st_mode & 0o777 == 0o600


def test_it_goes_on_accepting_after_an_accept_that_failed():
    listener, stop = SimpleNamespace(calls=0), threading.Event()

    def accept():
        listener.calls += 1
        if listener.calls < 3:
            raise OSError(24, "Too many open files")
        stop.set()
        raise OSError(9, "closed")

    listener.accept = accept
    door = SimpleNamespace(_stop=stop)
    Door._accept(door, listener)
    assert listener.calls == 3


# --- answers


@pytest.mark.parametrize("request_", [
    b"", b"{", b"[]", b"5", b"null", b'"ping"', b"{}", b'{"op":"append"}', b'{"op":"append","preimage":"!"}',
    b'{"op":"append","preimage":"","plain":"ab","keys":{}}', b'{"op":"append","preimage":"","plain":[["a","b"]],"keys":{}}',
    b'{"op":"append","preimage":"","plain":{},"keys":{"a":"AA=="}}', b"\xff", b"[" * 5000,
], ids=repr)
def test_requests_that_are_none(service, request_):
    assert ask(service, request_)["error"]["code"] == "bad_request"


def test_overload_is_said_before_anything_is_accepted(service):
    message = encode_submission(submission(add(ALICE, "a")))
    service.desk.unpublished_limit = 5
    service._sequencer.state = replace(service._sequencer.state, size=5)
    answer = ask(service, message)["error"]
    assert (answer["code"], "5 entries not published yet" in answer["message"]) == ("overloaded", True)
    assert service.desk.queue.empty()
    service._publisher.published_size = 1
    service.desk.queue.maxsize = 1
    service.desk.queue.put_nowait(None)
    assert ask(service, message)["error"]["code"] == "overloaded"
    assert ask(service, canonical({"op": "ping"})) == {"ok": {"size": "5"}}


def test_an_answer_that_takes_too_long(service, monkeypatch):
    """Nobody works the queue off: the worker is told so, and that the message may still get in."""
    monkeypatch.setattr(desk_module, "ANSWER_TIMEOUT_SECONDS", 0.05)
    answer = ask(service, encode_submission(submission(add(ALICE, "a"))))["error"]
    assert (answer["code"], "may still be accepted" in answer["message"]) == ("overloaded", True)


def test_a_failed_commit_ends_the_process_without_an_answer(service, monkeypatch):
    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(service_module.os, "_exit", end)
    with SqliteStore.open(service._settings.database) as other:
        other.claim_epoch()  # another writer: this one's next commit is refused
    waiting = desk_module.Ticket(submission(add(ALICE, "a")))
    service.desk.queue.put_nowait(waiting)
    with pytest.raises(Ended) as caught:
        service._sequence()
    assert caught.value.args == (70,)
    assert (waiting.result, waiting.done.is_set()) == (None, False)
    assert service._store.state().size == 0


@pytest.mark.parametrize("what", ["database", "socket", "record"])
def test_it_ends_when_a_file_that_it_needs_is_removed(running, monkeypatch, what):
    """The next one makes socket and record anew, else the log would be deaf for ever; and it refuses a lost store."""
    ended: list[int] = []

    def end(code: int) -> None:
        ended.append(code)
        running.stop()
    monkeypatch.setattr(os, "_exit", end)
    settings = running._settings
    socket_file = Path(settings.socket_record.read_text().strip())
    {"database": settings.database, "socket": socket_file, "record": settings.socket_record}[what].unlink()
    assert running._stop.wait(20)
    assert ended == [70]


def test_told_to_stop_it_finishes_what_it_was_given(service):
    waiting = [desk_module.Ticket(submission(add(name, "a"))) for name in (ALICE, BOB)]
    for one in waiting:
        service.desk.queue.put_nowait(one)
    service.stop()
    service._sequence()
    assert all(one.done.is_set() for one in waiting)
    assert waiting[0].result.leaf_index == 0
    assert waiting[1].result.code == "merkle_root_stale"  # only the first entry may name the zero root
    assert ZERO_ROOT in submission(add(BOB, "b"), "b").preimage.decode()


# --- what it will not start with


def failure(action) -> str:
    with pytest.raises(KtlogError) as caught:
        action()
    return caught.value.name


def test_publish_policies(settings):
    assert load_publish_policy(settings).quorum == "all"
    path = settings.publish_policy
    one = FakeWitness(WITNESS_NAMES[0], 10, Clock())
    own = parse_vkey(load_public_keys(settings).vkeys[1])
    disguised = Vkey("w9.witness.example", COSIGNATURE_MLDSA44, own.public_key)

    def alone(witness: Witness, logs=()) -> bytes:
        return format_policy(Policy(logs, {"w": witness}, {"g": Group("g", 1, ("w",))}, "g"))

    for text in (b"quorum none\n", policy_text(witnesses={}, groups={}, quorum="none")):
        path.write_bytes(text)
        with pytest.raises(PolicyUnmet, match="UnsafePolicy"):
            load_publish_policy(settings)
    for text in (
        b"", b"rubbish\n", b"\xff\n",
        alone(Witness("w", one.signers[1].vkey)),  # nobody can ask it
        alone(Witness("w", disguised, "https://w9.witness.example")),  # the log would vouch for itself
    ):
        path.write_bytes(text)
        assert failure(lambda: load_publish_policy(settings)) == "BadPublishPolicy", text
    path.write_bytes(alone(Witness("w", one.signers[1].vkey, one.url), (LogKey(own),)))
    assert load_publish_policy(settings).quorum == "g"
    path.unlink()
    with pytest.raises(UsageError) as caught:
        load_publish_policy(settings)
    assert caught.value.name == "NoPublishPolicy" and "`ktlog policy make` writes it" in caught.value.hint
    assert f"`ktlog next --dir {settings.directory}` says how" in caught.value.hint
    path.mkdir()
    assert failure(lambda: load_publish_policy(settings)) == "BadPublishPolicy"


def test_a_directory_that_contradicts_itself(settings):
    write_settings(replace(settings, dialect="php"))
    assert failure(lambda: Service(replace(settings, dialect="php"))) == "WrongDialect"
    assert failure(lambda: Service(replace(settings, origin="keys.example.net"))) == "WrongOrigin"
    (settings.keys / "leaf").chmod(0o644)
    assert failure(lambda: Service(settings)) == "UnsafeSecret"
    (settings.keys / "leaf").chmod(0o600)
    settings.database.unlink()
    assert failure(lambda: Service(settings)) == "MissingStore"


@pytest.mark.parametrize(("break_", "code", "words"), [
    (lambda s: s.publish_policy.unlink(), 2, "NoPublishPolicy"),
    (lambda s: (s.directory / "ktlog.toml").write_text("x"), 2, "BadConfiguration"),
    (lambda s: s.database.unlink(), 8, "MissingStore"),
    (lambda s: s.signed_head.write_text("{}"), 8, "BadSignedHead"),
    (lambda s: (s.tiles / "checkpoint").write_text("x"), 8, "BadCheckpoint"),
    (lambda s: shutil.rmtree(s.tiles), 8, "MissingStore"),
])
def test_exit_codes_tell_the_supervisor_that_trying_again_is_no_use(settings, capsys, break_, code, words):
    break_(settings)
    assert main(["--dir", str(settings.directory)]) == code
    assert code in HOPELESS
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["DiskFull", "InputOutput", "CannotOpen", "ReadOnly"])
def test_what_may_pass_is_tried_again(settings, monkeypatch, capsys, name):
    def fail(self: SqliteStore) -> int:
        raise StoreError(name, "the disk")
    monkeypatch.setattr(SqliteStore, "claim_epoch", fail)
    code = main(["--dir", str(settings.directory)])
    assert code
    assert code not in HOPELESS
    assert name in capsys.readouterr().err


def test_a_second_sequencer_does_not_start(settings, capsys):
    with FileLock(settings.directory / "sequencer.lock"):
        assert main(["--dir", str(settings.directory)]) == 8
    assert "Locked" in capsys.readouterr().err
    with SqliteStore.open(settings.database) as store:
        assert store.state().epoch == 0  # it did not even fence the first


def test_a_publisher_that_fails_takes_the_process_along(service, monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr(service_module.os, "_exit", ended.append)

    def fail(stop):
        raise StoreError("WouldFork", "the store is an older copy")

    service._publisher.run = fail
    service._publish()
    assert ended == [70]
