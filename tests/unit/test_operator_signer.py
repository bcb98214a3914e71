"""The signer's process, from the sequencer's side of the socket and from that of somebody who has taken it over."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog.config import Settings, write_settings
from ktlog.errors import StoreError
from ktlog.operator import custody as custody_module
from ktlog.operator import signer as signer_module
from ktlog.operator.create import check_public_keys, create_log, load_public_keys, write_public_keys
from ktlog.operator.custody import LOG as OF_LOG
from ktlog.operator.custody import (
    MAP,
    MOST_ENTRIES,
    Channel,
    Custody,
    encode_head_request,
    local_custody,
    open_custody,
    remote_custody,
    start_signer,
)
from ktlog.operator.head import LocalHeads, SignedHead, load_signed_head, record_signed_head
from ktlog.operator.keys import check_key_directory
from ktlog.operator.link import receive_frame, send_frame
from ktlog.operator.rotate import rotate
from ktlog.operator.signer import Signer
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.entry import leaf_key_hash, verify_entry
from ktlog.store.documents import FileDocument
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import Note, open_note, parse_vkey
from ktlog.tlog.tree import EMPTY_ROOT, hash_leaf, leaf_reader, prove_consistency, root_hash
from tests.operator_world import ORIGIN

OUTPUT = f"{ORIGIN}/map"
SECONDS = 30.0


class Tree:
    """Twenty entries, and the proofs between their trees; with *twist*, from entry 5 on, another log."""

    def __init__(self, twist: str = "") -> None:
        self.read = leaf_reader([hash_leaf(f"entry {n}{twist if n >= 5 else ''}".encode()) for n in range(20)])

    def root(self, size: int) -> bytes:
        return root_hash(size, self.read) if size else EMPTY_ROOT

    def text(self, size: int, origin: str = ORIGIN) -> bytes:
        return format_checkpoint(Checkpoint(origin, size, self.root(size)))

    def proof(self, old: int, size: int) -> list[bytes]:
        return prove_consistency(old, size, self.read) if 0 < old < size else []


HONEST, OTHER = Tree(), Tree(" of another history")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Settings:
    return create_log(tmp_path_factory.mktemp("made") / "log", ORIGIN, "spec", None)


@pytest.fixture
def settings(made, tmp_path) -> Settings:
    """A new log, copied: its RSA key takes long to make."""
    shutil.copytree(made.directory, tmp_path / "log")
    return replace(made, directory=tmp_path / "log")


@pytest.fixture
def signer(settings):
    """The signer's process and the connections that its sequencer would have."""
    process, connections = start_signer(settings, 3)
    yield Seat(settings, process, connections)
    for connection in connections:
        connection.close()
    assert process.wait(SECONDS) is not None


class Seat:
    """Where the sequencer sits, and whoever has taken it over."""

    def __init__(self, settings: Settings, process: subprocess.Popen, connections: list[socket.socket]) -> None:
        self.settings, self.process, self.connections = settings, process, connections
        for connection in connections:
            connection.settimeout(SECONDS)

    def ask(self, request: bytes, at: int = 0) -> dict:
        send_frame(self.connections[at], request)
        return parse_json(receive_frame(self.connections[at]))

    def sign(self, text: bytes, proof=(), kind: str = OF_LOG, at: int = 0) -> dict:
        return self.ask(encode_head_request(kind, text, proof), at)

    def refusal(self, text: bytes, proof=(), kind: str = OF_LOG) -> str:
        return self.sign(text, proof, kind)["error"]["code"]

    def head(self) -> SignedHead | None:
        return load_signed_head(FileDocument(self.settings.signed_head))


def name_of(action) -> str:
    with pytest.raises(StoreError) as caught:
        action()
    return caught.value.name


# --- what it is for


