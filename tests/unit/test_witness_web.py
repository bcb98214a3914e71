"""The witness over HTTP, in process: sessions that end in what a monitor would read."""

from __future__ import annotations

import threading

import pytest

from ktlog.errors import StoreError, UsageError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.note import Note, SignatureLine, open_note, parse_signature_lines
from ktlog.tlog.tree import EMPTY_ROOT
from tests.witness_log import NOW, Log, join
from tests.witness_site import NAME, Session
from witness.config import MAX_BODY_BYTES
from witness.store import BEFORE_COMMIT, hash_origin
from witness.web import create_app, open_witness
from witness.witness import CHECKED, HOOKS, MAX_ATTEMPTS, Witness

HASH = b"\x2a" * 32


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path)
    yield session
    session.witness.store.close()


def cosignatures(session: Session, response, size: int) -> dict[int, int]:
    """Algorithm -> time of the answer's lines, each verified over the checkpoint of *size*."""
    assert response.status_code == 200, response.data
    assert response.content_type == "text/plain; charset=utf-8"
    lines = parse_signature_lines(response.data)
    text = parse_signed_checkpoint(session.log.note(size))[0].text
    verified = open_note(Note(text, lines), session.vkeys)
    assert len(verified) == len(lines)  # only the witness's own lines
    return {one.vkey.algorithm: one.timestamp for one in verified}


# --- sessions


def test_a_log_s_life(session):
    assert session.monitor().status_code == 404
    assert cosignatures(session, session.submit(0, 1), 1) == {4: NOW, 6: NOW}

    forged = session.log.submission(1, 3).replace(b"\n3\n", b"\n4\n")
    assert session.post(forged).status_code == 403
    assert session.post(Log("other.example").submission(0, 1)).status_code == 404
    assert session.submit(1, 3, proof=[]).status_code == 422
    assert session.submit(1, 3, proof=[HASH, HASH]).status_code == 422
    assert session.size() == 1

    session.clock.now += 5
    assert cosignatures(session, session.submit(1, 3), 3) == {4: NOW + 5, 6: NOW + 5}
    conflict = session.submit(1, 3)
    assert (conflict.status_code, conflict.data) == (409, b"3\n")
    assert conflict.headers["Content-Type"] == "text/x.tlog.size"
    cosignatures(session, session.submit(3, 5), 5)
    assert session.submit(0, 5).data == b"5\n"
    assert session.submit(3, 3).data == b"5\n"  # a smaller tree


def test_a_monitor_reads_the_verified_log_signatures_and_the_very_lines_that_were_answered(session):
    answer = session.submit(0, 3)
    response = session.monitor()
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.content_type == "text/plain; charset=utf-8"
    note, checkpoint = parse_signed_checkpoint(response.data)
    assert (checkpoint.size, checkpoint.root) == (3, session.log.root(3))
    assert {one.vkey for one in open_note(note, session.log.vkeys)} == set(session.log.vkeys)
    assert response.data.endswith(answer.data)
    assert len(note.signatures) == 4
    missing = session.client.get("/" + "0" * 64 + "/checkpoint")
    assert (missing.status_code, missing.headers["Access-Control-Allow-Origin"]) == (404, "*")
    upper = hash_origin(session.log.origin).upper()
    assert session.client.get(f"/{upper}/checkpoint").status_code == 404


def test_the_same_size_again_is_signed_afresh(session):
    first = session.submit(0, 3)
    session.clock.now += 60
    second = session.submit(3, 3)
    assert cosignatures(session, second, 3) == {4: NOW + 60, 6: NOW + 60}
    assert first.data != second.data
    assert session.monitor().data.endswith(second.data)


def test_an_empty_log_is_cosigned_and_grows(session):
    cosignatures(session, session.submit(0, 0), 0)
    cosignatures(session, session.submit(0, 0), 0)
    assert session.submit(0, 0, root=EMPTY_ROOT, proof=[HASH]).status_code == 422
    assert session.submit(0, 2, proof=[HASH]).status_code == 422
    cosignatures(session, session.submit(0, 2), 2)


