"""Asking witnesses: honest ones, slow ones, and ones that answer anything at all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from ktlog.errors import PolicyUnmet, StoreError, Unreachable
from ktlog.operator.witnessing import WitnessPeer, check_confirmed, collect_cosignatures, format_request, peers_of
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.note import COSIGNATURE_ED25519, SignatureLine, format_signature_line, sign_checkpoint
from ktlog.tlog.policy import parse_policy
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_consistency, root_hash
from tests.operator_world import (
    NOW,
    ORIGIN,
    WITNESS_NAMES,
    Clock,
    FakeWitness,
    Network,
    log_signers,
    respond,
    witness_policy,
)
from witness.decide import parse_request

LEAVES = [hash_leaf(b"entry %d" % index) for index in range(40)]
READ = leaf_reader(LEAVES)
URL = f"https://{WITNESS_NAMES[0]}/add-checkpoint"
SIZE = 20


def text_of(size: int) -> bytes:
    return format_checkpoint(Checkpoint(ORIGIN, size, root_hash(size, READ)))


def conflict(body: bytes, content_type: str = "text/x.tlog.size"):
    return respond(409, body, content_type)


class Round:
    """One witness, and a log that asks it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.witness = FakeWitness(WITNESS_NAMES[0], 10, self.clock)
        self.network = Network({URL: self.witness})
        self.peer = peers_of(witness_policy([self.witness], 1))[0]
        self.proved: list[tuple[int, int]] = []

    def prove(self, old_size: int, size: int) -> list[bytes]:
        self.proved.append((old_size, size))
        return prove_consistency(old_size, size, READ)

    def ask(self, size: int = SIZE, *peers: WitnessPeer):
        note = sign_checkpoint(Checkpoint(ORIGIN, size, root_hash(size, READ)), log_signers(), self.clock())
        with ThreadPoolExecutor(3) as pool:
            return collect_cosignatures(
                self.network, peers or (self.peer,), note, text_of(size), size, self.prove, pool, self.clock
            )

    def answer(self, *responses) -> None:
        """Answer with these, in turn."""
        left = list(responses)
        self.network.answers[URL] = lambda body: left.pop(0)

    def failure(self, size: int = SIZE) -> str:
        """The stable name of what went wrong; nothing was counted."""
        cosigned = self.ask(size)
        assert cosigned.verified == ()
        assert set(cosigned.failures) == {self.peer.url}
        assert self.peer.failure == cosigned.failures[self.peer.url]
        return self.peer.failure.partition(":")[0]


@pytest.fixture
def asked() -> Round:
    return Round()


# --- an honest witness


def test_a_first_answer(asked):
    cosigned = asked.ask()
    assert [one.vkey for one in cosigned.verified] == [signer.vkey for signer in asked.witness.signers]
    assert {one.timestamp for one in cosigned.verified} == {NOW}
    assert (cosigned.failures, asked.peer.failure, asked.peer.size) == ({}, "", SIZE)
    ((url, body),) = asked.network.asked
    assert url == URL
    assert body.startswith(b"old 0\n\n" + ORIGIN.encode() + b"\n20\n")
    assert asked.proved == []


def test_growth_comes_with_a_proof_and_the_same_size_without(asked):
    for size in (7, 7, 20, 32, 33, 40):
        assert len(asked.ask(size).verified) == 2
        asked.clock.now += 60
    assert asked.proved == [(7, 20), (20, 32), (32, 33), (33, 40)]
    requests = [parse_request(body) for _, body in asked.network.asked]
    assert [request.old_size for request in requests] == [0, 7, 7, 20, 32, 33]
    assert len(requests) == 6  # nothing was asked twice
    assert asked.witness.refusals == []


def test_a_witness_that_knows_more_than_we_remember_is_brought_along(asked):
    asked.ask(7)
    asked.peer.size = 0  # the log's process was restarted
    assert len(asked.ask(20).verified) == 2
    assert asked.witness.refusals == ["SizeConflict"]
    assert asked.proved == [(7, 20)]
    asked.peer.size = 0
    assert len(asked.ask(20).verified) == 2
    assert asked.proved == [(7, 20)]  # the size it knows is ours: no proof


