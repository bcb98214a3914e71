"""Frames between the web workers and the sequencer: bounded, in turn, and made anew after a failure."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.operator.link import (
    FRAME_LIMIT_BYTES,
    TOGETHER,
    Receipt,
    SequencerLink,
    Submission,
    decode_receipt,
    decode_shred,
    decode_submission,
    encode_receipt,
    encode_refusal,
    encode_shred,
    encode_submission,
    receive_frame,
    send_frame,
)
from ktlog.operator.sharedlink import SharedLink
from ktlog.pkd.canonical import canonical, parse_json

SUBMISSION = Submission(b'{"a":"b"}', {"actor": "https://example.com/ü"}, {"actor": bytes(range(32))})
RECEIPT = Receipt(7, b"entry", "pkd-mr-v1:x", duplicate=True)
CUT = "cut the connection"


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)
    with ours, theirs:
        yield ours, theirs


class Sequencer:
    """Listens where DIR says, and plays a script: for each connection a list of what to answer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record = directory / "sequencer.addr"
        self.script: list[list] = []
        self.received: list[list[bytes]] = []
        self.listener: socket.socket | None = None

    def start(self, name: str = "s") -> None:
        path = self.directory / name
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(16)
        self.record.write_text(f"{path}\n")
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def stop(self) -> None:
        if self.listener is not None:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            answers = self.script.pop(0) if self.script else []
            self.received.append([])
            threading.Thread(target=self._serve, args=(connection, answers, self.received[-1]), daemon=True).start()

    def _serve(self, connection: socket.socket, answers: list, received: list[bytes]) -> None:
        with connection:
            for answer in answers:
                frame = receive_frame(connection)
                if frame == TOGETHER:
                    send_frame(connection, canonical({"ok": {}}))
                    frame = receive_frame(connection)
                if frame is None:
                    return
                received.append(frame)
                if answer is CUT:
                    return
                if isinstance(answer, Exception):
                    connection.sendall(answer.args[0])  # bytes as they are, no frame
                    return
                send_frame(connection, answer)
            receive_frame(connection)


@pytest.fixture
def sequencer():
    directory = Path(tempfile.mkdtemp(prefix="kt"))  # a socket's path must stay short
    sequencer = Sequencer(directory)
    sequencer.start()
    yield sequencer
    sequencer.stop()
    shutil.rmtree(directory)


@pytest.fixture(params=[SequencerLink, SharedLink])
def link(request, sequencer) -> SequencerLink:
    return request.param(sequencer.record, timeout_seconds=5)


OK = encode_receipt(RECEIPT)


def raw(data: bytes) -> Exception:
    return Exception(data)


# --- values


def test_a_submission_there_and_back():
    assert decode_submission(parse_json(encode_submission(SUBMISSION))) == SUBMISSION
    token = Submission(b"x", {}, {}, more=True)
    assert decode_submission(parse_json(encode_submission(token))) == token


@given(st.builds(
    Submission, st.binary(max_size=50), st.dictionaries(st.text(max_size=5), st.text(st.characters(codec="utf-8"), max_size=9)),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.binary(min_size=32, max_size=32)),
).filter(lambda s: all(name.isprintable() for name in s.plain)))
def test_any_submission_there_and_back(submission):
    assert decode_submission(parse_json(encode_submission(submission))) == submission


@pytest.mark.parametrize("change", [
    {"preimage": None}, {"preimage": 5}, {"preimage": "AB=="}, {"preimage": "!"}, {"plain": None}, {"plain": "ab"},
    {"plain": ["ab"]}, {"plain": [["a", "b"]]}, {"plain": {"actor": None}}, {"plain": {"actor": 5}}, {"plain": 5},
    {"keys": None}, {"keys": []}, {"keys": "ab"}, {"keys": {"actor": "AAAA"}}, {"keys": {"actor": None}},
    {"keys": {"actor": 5}}, {"more": True}, {"more": "maybe"}, {"more": None},
])
def test_requests_that_are_no_submission(change):
    with pytest.raises(EncodingError):
        decode_submission(parse_json(encode_submission(SUBMISSION)) | change)


@pytest.mark.parametrize("request_", [{}, [], "x", 5, None, {"op": "append"}])
def test_requests_of_another_shape(request_):
    with pytest.raises(EncodingError):
        decode_submission(request_)