def test_another_root_of_the_empty_tree_is_refused(session):
    assert session.submit(0, 0, root=HASH).status_code == 422
    cosignatures(session, session.submit(0, 0), 0)


def test_a_fork_is_refused_and_kept_as_evidence(session):
    session.submit(0, 5)
    fork = session.submit(5, 5, root=HASH)
    assert (fork.status_code, fork.data[:9]) == (422, b"OtherRoot")
    (document,) = session.witness.store.evidence()
    verify_evidence(parse_evidence(document), session.log.vkeys[1])
    note, _ = parse_signed_checkpoint(session.monitor().data)
    assert open_note(note, session.log.vkeys)


def refusal(response) -> tuple[int, str]:
    return response.status_code, response.data.decode().partition(":")[0]


def test_a_convicted_log_is_frozen_until_the_operator_lifts_it(session):
    session.submit(0, 5)
    session.submit(5, 5, root=HASH)
    for old, new in ((5, 6), (5, 5), (0, 5)):
        assert refusal(session.submit(old, new)) == (403, "LogFrozen")
    assert session.size() == 5
    session.witness.store.close()
    session.start()  # it is no matter of one process
    assert refusal(session.submit(5, 6)) == (403, "LogFrozen")
    assert session.witness.store.lift_freeze(session.log.origin, NOW + 1) == 1
    cosignatures(session, session.submit(5, 6), 6)  # the branch that we know still grows
    with pytest.raises(UsageError, match="NotFrozen"):
        session.witness.store.lift_freeze(session.log.origin, NOW + 2)


def test_what_was_lifted_is_not_frozen_again_by_the_same_fork_but_by_another(session):
    session.submit(0, 5)
    session.submit(5, 5, root=HASH)
    session.witness.store.lift_freeze(session.log.origin, NOW)
    assert session.submit(5, 5, root=HASH).status_code == 422
    cosignatures(session, session.submit(5, 6), 6)
    assert session.submit(6, 6, root=HASH).status_code == 422
    assert refusal(session.submit(6, 7)) == (403, "LogFrozen")
    assert [one.freezes for one in session.witness.store.convictions()] == [False, True]


def test_other_logs_go_on_and_strangers_cannot_freeze_one(session):
    other = Log("example.com/other", seed=5)
    session.witness.store.add_log(other.origin, other.vkeys, NOW)
    session.submit(0, 5)
    stranger = Log(session.log.origin, seed=9)
    for body in (
        stranger.submission(5, 5, root=HASH),  # another key
        session.log.submission(5, 7, proof=[HASH]),  # a genuine checkpoint with a garbage proof
        session.log.submission(5, 7, proof=[HASH] * 63),
        join(5, [], session.log.note(7)),
    ):
        assert session.post(body).status_code in (403, 422)
    cosignatures(session, session.submit(5, 7), 7)
    session.submit(7, 7, root=HASH)
    assert session.post(other.submission(0, 3)).status_code == 200


def test_monitors_are_shown_the_evidence(session):
    path = f"/{hash_origin(session.log.origin)}/evidence"
    assert session.client.get(path).status_code == 404
    session.submit(0, 5)
    session.submit(5, 5, root=HASH)
    answer = session.client.get(path)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    shown = answer.get_json()
    assert (shown["origin"], shown["frozen"]) == (session.log.origin, True)
    (document,) = shown["evidence"]
    verify_evidence(parse_evidence(document.encode()), session.log.vkeys[1])


def test_a_failed_proof_is_no_evidence(session):
    session.submit(0, 5)
    assert session.submit(5, 7, root=HASH).status_code == 422
    assert session.witness.store.evidence() == ()


# --- what must not get in


