"""The witness's judgement, case by case; every status code of tlog-witness v1.1."""

from __future__ import annotations

import base64

import pytest

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import format_evidence, parse_evidence, verify_evidence
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Note, SignatureLine, format_note, signer_from_seed
from ktlog.tlog.tree import EMPTY_ROOT
from tests.witness_log import NOW, Log, join
from witness.decide import Accept, Cosigned, Refuse, decide, parse_request

LOG = Log()
HASH = b"\x2a" * 32


def cosigned(size: int, log: Log = LOG, *, root: bytes | None = None, time: int = NOW) -> Cosigned:
    """A record as the witness would hold it."""
    root = log.root(size) if root is None else root
    return Cosigned(7, Checkpoint(log.origin, size, root), time, log.note(size, root=root))


def judge(body: bytes, latest: Cosigned | None, *, vkeys=LOG.vkeys, now: int = NOW):
    return decide(parse_request(body), latest, vkeys, now)


def refused(body: bytes, latest: Cosigned | None, **options) -> tuple[int, str]:
    judgement = judge(body, latest, **options)
    assert isinstance(judgement, Refuse)
    return judgement.status, judgement.reason


# --- what is accepted


@pytest.mark.parametrize("size", [0, 1, 2, 5, 300])
def test_first_contact_accepts_any_size_from_old_0(size):
    judgement = judge(LOG.submission(0, size), None)
    assert judgement == Accept(
        expected_revision=0,
        checkpoint=Checkpoint(LOG.origin, size, LOG.root(size)),
        text=format_checkpoint(Checkpoint(LOG.origin, size, LOG.root(size))),
        log_signatures=judgement.log_signatures,
        time=NOW,
    )
    assert [one.vkey for one in judgement.log_signatures] == list(LOG.vkeys)


def test_growth_with_a_proof_is_accepted_and_rests_on_the_record_it_was_judged_by():
    for old in range(1, 10):
        for new in range(old, 12):
            judgement = judge(LOG.submission(old, new), cosigned(old))
            assert isinstance(judgement, Accept), (old, new)
            assert judgement.expected_revision == 7


def test_the_same_checkpoint_again_is_accepted_with_the_time_of_now():
    judgement = judge(LOG.submission(5, 5), cosigned(5), now=NOW + 60)
    assert isinstance(judgement, Accept)
    assert judgement.time == NOW + 60


def test_a_log_that_was_empty_may_grow_without_a_proof():
    assert isinstance(judge(LOG.submission(0, 4), cosigned(0, root=EMPTY_ROOT)), Accept)


def test_one_trusted_key_is_enough_and_unknown_lines_are_ignored_and_not_kept():
    stranger = SignatureLine("stranger.example", b"\x01\x02\x03\x04", b"\x00" * 64)
    judgement = judge(LOG.submission(0, 3, extra=(stranger,)), None, vkeys=LOG.vkeys[1:])
    assert isinstance(judgement, Accept)
    assert [one.vkey for one in judgement.log_signatures] == [LOG.vkeys[1]]


@pytest.mark.parametrize("algorithm", [ED25519, COSIGNATURE_MLDSA44])
def test_a_log_whose_key_has_another_name_is_convicted_too(algorithm):
    log = Log("go.sum database tree", key_name="sum.example.org", algorithms=(algorithm,))
    refusal = judge(log.submission(3, 3, root=HASH), cosigned(3, log), vkeys=log.vkeys)
    evidence = parse_evidence(format_evidence(refusal.evidence))
    verify_evidence(evidence, *log.vkeys, origin=log.origin)
    # The name shows nothing, so somebody must know the key, and as this log's.
    for known in ((), log.vkeys):
        with pytest.raises(Invalid) as caught:
            verify_evidence(evidence, *known)
        assert caught.value.name == "WrongLog"


def test_the_key_name_may_differ_from_the_origin():
    log = Log("go.sum database tree", key_name="sum.example.org", algorithms=(ED25519,))
    assert isinstance(judge(log.submission(0, 3), None, vkeys=log.vkeys), Accept)


def test_an_ml_dsa_key_alone_can_speak_for_a_log():
    log = Log(algorithms=(COSIGNATURE_MLDSA44,))
    assert isinstance(judge(log.submission(0, 3), None, vkeys=log.vkeys), Accept)


# --- what is refused


def test_404_for_an_origin_without_keys():
    assert refused(LOG.submission(0, 3), None, vkeys=()) == (404, "UnknownOrigin")


def test_403_without_a_trusted_signature():
    other = Log(seed=2)
    assert refused(other.submission(0, 3), None) == (403, "NoTrustedSignature")


@pytest.mark.parametrize("which", [0, 1], ids=["ed25519", "mldsa44"])
def test_403_when_one_trusted_key_s_line_is_bad_even_if_the_other_is_good(which):
    request = parse_request(LOG.submission(0, 3))
    lines = list(request.note.signatures)
    bad = bytearray(lines[which].blob)
    bad[-1] ^= 1
    lines[which] = SignatureLine(lines[which].name, lines[which].key_id, bytes(bad))
    body = join(0, [], format_note(Note(request.note.text, tuple(lines))))
    assert refused(body, None) == (403, "BadSignature")