def test_a_request_byte_by_byte():
    """The shape of the example in C2SP tlog-witness, "add-checkpoint"."""
    body = format_request(20852014, [b"\x01" * 32, b"\xff" * 32], b"example.com/x\n1\n")
    assert body == (
        b"old 20852014\nAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n"
        b"//////////////////////////////////////////8=\n\nexample.com/x\n1\n"
    )
    assert format_request(0, [], b"x") == b"old 0\n\nx"


# --- refusals and nonsense


@pytest.mark.parametrize("status", [201, 204, 302, 400, 403, 404, 413, 422, 429, 500, 503])
def test_any_other_status_is_a_failure_with_its_words(asked, status):
    asked.answer(respond(status, b"NotYou: go away\n" + b"x" * 10_000))
    assert asked.failure() == "WitnessRefused"
    assert f"answered {status}: NotYou: go away" in asked.peer.failure
    assert len(asked.peer.failure) < 400
    assert asked.peer.size == 0


@pytest.mark.parametrize(("body", "content_type"), [
    (b"<html>\n<head><title>502 Bad Gateway</title></head>", "text/html"),
    (b"\n <!DOCTYPE html><title>502", "text/plain"), (b"Bad Gateway", "text/html; charset=utf-8"), (b"", "text/plain"),
])
def test_a_page_that_a_proxy_made_up_is_its_status(asked, body, content_type):
    asked.answer(respond(502, body, content_type))
    asked.failure()
    assert asked.peer.failure == f"WitnessRefused: {WITNESS_NAMES[0]} answered 502"


def test_of_a_witness_s_words_one_short_line_is_kept(asked):
    asked.answer(respond(403, b"LogFrozen: two histories\nand more\n"), respond(403, b"x" * 500))
    assert asked.failure() and asked.peer.failure.endswith(" answered 403: LogFrozen: two histories")
    assert asked.failure() and len(asked.peer.failure) < 200


@pytest.mark.parametrize(("number", "failures", "words"), [
    (1, {"https://w2.witness.example": "WitnessRefused: w2.witness.example answered 502", "https://w3.witness.example/": "Timeout: too late"},
     "WitnessRefused: w2.witness.example answered 502; w3.witness.example: Timeout: too late: 1 of the 2 witnesses needed"
     " confirmed that this is no older copy of the log"),
    (0, {}, "nobody else can be asked: 0 of the 2 witnesses needed confirmed that this is no older copy of the log"),
    (2, {"https://w3.witness.example": "Timeout: too late"}, None),
])
def test_too_few_that_confirm_are_named_first_and_then_counted(number, failures, words):
    witnesses = [FakeWitness(name, 10 * seed, Clock()) for seed, name in enumerate(WITNESS_NAMES, 1)]
    confirmed = tuple(signer.vkey for witness in witnesses[:number] for signer in witness.signers), failures
    if words is None:
        check_confirmed(witness_policy(witnesses, 2), confirmed, "witnesses", "the log")
        return
    with pytest.raises(PolicyUnmet, match="NotCompared") as raised:
        check_confirmed(witness_policy(witnesses, 2), confirmed, "witnesses", "the log")
    assert (raised.value.message, raised.value.have, raised.value.need) == (words, number, 2)


def test_words_that_are_no_text(asked):
    asked.answer(respond(500, b"\xff\xfe\x00"))
    assert asked.failure() == "WitnessRefused"


@pytest.mark.parametrize("response", [
    conflict(b""), conflict(b"7"), conflict(b"7\n\n"), conflict(b"\n"), conflict(b"07\n"), conflict(b"+7\n"),
    conflict(b"-7\n"), conflict(b"7 \n"), conflict(b"1_0\n"), conflict("٧\n".encode()), conflict(b"\xff\n"),
    conflict(b"7.0\n"), conflict(b"9" * 5000 + b"\n"), conflict(b"7\n", "text/plain"), conflict(b"7\n", ""),
    conflict(b"seven\n"), conflict(b"7\r\n"),
], ids=lambda response: repr(response.body[:12]))
def test_a_409_that_does_not_name_a_size(asked, response):
    asked.answer(response)
    assert asked.failure() == "WitnessRefused"
    assert len(asked.network.asked) == 1