def test_a_forged_line_in_our_name_poisons_no_state(session):
    forged = tuple(
        SignatureLine(vkey.name, vkey.key_id, bytes(8 + size))
        for vkey, size in zip(session.vkeys, (64, 2420), strict=True)
    )
    cosignatures(session, session.submit(0, 3, extra=forged), 3)
    note, _ = parse_signed_checkpoint(session.monitor().data)
    assert len(open_note(note, session.vkeys)) == len(note.signatures) - 2 == 2
    cosignatures(session, session.submit(3, 4, extra=forged), 4)


def test_extension_lines_are_refused(session):
    response = session.submit(0, 3, extensions=("timestamp 5",))
    assert (response.status_code, response.data[:14]) == (400, b"ExtensionLines")
    assert session.size() is None


def test_a_second_encoding_of_a_signature_is_refused(session):
    body = session.log.submission(0, 3)
    line = parse_signed_checkpoint(session.log.note(3))[0].signatures[0]
    text = encode_base64(line.key_id + line.blob).encode()
    assert body.count(text) == 1 and text.endswith(b"=") and not text.endswith(b"==")
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = text[:-2] + alphabet[alphabet.index(text[-2]) + 1:][:1] + b"="
    assert session.post(body.replace(text, other)).status_code == 400
    assert session.post(body).status_code == 200


def test_64_proof_lines_are_refused(session):
    response = session.post(join(0, [HASH] * 64, session.log.note(3)))
    assert (response.status_code, response.data[:17]) == (400, b"TooManyProofLines")


@pytest.mark.parametrize("body", [b"", b"old 0\n\n", b"old 0\n\n\n", b"\xff" * 1000, b"\n" * 5000])
def test_bytes_that_are_no_submission_are_refused(session, body):
    response = session.post(body)
    assert response.status_code == 400
    assert response.content_type == "text/plain; charset=utf-8"


def test_a_large_checkpoint_fits_and_a_larger_body_does_not(session):
    """Sixteen post-quantum cosignatures and 63 proof lines fit; 128 KiB is the end."""
    extra = tuple(SignatureLine(f"w{n}.example", bytes([0, 0, 0, n]), bytes(2428)) for n in range(16))
    body = session.log.submission(0, 3, extra=extra)
    assert 50_000 < len(body) < MAX_BODY_BYTES
    assert session.post(body).status_code == 200
    response = session.post(b"old 0\n" + b"A" * MAX_BODY_BYTES)
    assert (response.status_code, response.data[:21]) == (413, b"RequestEntityTooLarge")


def test_an_encoded_body_and_another_method_are_refused(session):
    body = session.log.submission(0, 3)
    assert session.post(body, headers={"Content-Encoding": "gzip"}).status_code == 415
    response = session.client.get("/add-checkpoint")
    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]
    assert session.client.get("/nothing").status_code == 404
    assert session.client.put("/", data=b"").status_code == 405


# --- races


def test_a_request_stalled_between_check_and_commit_never_rolls_back(tmp_path):
    stalled, go_on = threading.Event(), threading.Event()
    armed = threading.Event()

    def stall(name: str) -> None:
        if name == CHECKED and armed.is_set():
            armed.clear()
            stalled.set()
            assert go_on.wait(30)

    session = Session(tmp_path, reach=stall)
    session.submit(0, 1)
    armed.set()
    answers = []
    shorter = threading.Thread(target=lambda: answers.append(session.submit(1, 3)))
    shorter.start()
    assert stalled.wait(30)
    longer = create_app(session.witness).test_client().post(
        "/add-checkpoint", data=session.log.submission(1, 5)
    )
    go_on.set()
    shorter.join(30)
    cosignatures(session, longer, 5)
    (answer,) = answers
    assert (answer.status_code, answer.data) == (409, b"5\n")
    assert b"\xe2\x80\x94" not in answer.data
    assert session.size() == 5
    _, checkpoint = parse_signed_checkpoint(session.monitor().data)
    assert checkpoint.root == session.log.root(5)


