"""Every parser of ktlog.tlog: what is formatted parses back, what parses formats back, and garbage is refused.

Garbage is random bytes, and good files with a few bytes changed, which gets further in.
"""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ktlog.errors import EncodingError, KtlogError
from ktlog.tlog import encoding, tiles
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_checkpoint, parse_signed_checkpoint
from ktlog.tlog.cosignature import join_timestamped, split_timestamped
from ktlog.tlog.evidence import Evidence, format_evidence, inconsistent, parse_evidence, two_roots, verify_evidence
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    SignatureLine,
    Vkey,
    format_note,
    open_note,
    parse_note,
    parse_signature_lines,
    parse_vkey,
    sign_checkpoint,
    signer_from_seed,
    verify_line,
)
from ktlog.tlog.policy import Group, LogKey, Policy, Witness, format_policy, parse_policy
from ktlog.tlog.proof import TlogProof, format_proof, parse_proof, verify_proof
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_consistency, prove_inclusion, root_hash

NOW = 1_700_000_000
ORIGIN = "keys.example.com"
ED = signer_from_seed(ORIGIN, ED25519, b"l" * 32)
PQ = signer_from_seed(ORIGIN, COSIGNATURE_MLDSA44, b"l" * 32)
COSIGNERS = [signer_from_seed(f"w{n}.example", COSIGNATURE_ED25519, bytes([n]) * 32) for n in range(8)]
READ = leaf_reader([hash_leaf(b"%d" % number) for number in range(20)])
FORKED = leaf_reader([hash_leaf(b"x%d" % number) for number in range(20)])

hashes = st.binary(min_size=32, max_size=32)
sizes = st.integers(0, 2**63 - 1)
no_surrogates = st.characters(exclude_categories=("Cs",))
lines = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40)
names = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters="+"), min_size=1, max_size=40)
checkpoints = st.builds(Checkpoint, lines, sizes, hashes, st.lists(lines, max_size=3).map(tuple))
signature_lines = st.lists(
    st.builds(SignatureLine, names, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80)),
    min_size=1, max_size=6, unique_by=lambda line: (line.name, line.key_id),
).map(tuple)
note_texts = st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20), min_size=1, max_size=6)
notes = st.builds(
    lambda rows, signed: Note("".join(f"{row}\n" for row in rows).encode(), signed), note_texts, signature_lines
)


def reads_back(parse, unparse, value):
    data = unparse(value)
    assert parse(data) == value
    return data


# -- values survive


@given(st.binary(max_size=100))
def test_base64(data):
    assert encoding.decode_base64(encoding.encode_base64(data), len(data)) == data
    assert encoding.decode_base64url(encoding.encode_base64url(data), len(data)) == data
    assert encoding.encode_base64(data).encode() == b64encode(data)
    assert encoding.encode_base64url(data).encode() == urlsafe_b64encode(data).rstrip(b"=")


@given(st.text(st.sampled_from("AQgw+/-_=\n "), max_size=9))
def test_only_one_base64_text_for_each_value(text):
    for decode, encode in (
        (encoding.decode_base64, encoding.encode_base64), (encoding.decode_base64url, encoding.encode_base64url),
    ):
        try:
            data = decode(text)
        except EncodingError:
            continue
        assert encode(data) == text


@given(st.integers(-5, 2**64) | sizes)
def test_decimals(value):
    if 0 <= value < 2**63:
        assert encoding.parse_decimal(str(value)) == value
    else:
        with pytest.raises(EncodingError):
            encoding.parse_decimal(str(value))


@given(st.text(st.characters(categories=("Nd", "Pc", "Pd")), max_size=6))
def test_decimals_are_ascii(text):
    try:
        value = encoding.parse_decimal(text)
    except EncodingError:
        return
    assert str(value) == text


@given(notes)
def test_notes(note):
    data = reads_back(parse_note, format_note, note)
    assert parse_signature_lines(data[len(note.text) + 1 :]) == note.signatures


@given(names, st.sampled_from((ED25519, COSIGNATURE_ED25519, COSIGNATURE_MLDSA44)), st.binary(min_size=1, max_size=8))
def test_vkeys(name, algorithm, material):
    assume(len(name.encode()) <= 255)
    pattern = (material * 1312)[:1312]
    vkey = Vkey(name, algorithm, pattern if algorithm == COSIGNATURE_MLDSA44 else ED.vkey.public_key)
    reads_back(parse_vkey, str, vkey)


@given(checkpoints)
def test_checkpoints(checkpoint):
    assume(len(checkpoint.origin.encode()) <= 255)
    reads_back(parse_checkpoint, format_checkpoint, checkpoint)


@given(sizes, st.binary(min_size=64, max_size=64))
def test_timestamped_signatures(time, signature):
    assert split_timestamped(join_timestamped(time, signature), 64) == (time, signature)