@pytest.mark.parametrize("request_", [
    {}, [], "x", 5, None, {"actor": "x"}, {"actor": 5, "preview": "yes"}, {"actor": "x", "preview": []},
])
def test_requests_that_erase_nobody(request_):
    assert decode_shred(parse_json(encode_shred("x", True))) == ("x", True)
    with pytest.raises(EncodingError):
        decode_shred(request_)


@pytest.mark.parametrize("receipt", [RECEIPT, Receipt(0, b"", "r"), Receipt(2**63 - 1, bytes(5000), "r", False)])
def test_a_receipt_there_and_back(receipt):
    assert decode_receipt(parse_json(encode_receipt(receipt))) == receipt


def test_a_refusal_there_and_back():
    with pytest.raises(MessageRejected) as caught:
        decode_receipt(parse_json(encode_refusal("key_exists", "Key is there")))
    assert (caught.value.code, caught.value.message) == ("key_exists", "Key is there")


@pytest.mark.parametrize("change", [
    {"leaf-index": "+7"}, {"leaf-index": "07"}, {"leaf-index": "1_0"}, {"leaf-index": "-1"}, {"leaf-index": 7},
    {"root": None}, {"root": 5}, {"root": ["r"]}, {"entry": "x"}, {"entry": None}, {"duplicate": "maybe"}, {"duplicate": True}, {"duplicate": []},
])
def test_answers_that_are_no_receipt(change):
    answer = parse_json(encode_receipt(RECEIPT))
    answer["ok"] |= change
    with pytest.raises(EncodingError):
        decode_receipt(answer)


@pytest.mark.parametrize("answer", [{}, [], "x", 5, None, {"ok": {}}, {"ok": None}, {"error": {}}, {"error": "x"}])
def test_answers_of_another_shape(answer):
    with pytest.raises(EncodingError):
        decode_receipt(answer)


# --- frames


@pytest.mark.parametrize("payload", [b"", b"x", bytes(70_000)])
def test_frames_follow_each_other(pair, payload):
    ours, theirs = pair
    sender = threading.Thread(target=lambda: [send_frame(ours, payload), send_frame(ours, b"next")])
    sender.start()
    assert receive_frame(theirs) == payload
    assert receive_frame(theirs) == b"next"
    sender.join()
    ours.close()
    assert receive_frame(theirs) is None


@pytest.mark.parametrize("part", [b"\0", b"\0\0\0", b"\0\0\0\5", b"\0\0\0\5abcd"])
def test_a_connection_that_ends_inside_a_frame(pair, part):
    ours, theirs = pair
    ours.sendall(part)
    ours.close()
    with pytest.raises(EncodingError, match="BrokenFrame"):
        receive_frame(theirs)


@pytest.mark.parametrize("length", [FRAME_LIMIT_BYTES + 1, 2**32 - 1])
def test_a_frame_beyond_the_limit_is_refused_before_it_is_read(pair, length):
    ours, theirs = pair
    ours.sendall(length.to_bytes(4, "big"))
    with pytest.raises(EncodingError, match="FrameTooLarge"):
        receive_frame(theirs)


def test_a_frame_in_many_pieces(pair):
    ours, theirs = pair
    frame = (9).to_bytes(4, "big") + b"123456789"

    def dribble():
        for byte in frame:
            ours.sendall(bytes([byte]))

    thread = threading.Thread(target=dribble)
    thread.start()
    assert receive_frame(theirs) == b"123456789"
    thread.join()


# --- the link


def test_one_connection_carries_many_messages(sequencer, link):
    pong = canonical({"ok": {"size": "5"}})
    sequencer.script = [[OK, OK, encode_refusal("key_exists", "no"), pong], [pong]]
    assert link.append(SUBMISSION) == RECEIPT
    assert link.append(SUBMISSION) == RECEIPT
    with pytest.raises(MessageRejected, match="key_exists"):
        link.append(SUBMISSION)
    link.ping()
    first, _, _, ping = chain(*sequencer.received)
    assert first == encode_submission(SUBMISSION)
    assert parse_json(ping) == {"op": "ping"}