def test_entries_and_heads_over_the_socket(settings):
    ended: list[int] = []
    custody = open_custody(settings, lambda: ended.append(1))
    public = load_public_keys(settings)
    assert custody.public == replace(public, web={})
    preimages = [b'{"n":"%d"}' % n for n in range(9)]
    entries = custody.sign_entries(preimages)
    for entry, preimage in zip(entries, preimages, strict=True):
        verify_entry(entry, preimage, {leaf_key_hash(key): key for key in public.leaf_keys})
    assert len({*entries, *custody.sign_entries(preimages)}) == 18  # asked again, it makes others
    assert custody.sign_entries([]) == []
    for heads, vkeys, origin in (
        (custody.log_heads, public.vkeys, ORIGIN), (custody.map_heads, public.map_vkeys, OUTPUT),
    ):
        known = tuple(map(parse_vkey, vkeys))
        assert heads.vkeys() == known
        assert heads.last() is None
        for old, size in ((0, 0), (0, 3), (3, 3), (3, 11)):
            before = int(time.time())
            text = HONEST.text(size, origin)
            lines = heads.sign(text, HONEST.proof(old, size))
            verified = open_note(Note(text, lines), known)
            assert [one.vkey for one in verified] == list(known)
            assert before <= verified[1].timestamp <= time.time()
            assert heads.last() == SignedHead(size, HONEST.root(size), verified[1].timestamp)
    assert load_signed_head(FileDocument(settings.signed_head)) == custody.log_heads.last()
    assert load_signed_head(FileDocument(settings.map_signed_head)) == custody.map_heads.last()
    custody.close()
    assert not ended


def test_a_batch_is_cut_where_it_is_longer_than_the_signer_takes(settings, monkeypatch):
    monkeypatch.setattr(custody_module, "MOST_ENTRIES", 2)
    custody = open_custody(settings, lambda: None)
    with closing(custody):
        keys = {leaf_key_hash(key): key for key in custody.public.leaf_keys}
        for entry, preimage in zip(custody.sign_entries([b"a", b"b", b"c"]), (b"a", b"b", b"c"), strict=True):
            verify_entry(entry, preimage, keys)


def test_the_next_signer_goes_on_where_the_last_one_stopped(settings):
    for old, size in ((0, 4), (4, 9)):
        custody = open_custody(settings, lambda: None)
        with closing(custody):
            assert (custody.log_heads.last().size if old else custody.log_heads.last()) == (old or None)
            custody.log_heads.sign(HONEST.text(size), HONEST.proof(old, size))
    custody = open_custody(settings, lambda: None)
    with closing(custody):
        assert name_of(lambda: custody.log_heads.sign(HONEST.text(4), ())) == "WouldRollBack"


# --- somebody has the sequencer's process


def test_no_two_heads_that_contradict_each_other(signer):
    """Whatever is asked, the same signer signs one history; and what it refuses leaves no trace."""
    assert "ok" in signer.sign(HONEST.text(8))
    head, written = signer.head(), signer.settings.signed_head.stat().st_mtime_ns
    assert signer.refusal(HONEST.text(7)) == "WouldRollBack"
    assert signer.refusal(HONEST.text(0)) == "WouldRollBack"
    assert signer.refusal(OTHER.text(8)) == "WouldFork"
    assert signer.refusal(HONEST.text(12)) == "WouldFork"  # without a proof
    assert signer.refusal(OTHER.text(12), OTHER.proof(8, 12)) == "WouldFork"
    assert signer.refusal(OTHER.text(12), HONEST.proof(8, 12)) == "WouldFork"
    assert signer.refusal(HONEST.text(12), HONEST.proof(7, 12)) == "WouldFork"
    assert signer.refusal(HONEST.text(12), HONEST.proof(8, 12)[:-1]) == "WouldFork"
    assert signer.refusal(HONEST.text(12), [*HONEST.proof(8, 12), bytes(32)]) == "WouldFork"
    for place in range(len(HONEST.proof(8, 12))):
        bent = HONEST.proof(8, 12)
        bent[place] = bytes([bent[place][0] ^ 1]) + bent[place][1:]
        assert signer.refusal(HONEST.text(12), bent) == "WouldFork"
    assert (signer.head(), signer.settings.signed_head.stat().st_mtime_ns) == (head, written)
    assert "ok" in signer.sign(HONEST.text(12), HONEST.proof(8, 12))
    assert signer.head().size == 12


def test_an_empty_tree_has_one_root(signer):
    assert signer.refusal(format_checkpoint(Checkpoint(ORIGIN, 0, bytes(32)))) == "WouldFork"
    assert signer.head() is None