@given(st.integers(0, 63) | st.just("entries"), sizes, st.integers(1, 256))
def test_tile_paths(level, number, width):
    tile = tiles.Tile(level, number, width)
    reads_back(tiles.parse_tile_path, lambda value: value.path, tile)
    assert tiles.parse_number_path(tiles.number_path(number)) == number


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_bundles(entries):
    assert tiles.parse_bundle(tiles.format_bundle(entries), len(entries)) == entries


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_tiles_between_covers_exactly_the_growth(old, new):
    old, new = sorted((old, new))
    nodes = [node for tile in tiles.tiles_between(old, new) for node in tiles.tile_nodes(tile)]
    assert len(nodes) == len(set(nodes))
    wanted = {(level, index) for level in (0, 8) for index in range(old >> level, new >> level)}
    assert wanted <= set(nodes)
    # Whatever else is written shares a tile with something new.
    assert {(level, index >> 8) for level, index in nodes} == {(level, index >> 8) for level, index in wanted}


@st.composite
def policies(draw):
    octets = st.binary(min_size=1, max_size=8).filter(lambda data: all(byte > 0x20 and byte != 0x7F for byte in data))
    labels = octets.map(lambda data: data.decode("utf-8", "surrogateescape")).filter(lambda text: text != "none")
    urls = st.none() | labels
    count = draw(st.integers(0, 8))
    chosen = draw(st.lists(labels, min_size=count + 3, max_size=count + 3, unique=True))
    witnesses = {
        label: Witness(label, COSIGNERS[n].vkey, draw(urls)) for n, label in enumerate(chosen[:count])
    }
    free, groups = list(witnesses), {}
    for label in chosen[count:]:
        if free:
            members = draw(st.lists(st.sampled_from(free), min_size=1, unique=True))
            groups[label] = Group(label, draw(st.integers(1, len(members))), tuple(members))
            free = [name for name in free if name not in members] + [label]
    logs = draw(st.lists(st.sampled_from((ED, PQ)), max_size=2, unique=True))
    quorum = draw(st.sampled_from(["none", *witnesses, *groups]))
    return Policy(tuple(LogKey(log.vkey, draw(urls)) for log in logs), witnesses, groups, quorum)


@given(policies(), st.sets(st.sampled_from(range(8))), st.data())
def test_policies(policy, cosigned, data):
    reads_back(parse_policy, format_policy, policy)
    vkeys = [COSIGNERS[n].vkey for n in cosigned]
    have, need = policy.shortfall(vkeys)
    assert policy.satisfied(vkeys) == (have >= need)
    # More cosigners never undo a quorum; later ones never age it.
    assert policy.satisfied(vkeys) <= policy.satisfied([signer.vkey for signer in COSIGNERS])
    times = {vkey: data.draw(st.integers(0, 50)) for vkey in vkeys}
    as_of = policy.as_of(times, NOW)
    if policy.quorum != "none" and policy.satisfied(vkeys):
        assert policy.satisfied([vkey for vkey, time in times.items() if time >= as_of])
        assert not policy.satisfied([vkey for vkey, time in times.items() if time > as_of])
    else:
        assert as_of is None


@given(policies(), st.integers(0, 255))
def test_a_policy_that_is_not_splittable_has_no_two_separate_quorums(policy, mask):
    one = [COSIGNERS[n].vkey for n in range(8) if mask >> n & 1]
    other = [COSIGNERS[n].vkey for n in range(8) if not mask >> n & 1]
    if policy.satisfied(one) and policy.satisfied(other):
        assert policy.splittable()


@given(sizes, st.lists(hashes, max_size=63).map(tuple), st.none() | st.binary(min_size=1, max_size=50), checkpoints)
def test_proofs(leaf_index, path, extra, checkpoint):
    assume(len(checkpoint.origin.encode()) <= 255)
    signed = sign_checkpoint(checkpoint, [ED], 0)
    reads_back(parse_proof, format_proof, TlogProof(leaf_index, path, signed, extra))


@given(
    st.sampled_from(("two-roots", "inconsistent")), lines, st.tuples(checkpoints, checkpoints),
    st.lists(hashes, max_size=64).map(tuple),
)
def test_evidence(kind, origin, pair, proof):
    assume(all(len(text.encode()) <= 255 for text in (origin, pair[0].origin, pair[1].origin)))
    signed = tuple(sign_checkpoint(checkpoint, [ED], 0) for checkpoint in pair)
    reads_back(parse_evidence, format_evidence, Evidence(kind, origin, ED.vkey, signed, proof))


# -- garbage is refused, and by nothing but a KtlogError

HEAD = sign_checkpoint(Checkpoint(ORIGIN, 11, root_hash(11, READ)), [ED, *COSIGNERS[:2]], NOW)
FORKED_HEAD = sign_checkpoint(Checkpoint(ORIGIN, 11, root_hash(11, FORKED)), [ED], NOW)
OLDER_HEAD = sign_checkpoint(Checkpoint(ORIGIN, 6, root_hash(6, READ)), [ED], NOW)
POLICY_TEXT = (
    f"log {ED.vkey}\nwitness a {COSIGNERS[0].vkey}\nwitness b {COSIGNERS[1].vkey}\ngroup g all a b\nquorum g\n"
).encode()
POLICY = parse_policy(POLICY_TEXT)
EVIDENCE = format_evidence(two_roots(ED.vkey, HEAD, FORKED_HEAD))
PROOF = format_proof(TlogProof(3, tuple(prove_inclusion(3, 11, READ)), HEAD, b"extra"))