def test_of_two_first_submissions_at_once_that_fork_one_is_cosigned_and_the_log_is_convicted(tmp_path):
    both_checked = threading.Barrier(2, timeout=30)
    waits = threading.Semaphore(2)

    def meet(name: str) -> None:
        if name == CHECKED and waits.acquire(blocking=False):
            both_checked.wait()

    session = Session(tmp_path, reach=meet)
    bodies = [session.log.submission(0, 4), session.log.submission(0, 4, root=HASH)]
    answers = [None, None]

    def send(which: int) -> None:
        client = create_app(session.witness).test_client()
        answers[which] = client.post("/add-checkpoint", data=bodies[which])

    threads = [threading.Thread(target=send, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert len(session.witness.store.evidence()) == 1


def test_a_request_that_loses_every_race_is_told_to_try_again(tmp_path):
    session = Session(tmp_path)
    session.submit(0, 3)
    other = Witness(session.witness.store, session.signers, clock=session.clock, reach=lambda name: None)
    overtaken = []

    def overtake(name: str) -> None:
        if name == CHECKED:
            overtaken.append(other.add_checkpoint(session.log.submission(3, 3)).status)

    session.start(overtake)
    response = session.submit(3, 3)
    assert (response.status_code, response.data[:4]) == (503, b"Busy")
    assert overtaken == [200] * MAX_ATTEMPTS


# --- failures


def test_a_clock_that_went_back_is_503_until_it_has_caught_up(session):
    session.submit(0, 3)
    session.clock.now = NOW - 1
    response = session.submit(3, 4)
    assert (response.status_code, response.data[:11]) == (503, b"ClockBehind")
    assert response.headers["Retry-After"] == "5"
    assert session.submit(0, 4).data == b"3\n"  # that much is true at any time
    session.clock.now = NOW
    cosignatures(session, session.submit(3, 4), 4)


def test_after_a_failed_write_every_submission_is_503_and_monitors_still_read(tmp_path):
    session = Session(tmp_path)
    first = session.submit(0, 3)

    def fail(name: str) -> None:
        if name == BEFORE_COMMIT:
            raise OSError("the disk is gone")

    session.start(fail)
    failed = session.submit(3, 5)
    assert (failed.status_code, failed.data[:8]) == (503, b"Poisoned")
    assert b"\xe2\x80\x94" not in failed.data
    for old, new in ((3, 5), (3, 3), (0, 1)):
        assert session.submit(old, new).status_code == 503
    assert session.client.get("/readyz").status_code == 503
    assert session.client.get("/livez").status_code == 200
    assert session.monitor().data.endswith(first.data)

    session.start()
    assert session.client.get("/readyz").status_code == 200
    assert session.submit(1, 2).data == b"3\n"
    cosignatures(session, session.submit(3, 5), 5)


def test_every_hook_is_reached_once_a_cosigned_request_in_their_order(tmp_path):
    reached = []
    session = Session(tmp_path, reach=reached.append)
    session.submit(0, 3)
    assert tuple(reached) == HOOKS
    session.submit(0, 3)  # a refusal passes none
    assert tuple(reached) == HOOKS


# --- the rest of the house


def test_about_names_the_witness_its_vkeys_and_its_endpoints(session):
    response = session.client.get("/")
    assert response.content_type == "text/plain; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    for text in (NAME, *(str(vkey) for vkey in session.vkeys), "/add-checkpoint", "Logs followed: 1"):
        assert text in response.text


def test_keys_of_another_witness_are_refused_at_the_door(session):
    path = session.directory.key_file("mldsa44")
    path.unlink()
    path.write_bytes(bytes(32))
    path.chmod(0o600)
    with pytest.raises(StoreError) as caught:
        open_witness(session.directory)
    assert caught.value.name == "KeyMismatch"