def test_each_key_signs_for_its_own_log(signer):
    """The map's checkpoint under the log's key would look like the log's; and the reverse."""
    for kind, origin in ((OF_LOG, OUTPUT), (MAP, ORIGIN), (OF_LOG, "keys.example.net"), (OF_LOG, ORIGIN.upper())):
        assert signer.refusal(HONEST.text(3, origin), (), kind) == "WrongOrigin"
    assert "ok" in signer.sign(HONEST.text(3, OUTPUT), (), MAP)
    assert signer.head() is None  # each has a last head of its own
    assert "ok" in signer.sign(OTHER.text(9))
    assert signer.refusal(OTHER.text(3, OUTPUT).replace(b"\n3\n", b"\n2\n"), (), MAP) == "WouldRollBack"


NO_CHECKPOINTS = [
    b"", b"hello\n", HONEST.text(3) + b"an extension\n", HONEST.text(3)[:-1], HONEST.text(3) + b"\n",
    HONEST.text(3).replace(b"\n3\n", b"\n03\n"), HONEST.text(3).replace(b"\n3\n", b"\n+3\n"), b"\xff" * 60,
]


def test_it_signs_plain_checkpoints_and_nothing_else(settings):
    """A line in the text that means something elsewhere, or a text that two readers read differently."""
    heads = local_custody(settings, lambda: 1000).log_heads
    for text in NO_CHECKPOINTS:
        assert name_of(lambda text=text: heads.sign(text, ())) == "NoCheckpoint", text
    assert heads.last() is None


RUBBISH = [
    b"", b"not json", b"[]", b"5", b"{}", canonical({"op": "head"}), canonical({"op": "head", "kind": "leaf"}),
    canonical({"op": "sign", "kind": "log"}), canonical({"op": "head", "kind": "log", "text": "!", "proof": []}),
    canonical({"op": "head", "kind": "log", "text": "", "proof": "x"}),
    canonical({"op": "head", "kind": "log", "text": "", "proof": ["AAAA"]}), canonical({"op": "entries"}),
    canonical({"op": "entries", "count": "-1"}), canonical({"op": "entries", "count": str(MOST_ENTRIES + 1)}),
    canonical({"op": "last", "kind": ["log"]}),
]


def test_who_sends_rubbish_is_cut_off(settings, caplog):
    """In the test's process: the part that answers is the same."""
    signer = Signer(local_custody(settings, lambda: 1000))
    for request in RUBBISH:
        ours, theirs = socket.socketpair()
        send_frame(ours, request)
        ours.settimeout(SECONDS)
        signer.serve(theirs)
        assert receive_frame(ours) is None, request
        ours.close()
    assert len([record for record in caplog.records if "a connection closed" in record.message]) == len(RUBBISH)


def test_garbage_frames_close_one_connection_and_no_other(signer):
    for at, garbage in ((0, b"\xff\xff\xff\xff"), (1, b"\0\0\0\5ab")):
        signer.connections[at].sendall(garbage)
        signer.connections[at].shutdown(socket.SHUT_WR)
        assert signer.connections[at].recv(1) == b""
    assert "ok" in signer.sign(HONEST.text(5), at=2)
    assert signer.process.poll() is None


