from __future__ import annotations

from hashlib import sha256

import pytest

from ktlog.errors import EncodingError, Invalid, UsageError
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    SignatureLine,
    Vkey,
    format_note,
    format_signature_line,
    open_note,
    parse_note,
    parse_signature_lines,
    parse_vkey,
    sign_checkpoint,
    signer_from_seed,
    verify_line,
)

ALGORITHMS = (ED25519, COSIGNATURE_ED25519, COSIGNATURE_MLDSA44)
CHECKPOINT = Checkpoint("keys.example.com", 5, bytes(range(32)))
TEXT = format_checkpoint(CHECKPOINT)
SIGNERS = {algorithm: signer_from_seed("keys.example.com", algorithm, b"s" * 32) for algorithm in ALGORITHMS}
LINE = "— a.example AAAAAAA=\n"


def name_of(caught):
    return caught.value.name


def test_the_specifications_example():
    vkey = parse_vkey("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
    note = parse_note(
        "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Z"
        "tg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n".encode()
    )
    (verified,) = open_note(note, [vkey])
    assert verified.vkey == vkey
    assert note.text == b"This is an example message.\n"


# -- the frame


def test_the_text_ends_at_the_last_empty_line():
    note = parse_note(f"first\n\nsecond\n\n{LINE}".encode())
    assert note.text == b"first\n\nsecond\n"
    assert parse_note(f"first\n\n\n{LINE}".encode()).text == b"first\n\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"text\n",
        b"text\n\n",
        f"text\n{LINE}".encode(),
        f"\n{LINE}".encode(),
        f"text\n\n{LINE}".encode()[:-1],
        f"text\n\n{LINE}\n".encode(),
        f"text\r\n\n{LINE}".encode(),
        f"te\0xt\n\n{LINE}".encode(),
        f"te\txt\n\n{LINE}".encode(),
        b"te\xffxt\n\n" + LINE.encode(),
        b"text\n\n- a.example AAAAAAA=\n",
        "text\n\n—a.example AAAAAAA=\n".encode(),
        "text\n\n— a.example  AAAAAAA=\n".encode(),
        "text\n\n— a.example AAAAAAA= \n".encode(),
        "text\n\n— a.example\n".encode(),
        "text\n\n— a+b AAAAAAA=\n".encode(),
        "text\n\n— a\u00a0b AAAAAAA=\n".encode(),
        "text\n\n—  AAAAAAA=\n".encode(),
        "text\n\n— a.example AAAAAA==\n".encode(),
        "text\n\n— a.example AAAAAAA\n".encode(),
        "text\n\n— a.example AAAAAAB=\n".encode(),
    ],
)
def test_what_is_no_note_is_refused(data):
    with pytest.raises(EncodingError) as caught:
        parse_note(data)
    assert name_of(caught) == "BadNote"


def test_a_text_that_is_only_a_newline_is_a_note():
    assert parse_note(f"\n\n{LINE}".encode()).text == b"\n"


def test_the_limits():
    lines = "".join(f"— a.example/{number} AAAAAAA=\n" for number in range(101)).encode()
    hundred = lines[: lines.rindex("—".encode())]
    assert len(parse_note(b"text\n\n" + hundred).signatures) == 100
    assert len(parse_signature_lines(hundred)) == 100
    with pytest.raises(EncodingError):
        parse_note(b"text\n\n" + lines)
    room = (1 << 20) - len(LINE.encode()) - 2
    assert parse_note(b"x" * room + b"\n\n" + LINE.encode())
    with pytest.raises(EncodingError):
        parse_note(b"x" * (room + 1) + b"\n\n" + LINE.encode())


def test_one_key_signs_once():
    twice = "— a.example AAAAAAA=\n— a.example AAAAAAE=\n".encode()
    for parse, data in ((parse_note, b"text\n\n" + twice), (parse_signature_lines, twice)):
        with pytest.raises(EncodingError) as caught:
            parse(data)
        assert name_of(caught) == "DuplicateSignature"
    # Another name, or another key id, is another key.
    assert len(parse_signature_lines("— a.example AAAAAAA=\n— b.example AAAAAAA=\n".encode())) == 2
    assert len(parse_signature_lines("— a.example AAAAAAA=\n— a.example AAAAAQA=\n".encode())) == 2


def test_signature_lines_stand_alone():
    (line,) = parse_signature_lines(LINE.encode())
    assert line == SignatureLine("a.example", bytes(4), b"\0")
    assert format_signature_line(line) == LINE.encode()
    for data in (b"", b"\n", LINE.encode()[:-1], LINE.encode() + b"\n"):
        with pytest.raises(EncodingError):
            parse_signature_lines(data)