def test_each_thread_has_its_own_connection(sequencer):
    link = SequencerLink(sequencer.record)
    sequencer.script = [[OK, OK]] * 3
    assert link.append(SUBMISSION) == RECEIPT
    results = []
    threads = [threading.Thread(target=lambda: results.append(link.append(SUBMISSION))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert link.append(SUBMISSION) == RECEIPT
    assert results == [RECEIPT] * 2
    assert len(sequencer.received) == 3


def test_after_a_restart_it_finds_the_new_socket(sequencer, link):
    sequencer.script = [[OK, CUT]]
    assert link.append(SUBMISSION) == RECEIPT
    sequencer.stop()
    sequencer.start("another")
    sequencer.script = [[CUT], [OK, OK]]
    # The kept connection is dead; it is tried once more on a new one, and that is enough.
    with pytest.raises(StoreError, match="SequencerUnreachable"):
        link.append(SUBMISSION)
    assert link.append(SUBMISSION) == RECEIPT
    assert len(sequencer.received) == 3


def test_a_dead_connection_costs_one_more_try_and_no_error(sequencer, link):
    sequencer.script = [[OK, CUT], [OK]]
    assert link.append(SUBMISSION) == RECEIPT
    assert link.append(SUBMISSION) == RECEIPT
    assert [len(frames) for frames in sequencer.received] == [2, 1]


@pytest.mark.parametrize("answer", [
    CUT, raw(b""), raw(b"\0\0"), raw(b"\0\0\0\5ab"), raw(b"\xff\xff\xff\xff"), b"", b"not json", b'{"ok":{},"ok":{}}',
    b"{}", b"[]", b"5", b'{"ok":{"leaf-index":"+1","entry":"","root":"r","duplicate":"no"}}', b'{"error":"x"}',
], ids=repr)
def test_a_first_answer_that_is_none(sequencer, link, answer):
    """Whether the message was accepted is not known, and nobody pretends otherwise."""
    sequencer.script = [[answer], [OK]]
    with pytest.raises(StoreError, match="SequencerUnreachable.*whether it accepted is not known|does not parse"):
        link.append(SUBMISSION)
    assert len(sequencer.received) == 1
    # Whatever came, the next message starts on a fresh connection.
    assert link.append(SUBMISSION) == RECEIPT


@pytest.mark.parametrize("kind", [SequencerLink, SharedLink])
def test_a_sequencer_that_does_not_answer_in_time(sequencer, kind):
    link = kind(sequencer.record, timeout_seconds=0.2)
    silence = threading.Event()
    original = sequencer._serve

    def stall(connection, answers, received):
        silence.wait(2)
        original(connection, answers, received)

    sequencer._serve = stall
    try:
        with pytest.raises(StoreError, match="SequencerUnreachable"):
            link.append(SUBMISSION)
    finally:
        silence.set()


@pytest.mark.parametrize("kind", [SequencerLink, SharedLink])
def test_nobody_listens(tmp_path, kind):
    """Nothing was asked, so that nothing can have been accepted."""
    link = kind(tmp_path / "sequencer.addr")
    for ask in (link.ping, lambda: (tmp_path / "sequencer.addr").write_text(str(tmp_path / "nothing")) and link.append(SUBMISSION)):
        with pytest.raises(StoreError, match="SequencerUnreachable") as caught:
            ask()
        assert caught.value.message == f"the log in {tmp_path} is not running"
        assert caught.value.hint == f"Start it: ktlog serve --dir {tmp_path} (or: systemctl start ktlog)."


def test_one_who_may_not_ask_is_not_told_that_it_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(StoreError, match="SequencerUnreachable.*Permission denied") as caught:
        SequencerLink(tmp_path / "sequencer.addr").ping()
    assert "runuser -u" in caught.value.hint


def test_what_went_over_a_connection_that_died_may_have_been_accepted(sequencer, link):
    """Also when nobody listens any more by the time of the second try."""
    sequencer.script = [[OK, CUT]]
    assert link.append(SUBMISSION) == RECEIPT
    sequencer.record.unlink()
    with pytest.raises(StoreError, match="SequencerUnreachable.*whether it accepted is not known"):
        link.append(SUBMISSION)
    with pytest.raises(StoreError, match="SequencerUnreachable.*is not running"):
        link.append(SUBMISSION)


def test_a_message_beyond_the_frame_is_refused_before_it_is_sent(sequencer, link):
    """Escapes make JSON longer than the body that was admitted: control characters take six bytes each."""
    sequencer.script = [[OK]]
    text = "\x01" * 180_000
    huge = Submission(b"x", {"actor": "https://example.com/a", "aux-data": text}, {})
    with pytest.raises(MessageRejected, match="too_large"):
        link.append(huge)
    assert link.append(SUBMISSION) == RECEIPT
    assert [len(frames) for frames in sequencer.received] == [1]