def to_text(data):
    return data.decode("utf-8", "surrogateescape")


def open_everything(data):
    return open_note(parse_note(data), [ED.vkey, PQ.vkey, *(signer.vkey for signer in COSIGNERS)])


PARSERS = {
    "note": (parse_note, format_note, HEAD),
    "signature lines": (parse_signature_lines, None, HEAD[HEAD.index("—".encode()) :]),
    "open note": (open_everything, None, HEAD),
    "signed checkpoint": (parse_signed_checkpoint, None, HEAD),
    "checkpoint": (parse_checkpoint, format_checkpoint, parse_note(HEAD).text),
    "vkey": (lambda data: parse_vkey(to_text(data)), lambda vkey: str(vkey).encode(), str(ED.vkey).encode()),
    "tile path": (
        lambda data: tiles.parse_tile_path(to_text(data)), lambda tile: tile.path.encode(), b"tile/0/x001/234.p/5",
    ),
    "bundle": (lambda data: tiles.parse_bundle(data, 3), tiles.format_bundle, tiles.format_bundle([b"a", b"", b"ccc"])),
    "policy": (parse_policy, None, POLICY_TEXT),
    "proof": (parse_proof, format_proof, PROOF),
    "verified proof": (lambda data: verify_proof(data, b"3", POLICY, NOW), None, PROOF),
    "two roots": (parse_evidence, format_evidence, EVIDENCE),
    "inconsistent": (
        parse_evidence, format_evidence,
        format_evidence(inconsistent(
            ED.vkey, OLDER_HEAD, FORKED_HEAD, prove_consistency(6, 11, FORKED)
        )),
    ),
    # Nothing but the one good file convicts: hence the "unparser".
    "verified evidence": (
        lambda data: verify_evidence(parse_evidence(data)), lambda _: EVIDENCE, EVIDENCE,
    ),
    "evidence against the key": (
        lambda data: verify_evidence(parse_evidence(data), ED.vkey), lambda _: EVIDENCE, EVIDENCE,
    ),
}
EACH = pytest.mark.parametrize(("parse", "unparse", "good"), PARSERS.values(), ids=PARSERS.keys())


PIECES = (b"", b"\n", b" ", b"\n\n", b"+", b"=", b"0", b"-", b"\xff", b"\xe2\x80\x94 ", b'"', b"\\ud800", b"\0")


def attempt(parse, unparse, data):
    try:
        value = parse(data)
    except KtlogError as error:
        assert error.name and type(error).__name__ in ("EncodingError", "Invalid", "PolicyUnmet")
        return
    if unparse is not None:
        assert unparse(value) == data, "two texts for one value"


@EACH
def test_the_good_file_is_good(parse, unparse, good):
    parse(good)
    attempt(parse, unparse, good)


@EACH
@settings(max_examples=60)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
def test_garbage(parse, unparse, good, data):
    attempt(parse, unparse, data)


@EACH
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_good_files_with_something_changed(parse, unparse, good, data):
    place = data.draw(st.integers(0, len(good)), label="place")
    cut = data.draw(st.integers(0, 3), label="cut")
    insert = data.draw(st.sampled_from(PIECES) | st.binary(max_size=3), label="insert")
    attempt(parse, unparse, good[:place] + insert + good[place + cut :])


@EACH
@settings(max_examples=40)
@given(data=st.data())
def test_good_files_with_a_line_moved(parse, unparse, good, data):
    rows = good.split(b"\n")
    picked = data.draw(st.integers(0, len(rows) - 1))
    row = rows[picked] if data.draw(st.booleans()) else rows.pop(picked)
    rows.insert(data.draw(st.integers(0, len(rows))), row)
    attempt(parse, unparse, b"\n".join(rows))


@given(st.sampled_from([ED, PQ, COSIGNERS[0]]), st.binary(max_size=100), st.binary(max_size=100) | st.just(bytes(72)))
def test_verification_of_garbage(signer, text, blob):
    for signed in (text, parse_note(HEAD).text):
        with pytest.raises(KtlogError):
            verify_line(signer.vkey, signed, SignatureLine(signer.vkey.name, signer.vkey.key_id, blob))


@given(st.text(no_surrogates, max_size=30))
def test_any_text_as_a_name(name):
    try:
        vkey = Vkey(name, ED25519, ED.vkey.public_key)
    except KtlogError:
        return
    reads_back(parse_vkey, str, vkey)
    line = SignatureLine(name, vkey.key_id, ED.private_key.sign(b"text\n"))
    note = parse_note(format_note(Note(b"text\n", (line,))))
    assert open_note(note, [vkey])[0].vkey == vkey