def test_403_when_the_signature_is_of_another_checkpoint():
    request = parse_request(LOG.submission(0, 3))
    text = format_checkpoint(Checkpoint(LOG.origin, 3, HASH))
    body = join(0, [], format_note(Note(text, request.note.signatures)))
    assert refused(body, None) == (403, "BadSignature")


def test_400_for_extension_lines_whether_signed_or_not():
    body = LOG.submission(0, 3, extensions=("map root",))
    assert refused(body, None) == (400, "ExtensionLines")
    only_mldsa = Log(algorithms=(COSIGNATURE_MLDSA44,))
    body = only_mldsa.submission(0, 3, extensions=("not covered",))
    assert refused(body, None, vkeys=only_mldsa.vkeys) == (400, "ExtensionLines")


def test_400_when_old_is_above_the_checkpoint():
    assert refused(LOG.submission(5, 3), cosigned(5)) == (400, "OldAboveSize")
    assert refused(LOG.submission(5, 3), None) == (400, "OldAboveSize")


@pytest.mark.parametrize(
    ("old", "new", "latest", "body"),
    [
        (0, 3, cosigned(3), b"3\n"),
        (2, 5, cosigned(3), b"3\n"),
        (4, 5, cosigned(3), b"3\n"),
        (1, 5, None, b"0\n"),  # first contact begins at nothing
        (2, 2, cosigned(300), b"300\n"),  # a smaller tree
        (1, 2, cosigned(0, root=EMPTY_ROOT), b"0\n"),
    ],
)
def test_409_says_the_size_and_nothing_else(old, new, latest, body):
    judgement = judge(LOG.submission(old, new), latest)
    assert isinstance(judgement, Refuse)
    assert (judgement.status, judgement.reason) == (409, "SizeConflict")
    assert judgement.body == body
    assert judgement.content_type == "text/x.tlog.size"
    assert judgement.evidence is None


@pytest.mark.parametrize(
    ("name", "known", "old", "new", "root", "proof", "status"),
    [
        ("empty tree", None, 0, 0, EMPTY_ROOT, [], 200),
        ("invalid empty root", None, 0, 0, HASH, [], 422),
        ("zero empty root", None, 0, 0, bytes(32), [], 422),
        ("empty tree with proof", None, 0, 0, EMPTY_ROOT, [HASH], 422),
        ("first nonempty tree", None, 0, 1, HASH, [], 200),
        ("first nonempty tree with proof", None, 0, 1, HASH, [HASH], 422),
        ("old size mismatch", 1, 0, 1, HASH, [HASH], 409),
        ("old size greater than new", 1, 1, 0, EMPTY_ROOT, [], 400),
        ("known empty, empty again", 0, 0, 0, EMPTY_ROOT, [], 200),
        ("known empty, other empty root", 0, 0, 0, HASH, [], 422),
    ],
)
def test_zero_sizes(name, known, old, new, root, proof, status):
    latest = None if known is None else cosigned(known, root=HASH if known else EMPTY_ROOT)
    judgement = judge(LOG.submission(old, new, root=root, proof=proof), latest)
    assert (200 if isinstance(judgement, Accept) else judgement.status) == status


def test_422_for_a_missing_a_wrong_and_a_superfluous_proof():
    right = LOG.proof(3, 7)
    latest = cosigned(3)
    for proof in ([], right[:-1], [*right, HASH], [HASH, *right[1:]], right[::-1]):
        assert refused(LOG.submission(3, 7, proof=proof), latest) == (422, "BadConsistencyProof")
    assert refused(LOG.submission(3, 3, proof=[HASH]), latest) == (422, "BadConsistencyProof")
    assert isinstance(judge(LOG.submission(3, 7, proof=right), latest), Accept)


def test_422_for_a_tree_that_rewrites_what_was_cosigned():
    liar = Log(prefix=b"other")  # the same keys, other entries
    judgement = judge(liar.submission(3, 7), cosigned(3))
    assert (judgement.status, judgement.reason) == (422, "BadConsistencyProof")
    assert judgement.evidence is None  # a failed proof convicts nobody


def test_422_and_evidence_for_the_same_size_with_another_root():
    judgement = judge(LOG.submission(5, 5, root=HASH), cosigned(5))
    assert (judgement.status, judgement.reason) == (422, "OtherRoot")
    verify_evidence(judgement.evidence, LOG.vkeys[1])
    assert judgement.evidence.vkey == LOG.vkeys[1]  # ML-DSA-44, the one that policies name


def test_a_fork_convicts_whatever_old_size_was_sent_with_it():
    for old, status in ((0, 409), (2, 409), (9, 400)):
        judgement = judge(LOG.submission(old, 5, root=HASH, proof=[]), cosigned(5))
        assert judgement.status == status
        verify_evidence(judgement.evidence, LOG.vkeys[1])