def test_a_409_beyond_our_own_size_is_an_alarm(asked):
    asked.answer(conflict(b"21\n"))
    assert asked.failure() == "WitnessAhead"
    assert asked.peer.size == 0
    assert asked.proved == []


@pytest.mark.parametrize("lie", [b"0\n", b"5\n", b"20\n"])
def test_a_witness_that_changes_its_mind_is_asked_no_third_time(asked, lie):
    asked.answer(conflict(lie), conflict(b"6\n"))
    assert asked.failure() == "WitnessRefused"
    assert len(asked.network.asked) == 2
    asked.network.answers[URL] = asked.witness
    assert len(asked.ask().verified) == 2  # and it may come back any time


@pytest.mark.parametrize(("error", "name"), [
    (Unreachable("Timeout", "too slow"), "Timeout"), (Unreachable("TlsFailed", "who?"), "TlsFailed"),
])
def test_nobody_there(asked, error, name):
    def fail(body):
        raise error

    asked.network.answers[URL] = fail
    assert asked.failure() == name


def test_a_proof_that_cannot_be_made_costs_that_witness_alone(asked):
    asked.ask(7)

    def fail(old_size, size):
        raise StoreError("MissingTile", "tile/1/000.p/1 is missing")

    asked.prove = fail
    assert asked.failure() == "MissingTile"


# --- bad cosignatures


def good_lines(asked: Round, size: int = SIZE, time: int = NOW) -> bytes:
    return asked.witness.cosign(text_of(size), time)


def flipped(lines: bytes, at: int) -> bytes:
    changed = bytearray(lines)
    changed[at] = ord("A") if changed[at] != ord("A") else ord("B")
    return bytes(changed)


@pytest.mark.parametrize("body", [
    b"", b"\n", b"\n\n", b"not a line\n", b"\xff\xff\n", b"{}", b"x" * 2_000_000 + b"\n",
    "— w1.witness.example\n".encode(), "— w1.witness.example AAAA\n".encode(),
    "— w1.witness.example AAAAAAA=\n".encode(), "— w1.witness.example not/base64!\n".encode(),
    "— w1.witness.example AAAAAAAA\n".encode() * 101,
], ids=lambda body: repr(body[:24]))
def test_a_200_with_garbage(asked, body):
    asked.answer(respond(200, body))
    assert asked.failure() in ("BadNote", "UnknownCosigner", "DuplicateSignature")


def test_lines_without_their_last_newline(asked):
    asked.answer(respond(200, good_lines(asked)[:-1]))
    assert asked.failure() == "BadNote"


def test_the_same_line_twice(asked):
    asked.answer(respond(200, good_lines(asked) * 2))
    assert asked.failure() == "DuplicateSignature"


@pytest.mark.parametrize("which", [0, 1])
def test_a_known_key_s_bad_line_spoils_the_answer(asked, which):
    lines = good_lines(asked).splitlines(keepends=True)
    lines[which] = flipped(lines[which], -20)
    asked.answer(respond(200, b"".join(lines)))
    assert asked.failure() == "BadSignature"


@pytest.mark.parametrize("size", [19, 21])
def test_a_cosignature_of_another_tree(asked, size):
    asked.answer(respond(200, good_lines(asked, size)))
    assert asked.failure() == "BadSignature"


def test_a_cosignature_of_another_root_of_our_size(asked):
    text = format_checkpoint(Checkpoint(ORIGIN, SIZE, b"\x2a" * 32))
    asked.answer(respond(200, asked.witness.cosign(text, NOW)))
    assert asked.failure() == "BadSignature"


def test_a_line_cut_short(asked):
    signer = asked.witness.signers[0]
    line = signer.sign(text_of(SIZE), NOW)
    short = SignatureLine(line.name, line.key_id, line.blob[:-1])
    asked.answer(respond(200, format_signature_line(short)))
    assert asked.failure() == "BadSignature"


def test_another_witness_s_lines_count_for_nobody_here(asked):
    other = FakeWitness(WITNESS_NAMES[1], 20, asked.clock)
    asked.answer(respond(200, other.cosign(text_of(SIZE), NOW)))
    assert asked.failure() == "UnknownCosigner"
    # Nor the log's own line, sent back by a lazy witness; nor our witness's name over another key.
    own = format_signature_line(log_signers()[1].sign(text_of(SIZE), NOW))
    asked.answer(respond(200, own))
    assert asked.failure() == "UnknownCosigner"
    stranger = FakeWitness(WITNESS_NAMES[0], 99, asked.clock)
    asked.answer(respond(200, stranger.cosign(text_of(SIZE), NOW)))
    assert asked.failure() == "UnknownCosigner"