@pytest.mark.parametrize(
    "line",
    [
        SignatureLine("", bytes(4), b"x"),
        SignatureLine("a b", bytes(4), b"x"),
        SignatureLine("a\nb", bytes(4), b"x"),
        SignatureLine("a", bytes(3), b"x"),
        SignatureLine("a", bytes(4), b""),
        SignatureLine("\ud800", bytes(4), b"x"),
    ],
)
def test_lines_that_cannot_be_written(line):
    with pytest.raises(EncodingError):
        format_signature_line(line)
    with pytest.raises(EncodingError):
        format_note(Note(b"text\n", (line,)))


@pytest.mark.parametrize("text", [b"", b"text", b"a\n\nb"])
def test_notes_that_cannot_be_written(text):
    with pytest.raises(EncodingError):
        format_note(Note(text, parse_signature_lines(LINE.encode())))
    with pytest.raises(EncodingError):
        format_note(Note(b"text\n", ()))


# -- keys


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_key_id_is_of_name_type_and_key(algorithm):
    vkey = SIGNERS[algorithm].vkey
    material = b"keys.example.com\n" + bytes([algorithm]) + vkey.public_key
    assert vkey.key_id == sha256(material).digest()[:4]
    name, key_id, rest = str(vkey).split("+", 2)
    assert (name, key_id) == ("keys.example.com", vkey.key_id.hex())
    assert rest == encode_base64(bytes([algorithm]) + vkey.public_key)
    assert parse_vkey(str(vkey)) == vkey


def test_bad_vkeys():
    good = str(SIGNERS[ED25519].vkey)
    name, key_id, rest = good.split("+", 2)
    unknown = b"\x02" + SIGNERS[ED25519].vkey.public_key
    unknown_id = sha256(name.encode() + b"\n" + unknown).digest()[:4].hex()
    bad = [
        "", "+", "++", name, f"{name}+{key_id}", f"{name}+{key_id}+", f"+{key_id}+{rest}", f"{name} +{key_id}+{rest}",
        f"other+{key_id}+{rest}", f"{name}+{key_id.upper()}+{rest}", f"{name}+00000000+{rest}",
        f"{name}+{key_id[1:]}+{rest}", f"{name}+{key_id}+{rest}\n", f" {good}", f"{name}+{key_id}+{rest}=",
        f"{name}+{unknown_id}+{encode_base64(unknown)}", f"{name}+{key_id}+AQ==", f"\ud800+{key_id}+{rest}",
    ]
    for text in bad:
        with pytest.raises(EncodingError) as caught:
            parse_vkey(text)
        assert name_of(caught) == "BadVkey"


def test_vkeys_that_cannot_be():
    key = SIGNERS[ED25519].vkey.public_key
    for name, algorithm, public_key in [
        ("a", ED25519, b"\1" + bytes(31)),  # small order
        ("a", COSIGNATURE_ED25519, bytes(32)),
        ("a", ED25519, key + b"\0"),
        ("a", COSIGNATURE_MLDSA44, bytes(1311)),
        ("a", 2, key), ("a", 5, key), ("a", 0, key), ("a", 256, key),
        ("", ED25519, key), ("a b", ED25519, key), ("a+b", ED25519, key), ("a\u2003b", ED25519, key),
        ("a\x85b", ED25519, key), ("é" * 128, ED25519, key), ("\udc80", ED25519, key),
    ]:
        with pytest.raises(EncodingError) as caught:
            Vkey(name, algorithm, public_key)
        assert name_of(caught) == "BadVkey"
    assert Vkey("é" * 127, ED25519, key)


def test_seeds():
    with pytest.raises(EncodingError):
        signer_from_seed("a", ED25519, bytes(31))
    with pytest.raises(EncodingError):
        signer_from_seed("a", 2, bytes(32))
    assert signer_from_seed("a", ED25519, bytes(32)).vkey.public_key != bytes(32)
    assert "private" not in repr(SIGNERS[ED25519])