def test_two_connections_race_and_one_history_wins(signer):
    """Both ask at once, each for a history of its own, again and again: never is one of each signed."""
    signed: list[list[int]] = [[], []]

    def press(at: int, tree: Tree) -> None:
        for size in range(6, 20):
            last = signer.ask(canonical({"op": "last", "kind": "log"}), at)["ok"]["head"]
            old = int(last["size"]) if last else 0
            if "ok" in signer.sign(tree.text(size), tree.proof(old, size), at=at):
                signed[at].append(size)

    threads = [threading.Thread(target=press, args=pair) for pair in enumerate((HONEST, OTHER))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(map(bool, signed)) == [False, True]
    winner = (HONEST, OTHER)[bool(signed[1])]
    assert signer.head().root == winner.root(19)


def test_the_clock_is_the_signers_own_and_does_not_go_back(settings):
    clock = [1000]
    heads = local_custody(settings, lambda: clock[0]).log_heads
    heads.sign(HONEST.text(3), ())
    clock[0] = 999
    assert name_of(lambda: heads.sign(HONEST.text(4), HONEST.proof(3, 4))) == "ClockWentBack"
    assert name_of(lambda: heads.sign(OTHER.text(6), OTHER.proof(4, 6))) == "WouldFork"  # named before the clock
    clock[0] = 1000
    heads.sign(HONEST.text(4), HONEST.proof(3, 4))
    assert heads.last() == SignedHead(4, HONEST.root(4), 1000)


# --- the disk says no


class Failing(FileDocument):
    """A disk that fails once, having stored it or not."""

    def __init__(self, path: Path, persists: bool) -> None:
        super().__init__(path)
        self._persists, self._failed = persists, False

    def write(self, data: bytes) -> None:
        if self._persists or self._failed:
            super().write(data)
        if not self._failed:
            self._failed = True
            raise StoreError("InputOutput", "the disk")


@pytest.mark.parametrize("persists", [False, True])
def test_after_a_write_that_failed_it_signs_nothing_any_more(settings, persists):
    signers = local_custody(settings, lambda: 1000).log_heads._signers
    heads = LocalHeads(Failing(settings.signed_head, persists), signers, lambda: 1000)
    assert name_of(lambda: heads.sign(HONEST.text(6), ())) == "InputOutput"
    assert heads.poisoned
    for text in (HONEST.text(6), OTHER.text(6), HONEST.text(7)):
        assert name_of(lambda text=text: heads.sign(text, ())) == "Poisoned"
    fresh = LocalHeads(FileDocument(settings.signed_head), signers, lambda: 1000)
    assert (fresh.last() is not None) == persists
    fresh.sign(HONEST.text(6), ())


@pytest.mark.parametrize("asked_first", [False, True])
@pytest.mark.parametrize("there", [b'{"root":"%s","size":"9","time":"1"}\n', b"", None])
def test_a_file_that_another_one_wrote_is_not_written_over(settings, there, asked_first):
    """It may say more than this process knows: a second signer, or a file that was restored under a running one."""
    heads = local_custody(settings, lambda: 1).log_heads
    heads.sign(HONEST.text(5), ())
    if there is None:
        settings.signed_head.unlink()
    else:
        there = there.replace(b"%s", encode_base64(HONEST.root(9)).encode())
        settings.signed_head.write_bytes(there)
    if asked_first:  # what a publisher does before it compares with its witnesses: it must not wait for them for ever
        assert name_of(heads.last) in ("Poisoned", "BadSignedHead")
    assert name_of(lambda: heads.sign(HONEST.text(7), HONEST.proof(5, 7))) in ("Poisoned", "BadSignedHead")
    assert (settings.signed_head.read_bytes() if settings.signed_head.exists() else None) == there
    assert heads.poisoned and name_of(lambda: heads.sign(HONEST.text(10), HONEST.proof(5, 10))) == "Poisoned"


def test_the_process_ends_without_an_answer(settings):
    process, connections = start_signer(settings)
    seat = Seat(settings, process, connections)
    assert "ok" in seat.sign(HONEST.text(6))
    settings.signed_head.unlink()
    settings.signed_head.mkdir()  # a rename onto it fails, for root too
    send_frame(connections[0], encode_head_request(OF_LOG, HONEST.text(7), HONEST.proof(6, 7)))
    assert receive_frame(connections[0]) is None
    assert process.wait(SECONDS) == 70
    for connection in connections:
        connection.close()


# --- death


@pytest.mark.parametrize("hook", ["durable.staged", "durable.named", "head.recorded", "head.signed", "signer.answered"])
def test_killed_between_the_file_and_the_answer(settings, monkeypatch, hook):
    """Whatever was on its way, the next one signs the same head again, or a later one: never another of the same size."""
    monkeypatch.setenv("KTLOG_KILL_AT", hook)
    process, connections = start_signer(settings)
    seat = Seat(settings, process, connections)
    send_frame(connections[0], encode_head_request(OF_LOG, HONEST.text(6), ()))
    answered = receive_frame(connections[0]) is not None
    assert process.wait(SECONDS) == -signal.SIGKILL
    recorded = seat.head()
    assert answered == (hook == "signer.answered")
    assert (recorded is not None) == (hook != "durable.staged")
    for connection in connections:
        connection.close()
    monkeypatch.delenv("KTLOG_KILL_AT")
    custody = open_custody(settings, lambda: None)
    with closing(custody):
        if recorded is not None:
            assert name_of(lambda: custody.log_heads.sign(OTHER.text(6), ())) == "WouldFork"
        custody.log_heads.sign(HONEST.text(6), ())


def test_it_ends_with_its_sequencer_and_says_so_when_it_is_the_first(settings):
    process, connections = start_signer(settings)
    assert "ok" in Seat(settings, process, connections).ask(canonical({"op": "keys"}))
    process.send_signal(signal.SIGTERM)  # such as a whole control group gets; the sequencer is still at work
    process.send_signal(signal.SIGINT)
    assert "ok" in Seat(settings, process, connections).ask(canonical({"op": "keys"}))
    for connection in connections:
        connection.close()
    assert process.wait(SECONDS) == 0
    gone = threading.Event()
    custody = open_custody(settings, gone.set)
    pid = int((settings.directory / "signer.lock").read_text())
    os.kill(pid, signal.SIGKILL)
    assert gone.wait(SECONDS)
    assert name_of(lambda: custody.sign_entries([b"x"])) == "SignerLost"
    assert name_of(lambda: custody.log_heads.last()) == "SignerLost"
    custody.close()


# --- the keys


@pytest.mark.parametrize(("spoil", "name"), [
    (lambda s: s.keys.chmod(0o750), "UnsafeKeys"),
    (lambda s: s.keys.chmod(0o701), "UnsafeKeys"),
    (lambda s: (s.keys / "leaf").chmod(0o640), "UnsafeSecret"),
    (lambda s: (s.keys / "map-mldsa44").chmod(0o604), "UnsafeSecret"),
    (lambda s: (s.keys / "checkpoint-ed25519").unlink(), "MissingSecret"),
    (lambda s: (s.keys / "checkpoint-mldsa44").write_bytes(bytes(31)), "BadSecret"),
    (lambda s: s.signed_head.write_text("{}"), "BadSignedHead"),
    (lambda s: s.map_signed_head.write_text("{}"), "BadSignedHead"),
    (lambda s: (s.keys / "leaf.until-x").write_bytes(b""), None),  # of no use to the signer
    (lambda s: (s.keys / "map-mldsa44.until-x").write_bytes(b""), "BadSecret"),
])
def test_what_it_does_not_start_with(settings, spoil, name):
    spoil(settings)
    if name is None:
        open_custody(settings, lambda: None).close()
    else:
        assert name_of(lambda: open_custody(settings, lambda: None)) == name


def test_a_copied_directory_signs_nothing_beside_the_first(settings, tmp_path, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("needs Linux: abstract sockets")
    custody = open_custody(settings, lambda: None)
    monkeypatch.setattr(signer_module, "LOCK_SECONDS", 0.0)
    heads = (*custody.log_heads.vkeys(), *custody.map_heads.vkeys())
    keys = (*custody.public.leaf_keys, *(vkey.public_key for vkey in heads))
    for key in keys:
        assert name_of(lambda key=key: signer_module.claim_keys([os.urandom(32), key])) == "Locked"
    custody.close()
    signer_module.claim_keys(keys).close()


def test_another_user_who_takes_the_name_of_a_public_key_is_named(monkeypatch):
    """The names follow from what everybody knows, so whoever is on the machine can keep a log from starting."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs Linux, and root to be somebody else")
    monkeypatch.setattr(signer_module, "LOCK_SECONDS", 0.0)
    key, (ready, say) = os.urandom(32), os.pipe()
    name = signer_module.claim_name(key)
    for listens in (True, False):
        pid = os.fork()
        if pid == 0:
            try:
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as squatter:
                    squatter.bind(name)
                    if listens:
                        squatter.listen()
                    os.write(say, b"x")
                    time.sleep(SECONDS)
            finally:
                os.write(say, b"x")
                os._exit(0)
        try:
            os.read(ready, 1)
            with pytest.raises(StoreError) as raised:
                signer_module.claim_keys([key])
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert raised.value.name == "Locked"
        if listens:
            assert f"process {pid} of user 65534" in raised.value.message
        assert name.removeprefix("\0") in raised.value.hint
    for end in (ready, say):
        os.close(end)
    with signer_module.claim_keys([key]), pytest.raises(StoreError, match=f"process {os.getpid()} of user 0"):
        signer_module.claim_keys([key])


@pytest.mark.parametrize("kind", ["leaf", "checkpoint"])
def test_nor_does_a_copy_whose_keys_were_replaced(made, settings, monkeypatch, kind):
    """What forks a log is a checkpoint key, or its predecessor, in two places: whatever else is new in one of them."""
    if sys.platform != "linux":
        pytest.skip("needs Linux: abstract sockets")
    custody = open_custody(made, lambda: None)
    try:
        rotate(settings, kind, "a test", int(time.time()))
        monkeypatch.setattr(signer_module, "LOCK_SECONDS", 0.0)
        assert name_of(lambda: signer_module.run(settings.directory, lambda signer: None)) == "Locked"
    finally:
        custody.close()


def test_keys_of_another_user_are_not_used(settings, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: settings.keys.stat().st_uid + 1)
    assert name_of(lambda: check_key_directory(settings.keys)) == "UnsafeKeys"


def test_keys_that_nobody_was_told_of_sign_nothing(settings):
    """Somebody put another leaf key there: what it signed, no reader would take."""
    good = load_public_keys(settings)
    assert check_public_keys(settings, good) == good
    write_public_keys(settings, replace(good, map_vkeys=()))  # as older code left it
    assert check_public_keys(settings, good) == good == load_public_keys(settings)
    for changes in ({"leaf_keys": (bytes(1312),)}, {"vkeys": good.map_vkeys}, {"map_vkeys": good.vkeys}):
        assert name_of(lambda changes=changes: check_public_keys(settings, replace(good, **changes))) == "KeysDiffer"


# --- one that somebody else started


def test_a_signer_with_a_directory_of_its_own(settings):
    """What a user id of its own needs: the configuration, the signing keys, the last heads. The log has none of it."""
    with tempfile.TemporaryDirectory(prefix="kt") as own:  # a socket's path must stay short
        directory, path = Path(own) / "s", Path(own) / "sock"
        (directory / "keys").mkdir(parents=True, mode=0o700)
        write_settings(replace(settings, directory=directory))
        for name in ("leaf", "checkpoint-ed25519", "checkpoint-mldsa44", "map-ed25519", "map-mldsa44"):
            (settings.keys / name).rename(directory / "keys" / name)
        record_signed_head(FileDocument(directory / "signed-head.json"), SignedHead(2, HONEST.root(2), 5))
        process = subprocess.Popen(
            [sys.executable, "-m", "ktlog.operator.signer", "--dir", str(directory), "--listen", str(path)]
        )
        try:
            deadline = time.monotonic() + SECONDS
            while not path.exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            elsewhere = replace(settings, signer=str(path))
            custody = _patiently(elsewhere)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert check_public_keys(settings, custody.public) == load_public_keys(settings)
            assert custody.log_heads.last().size == 2
            custody.log_heads.sign(HONEST.text(4), HONEST.proof(2, 4))
            custody.close()
            again = open_custody(elsewhere, lambda: None)  # it outlives a sequencer
            assert again.log_heads.last().size == 4
            again.close()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        assert name_of(lambda: open_custody(elsewhere, lambda: None)) == "SignerLost"
        assert not settings.signed_head.exists()


def _patiently(settings: Settings) -> Custody:
    """The socket has its name a moment before it can be connected to."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return open_custody(settings, lambda: None)
        except StoreError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_signer_that_makes_no_sense(settings):
    for answer in (b"", b"[]", canonical({"ok": {}}), canonical({"ok": {"vkeys": "5", "leaf-keys": ["x"], "map-vkeys": []}})):
        ours, theirs = socket.socketpair()
        send_frame(theirs, answer)
        with theirs:
            channel = Channel(ours)
            assert name_of(lambda channel=channel: remote_custody(channel, channel, lambda: None)) == "SignerLost"
            channel.close()