def test_a_fork_under_two_different_keys_is_refused_but_convicts_neither():
    first, second = Log(algorithms=(ED25519,)), Log(seed=2, algorithms=(ED25519,))
    latest = Cosigned(1, Checkpoint(LOG.origin, 5, LOG.root(5)), NOW, first.note(5))
    judgement = judge(
        second.submission(5, 5, root=HASH), latest, vkeys=first.vkeys + second.vkeys
    )
    assert (judgement.status, judgement.reason, judgement.evidence) == (422, "OtherRoot", None)


def test_503_when_the_clock_is_behind_the_last_cosignature_but_not_when_it_stands_still():
    assert refused(LOG.submission(3, 5), cosigned(3, time=NOW + 1)) == (503, "ClockBehind")
    assert isinstance(judge(LOG.submission(3, 5), cosigned(3, time=NOW)), Accept)
    assert refused(LOG.submission(0, 5), None, now=0) == (503, "ClockBehind")  # time 0 is no statement


# --- what does not parse


GOOD = LOG.submission(3, 7)
NOTE = LOG.note(7)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "BadRequest"),
        (b"old 0\n", "BadRequest"),
        (NOTE, "BadRequest"),
        (b"\n" + NOTE, "BadRequest"),
        (b"old 0\r\n\r\n" + NOTE, "BadOldSize"),
        (b"Old 0\n\n" + NOTE, "BadRequest"),
        (b"old  0\n\n" + NOTE, "BadOldSize"),
        (b"old\t0\n\n" + NOTE, "BadRequest"),
        (b"old 0 \n\n" + NOTE, "BadOldSize"),
        (b"old \n\n" + NOTE, "BadOldSize"),
        (b"old 00\n\n" + NOTE, "BadOldSize"),
        (b"old 03\n\n" + NOTE, "BadOldSize"),
        (b"old +3\n\n" + NOTE, "BadOldSize"),
        (b"old -3\n\n" + NOTE, "BadOldSize"),
        (b"old 1_0\n\n" + NOTE, "BadOldSize"),
        ("old \u0663\n\n".encode() + NOTE, "BadRequest"),
        (b"old 9223372036854775808\n\n" + NOTE, "BadOldSize"),
        (b"old 3\nAAAA\n\n" + NOTE, "BadProofLine"),  # not 32 bytes
        (b"old 3\n\n\n" + NOTE, "BadCheckpoint"),
        (b"old 3\n\n" + NOTE[:-1], "BadNote"),
        (b"old 3\n\n" + NOTE.split(b"\n\n")[0] + b"\n", "BadNote"),
        (b"old 3\n\nexample.com/log\n07\n", "BadNote"),
    ],
)
def test_a_body_of_another_form_is_refused(body, name):
    with pytest.raises(EncodingError) as caught:
        parse_request(body)
    assert caught.value.name == name


def test_63_proof_lines_parse_and_64_do_not():
    assert len(parse_request(join(3, [HASH] * 63, NOTE)).proof) == 63
    with pytest.raises(EncodingError) as caught:
        parse_request(join(3, [HASH] * 64, NOTE))
    assert caught.value.name == "TooManyProofLines"


def other_encoding(text: str) -> str:
    """The same bytes, with the last unused bits set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = text.rstrip("=")
    changed = body[:-1] + alphabet[alphabet.index(body[-1]) + 1] + "=" * (len(text) - len(body))
    assert base64.b64decode(changed, validate=True) == base64.b64decode(text)
    return changed


def test_a_second_encoding_of_the_same_bytes_is_refused_everywhere():
    proof_line = encode_base64(LOG.proof(3, 7)[0])
    root_line = encode_base64(LOG.root(7))
    ed25519_line = next(
        line.split(" ")[2] for line in NOTE.decode().splitlines() if line.startswith("\u2014")
    )
    for text in (proof_line, root_line, ed25519_line):
        assert GOOD.count(text.encode()) == 1
        with pytest.raises(EncodingError):
            parse_request(GOOD.replace(text.encode(), other_encoding(text).encode()))
    parse_request(GOOD)


def test_two_lines_of_one_key_are_refused():
    line = parse_request(GOOD).note.signatures[0]
    body = GOOD + b"\xe2\x80\x94 " + f"{line.name} {encode_base64(line.key_id + line.blob)}\n".encode()
    with pytest.raises(EncodingError) as caught:
        parse_request(body)
    assert caught.value.name == "DuplicateSignature"


def test_a_cosignature_key_can_never_stand_for_the_log():
    """A 0x04 line under the log's name and key material is a line of another key."""
    cosigner = signer_from_seed(LOG.origin, 4, bytes([1]) * 32)
    text = format_checkpoint(Checkpoint(LOG.origin, 3, LOG.root(3)))
    body = join(0, [], format_note(Note(text, (cosigner.sign(text, NOW),))))
    assert refused(body, None) == (403, "NoTrustedSignature")