def test_lines_of_keys_that_we_do_not_know_are_ignored(asked):
    """A witness may add a key at any time. Source: C2SP tlog-witness, "MUST ignore ... unknown keys"."""
    new_key = FakeWitness(WITNESS_NAMES[0], 99, asked.clock)
    both = new_key.cosign(text_of(SIZE), NOW) + good_lines(asked)
    asked.answer(respond(200, both))
    cosigned = asked.ask()
    assert [one.vkey for one in cosigned.verified] == list(asked.peer.vkeys)
    assert cosigned.failures == {}


def test_one_of_two_keys_is_all_we_get(asked):
    lines = good_lines(asked).splitlines(keepends=True)
    asked.answer(respond(200, lines[0]))
    cosigned = asked.ask()
    assert [one.vkey.algorithm for one in cosigned.verified] == [COSIGNATURE_ED25519]
    assert not witness_policy([asked.witness], 1).satisfied([one.vkey for one in cosigned.verified])


@pytest.mark.parametrize(("offset", "counts"), [(0, True), (300, True), (-300, True), (301, False), (-301, False),
                                                (10**9, False), (-NOW, False)])
def test_a_cosignature_that_clients_would_not_count(asked, offset, counts):
    """Clients drop what is dated more than 300 seconds ahead; a checkpoint published with it would fail them."""
    asked.answer(respond(200, good_lines(asked, time=NOW + offset)))
    if counts:
        assert len(asked.ask().verified) == 2
    else:
        assert asked.failure() == "WitnessClock"
        assert asked.peer.size == 0


# --- many at once


def test_a_broken_one_and_a_slow_one_cost_only_their_own_cosignatures(asked):
    witnesses = [FakeWitness(name, 10 * number, asked.clock) for number, name in enumerate(WITNESS_NAMES, 1)]
    peers = peers_of(witness_policy(witnesses, 2))
    together = threading.Barrier(3, timeout=20)

    def meet(answer):
        def answered(body):
            together.wait()  # all three are asked at once, or this never ends
            return answer(body)
        return answered

    urls = [f"{witness.url}/add-checkpoint" for witness in witnesses]
    asked.network.answers = {
        urls[0]: meet(witnesses[0]), urls[1]: meet(lambda body: respond(500)), urls[2]: meet(witnesses[2]),
    }
    cosigned = asked.ask(SIZE, *peers)
    assert {one.vkey.name for one in cosigned.verified} == {WITNESS_NAMES[0], WITNESS_NAMES[2]}
    assert set(cosigned.failures) == {witnesses[1].url}
    assert [peer.size for peer in peers] == [SIZE, 0, SIZE]


def test_peers_are_witnesses_with_a_url_one_for_all_its_keys():
    clock = Clock()
    one, two = (FakeWitness(name, seed, clock) for name, seed in zip(WITNESS_NAMES[:2], (10, 20), strict=True))
    lines = [
        f"witness a {one.signers[0].vkey} https://w1.witness.example/",
        f"witness b {one.signers[1].vkey} https://w1.witness.example/",
        f"witness c {two.signers[0].vkey}",
        "group w all a b", "quorum w",
    ]
    (peer,) = peers_of(parse_policy("\n".join(lines).encode() + b"\n"))
    assert (peer.url, peer.size) == ("https://w1.witness.example/", 0)
    assert [vkey.algorithm for vkey in peer.vkeys] == [4, 6]


def test_a_trailing_slash_makes_no_second_one(asked):
    asked.peer.url += "/"
    asked.ask()
    assert [url for url, _ in asked.network.asked] == [URL]


def test_the_plain_text_type_is_what_is_posted(asked):
    posted = {}
    original = asked.network

    def post(url, body, headers):
        posted.update(headers)
        return original.post(url, body)

    asked.network = SimpleNamespace(post=post)
    assert len(asked.ask().verified) == 2
    assert posted == {"Content-Type": "text/plain"}