# -- signing and opening


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sign_and_verify(algorithm):
    signer = SIGNERS[algorithm]
    line = signer.sign(TEXT, 1_700_000_000)
    assert verify_line(signer.vkey, TEXT, line) == (0 if algorithm == ED25519 else 1_700_000_000)
    for changed in (
        TEXT.replace(b"\n5\n", b"\n6\n"),
        TEXT.replace(b"keys", b"keyz"),
        format_checkpoint(Checkpoint("keys.example.com", 5, bytes(32))),
        TEXT[:-1],
        b"",
    ):
        with pytest.raises(Invalid) as caught:
            verify_line(signer.vkey, changed, line)
        assert name_of(caught) == "BadSignature"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_mutated_signature_is_refused(algorithm):
    signer = SIGNERS[algorithm]
    line = signer.sign(TEXT, 1_700_000_000)
    blobs = [b"x", line.blob[:-1], line.blob + b"\0"]
    for place in {0, 7, 8, 9, len(line.blob) // 2, len(line.blob) - 1}:
        blob = bytearray(line.blob)
        blob[place] ^= 0x80
        blobs.append(bytes(blob))
    for blob in blobs:
        with pytest.raises(Invalid):
            verify_line(signer.vkey, TEXT, SignatureLine(line.name, line.key_id, blob))


def test_a_line_is_verified_for_its_own_key_only():
    line = SIGNERS[ED25519].sign(TEXT, 0)
    for vkey in (SIGNERS[COSIGNATURE_ED25519].vkey, signer_from_seed("other", ED25519, b"s" * 32).vkey):
        with pytest.raises(Invalid):
            verify_line(vkey, TEXT, line)


def test_mldsa_signs_its_name_and_plain_ed25519_does_not():
    for algorithm, holds in ((ED25519, True), (COSIGNATURE_ED25519, True), (COSIGNATURE_MLDSA44, False)):
        other = signer_from_seed("other.example", algorithm, b"s" * 32).vkey
        line = SIGNERS[algorithm].sign(TEXT, 9)
        renamed = SignatureLine(other.name, other.key_id, line.blob)
        if holds:
            verify_line(other, TEXT, renamed)
        else:
            with pytest.raises(Invalid):
                verify_line(other, TEXT, renamed)


def test_extension_lines():
    extended = TEXT + b"extension\n"
    with pytest.raises(EncodingError) as caught:
        SIGNERS[COSIGNATURE_MLDSA44].sign(extended, 1)
    assert name_of(caught) == "BadCheckpoint"
    for algorithm in (ED25519, COSIGNATURE_ED25519):
        line = SIGNERS[algorithm].sign(extended, 1)
        verify_line(SIGNERS[algorithm].vkey, extended, line)
        with pytest.raises(Invalid):
            verify_line(SIGNERS[algorithm].vkey, TEXT, line)
    # The format leaves them out of what it signs; a foreign log may have some.
    verify_line(SIGNERS[COSIGNATURE_MLDSA44].vkey, extended, SIGNERS[COSIGNATURE_MLDSA44].sign(TEXT, 1))


def test_only_checkpoints_are_cosigned():
    for algorithm in (COSIGNATURE_ED25519, COSIGNATURE_MLDSA44):
        with pytest.raises(EncodingError):
            SIGNERS[algorithm].sign(b"free text\n", 1)
        for time in (-1, 2**63):
            with pytest.raises(EncodingError):
                SIGNERS[algorithm].sign(TEXT, time)
    verify_line(SIGNERS[ED25519].vkey, b"free text\n", SIGNERS[ED25519].sign(b"free text\n", 1))


def test_opening_ignores_strangers_and_is_spoilt_by_one_bad_line_of_a_friend():
    note = parse_note(sign_checkpoint(CHECKPOINT, SIGNERS.values(), 7))
    vkeys = [signer.vkey for signer in SIGNERS.values()]
    assert [item.vkey for item in open_note(note, vkeys)] == vkeys
    assert [item.timestamp for item in open_note(note, vkeys)] == [0, 7, 7]
    assert [item.vkey for item in open_note(note, vkeys[1:2])] == vkeys[1:2]
    assert open_note(note, []) == ()
    assert len(open_note(note, vkeys + vkeys)) == 3

    bad = SignatureLine(note.signatures[0].name, note.signatures[0].key_id, bytes(64))
    spoilt = Note(note.text, (bad, *note.signatures[1:]))
    assert len(open_note(spoilt, vkeys[1:])) == 2
    with pytest.raises(Invalid) as caught:
        open_note(spoilt, vkeys)
    assert name_of(caught) == "BadSignature"


def test_a_shared_name_or_key_id_alone_is_a_stranger():
    vkey = SIGNERS[ED25519].vkey
    line = SIGNERS[ED25519].sign(TEXT, 0)
    for stranger in (SignatureLine("other", vkey.key_id, line.blob), SignatureLine(vkey.name, b"none", line.blob)):
        assert open_note(Note(TEXT, (stranger,)), [vkey]) == ()


def test_two_known_keys_of_one_name_and_key_id_are_ambiguous():
    """Key ids are 4 bytes: two keys that share one are found in seconds, so fake the collision."""
    one, two = SIGNERS[ED25519].vkey, signer_from_seed("keys.example.com", ED25519, b"t" * 32).vkey
    two.__dict__["key_id"] = one.key_id
    with pytest.raises(UsageError):
        open_note(Note(TEXT, (SIGNERS[ED25519].sign(TEXT, 0),)), [one, two])
