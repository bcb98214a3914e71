"""Properties of PKD's encodings and cryptography: round trips, injectivity, and refusal of any change."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merkle_json import MerkleJson

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.attributes import decrypt_attribute, decrypt_without_commitment, encrypt_attribute
from ktlog.pkd.canonical import MAX_INTEGER, canonical, parse_json
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.entry import LogEntry, encode_entry, leaf_key_hash, make_entry, parse_entry, verify_entry
from ktlog.pkd.hpke import DecapsulationKey, open_message, open_sealed, seal, seal_message
from ktlog.pkd.keys import (
    decode_public_key,
    decode_root,
    encode_public_key,
    encode_root,
    private_key_from_seed,
    sign_mldsa44,
    verify_mldsa44,
)
from ktlog.pkd.pae import pae
from ktlog.pkd.token import make_token, parse_token
from ktlog.tlog.encoding import decode_base64url, encode_base64url

CODED = (EncodingError, Invalid)
FAST = settings(deadline=None, max_examples=200)
SLOW = settings(deadline=None, max_examples=25)

SIGNER = private_key_from_seed(bytes(32))
PUBLIC = SIGNER.public_key().public_bytes_raw()
HPKE_KEY = DecapsulationKey.from_seed(bytes(32))

texts = st.text(st.characters(exclude_categories=["Cs"]))
dialects = st.sampled_from(list(DIALECTS.values()))
digests = st.binary(min_size=32, max_size=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
# So few that two draws are often equal, or equal only to a careless eye.
small_values = st.recursive(
    st.sampled_from([None, True, False, 0, 1, "", "1", "true", "null"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["", "1", "a"]), inner, max_size=2),
    max_leaves=3,
)

# Keys and strings as PKD messages hold them: here merkle-json happens to print correct JSON.
_safe_keys = st.text(string.ascii_lowercase + "!-", max_size=12)
_safe_text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)
safe_documents = st.recursive(
    _safe_text, lambda inner: st.dictionaries(_safe_keys, inner, max_size=5), max_leaves=15
)


def _flip(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position % len(data)] ^= 1 << bit
    return bytes(changed)


# -- JSON -------------------------------------------------------------------------------------


@FAST
@given(json_values, st.booleans())
def test_canonical_json_round_trips_and_is_a_fixed_point(value, escape):
    data = canonical(value, escape_unicode=escape)
    assert parse_json(data) == value
    assert json.loads(data) == value
    assert canonical(parse_json(data), escape_unicode=escape) == data
    assert data.isascii() or not escape


@FAST
@given(json_values, st.integers(0, 4))
def test_any_spelling_has_the_same_canonical_form(value, indent):
    for ascii_only in (True, False):
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        assert canonical(parse_json(text)) == canonical(value)


@FAST
@given(small_values, small_values)
def test_canonical_json_is_injective(one, other):
    assert (canonical(one) == canonical(other)) == (repr_of(one) == repr_of(other))


def repr_of(value):
    """Equality of JSON values in which 1 and true differ, and the order of keys does not matter."""
    if isinstance(value, dict):
        return "object", tuple(sorted((name, repr_of(item)) for name, item in value.items()))
    if isinstance(value, list):
        return "array", tuple(repr_of(item) for item in value)
    return type(value).__name__, repr(value)


@FAST
@given(st.binary(max_size=80) | st.text(max_size=80))
def test_any_input_parses_or_is_a_coded_error(data):
    try:
        value = parse_json(data)
    except EncodingError as error:
        assert error.name in ("BadJson", "DuplicateKey")
    else:
        assert parse_json(canonical(value)) == value


@FAST
@given(safe_documents)
def test_merkle_json_prints_the_same_for_safe_documents(document):
    assert MerkleJson().stringify(document).encode() == canonical(document)


# -- PAE, keys, roots -------------------------------------------------------------------------


@FAST
@given(st.lists(st.binary(max_size=20), max_size=5), st.lists(st.binary(max_size=20), max_size=5))
def test_pae_is_injective(one, other):
    assert (pae(one) == pae(other)) == (one == other)


@FAST
@given(st.lists(st.binary(max_size=20), max_size=5))
def test_pae_can_be_read_back(pieces):
    data = pae(pieces)
    count, rest, found = int.from_bytes(data[:8], "little"), data[8:], []
    for _ in range(count):
        size = int.from_bytes(rest[:8], "little")
        found.append(rest[8:8 + size])
        rest = rest[8 + size:]
    assert (found, rest) == (pieces, b"")


@FAST
@given(digests, st.text(max_size=60))
def test_roots_and_keys_have_one_text(raw, text):
    assert decode_root(encode_root(raw)) == raw
    key = raw * 41
    assert decode_public_key(encode_public_key(key)) == key
    for decode, encode in ((decode_root, encode_root), (decode_public_key, encode_public_key)):
        for candidate in (text, "pkd-mr-v1:" + text, "mldsa44:" + text):
            try:
                decoded = decode(candidate)
            except EncodingError:
                continue
            assert encode(decoded) == candidate


@SLOW
@given(st.binary(max_size=200), st.integers(0), st.integers(0, 7))
def test_message_signatures(data, position, bit):
    signature = sign_mldsa44(SIGNER, data)
    verify_mldsa44(PUBLIC, signature, data)
    with pytest.raises(Invalid):
        verify_mldsa44(PUBLIC, _flip(signature, position, bit), data)
    with pytest.raises(Invalid):
        verify_mldsa44(_flip(PUBLIC, position, bit), signature, data)
    with pytest.raises(Invalid):
        verify_mldsa44(PUBLIC, signature, data + b"\0")


@FAST
@given(st.binary(max_size=3000), st.binary(max_size=20))
def test_junk_signatures_are_coded_errors(signature, data):
    with pytest.raises(Invalid):
        verify_mldsa44(PUBLIC, signature, data)


# -- attributes -------------------------------------------------------------------------------


@SLOW
@given(dialects, texts, texts, digests, digests, digests, st.integers(0), st.integers(0, 7))
def test_attributes(dialect, name, plaintext, key, random, root, position, bit):
    root_text = encode_root(root)
    sealed = encrypt_attribute(dialect, name, plaintext, key, root_text, random)
    assert decrypt_attribute(dialect, name, sealed, key, root_text) == plaintext
    changed = encode_base64url(_flip(decode_base64url(sealed), position, bit))
    with pytest.raises(Invalid):
        decrypt_without_commitment(dialect, name, changed, key)
    with pytest.raises(Invalid):
        decrypt_without_commitment(dialect, name + "x", sealed, key)
    with pytest.raises(Invalid):
        decrypt_without_commitment(dialect, name, sealed, _flip(key, position, bit))


@FAST
@given(dialects, st.binary(max_size=200), digests)
def test_junk_attributes_are_coded_errors(dialect, junk, key):
    for text in (encode_base64url(junk), encode_base64url(b"\x01" + junk), junk.decode("latin-1")):
        with pytest.raises(CODED):
            decrypt_without_commitment(dialect, "actor", text, key)


# -- HPKE, tokens, entries --------------------------------------------------------------------


@SLOW
@given(st.binary(max_size=300), st.binary(max_size=9), st.binary(max_size=9), st.integers(0), st.integers(0, 7))
def test_hpke(plaintext, info, aad, position, bit):
    sealed = seal(HPKE_KEY.encapsulation_key, plaintext, info, aad)
    assert open_sealed(HPKE_KEY, sealed, info, aad) == plaintext
    with pytest.raises(CODED):
        open_sealed(HPKE_KEY, _flip(sealed, position, bit), info, aad)
    with pytest.raises(Invalid):
        open_sealed(HPKE_KEY, sealed, info + b"x", aad)
    with pytest.raises(Invalid):
        open_sealed(HPKE_KEY, sealed, info, aad + b"x")
    text = seal_message(HPKE_KEY.encapsulation_key, plaintext)
    assert open_message(HPKE_KEY, text) == plaintext


@FAST
@given(st.binary(max_size=1400) | st.binary(min_size=1136, max_size=1200))
def test_junk_ciphertexts_are_coded_errors(junk):
    for text in ("hpke:" + encode_base64url(junk), junk.decode("latin-1")):
        with pytest.raises(CODED):
            open_message(HPKE_KEY, text)


@SLOW
@given(digests, st.integers(0), st.integers(0, 7))
def test_tokens(seed, position, bit):
    key = private_key_from_seed(seed)
    public = key.public_key().public_bytes_raw()
    text = make_token(key, public)
    assert parse_token(text).public_key == public
    with pytest.raises(CODED):
        parse_token(encode_base64url(_flip(decode_base64url(text), position, bit)))


@FAST
@given(dialects, digests, st.binary(min_size=2420, max_size=2420), digests)
def test_entries_round_trip(dialect, message_hash, signature, key_hash):
    entry = LogEntry(message_hash, signature, key_hash)
    data = encode_entry(dialect, entry)
    assert parse_entry(data) == (dialect, entry)


@SLOW
@given(dialects, st.binary(max_size=200), st.integers(0), st.integers(0, 7))
def test_entries_hold_for_their_message_only(dialect, message, position, bit):
    keys = {leaf_key_hash(PUBLIC): PUBLIC}
    data = make_entry(dialect, message, SIGNER, PUBLIC)
    verify_entry(data, message, keys)
    with pytest.raises(Invalid):
        verify_entry(data, message + b"\0", keys)
    with pytest.raises(CODED):
        verify_entry(_flip(data, position, bit), message, keys)


@FAST
@given(dialects, st.data())
def test_junk_of_the_right_length_reads_back_or_is_refused(dialect, data):
    junk = data.draw(st.binary(min_size=dialect.entry_bytes, max_size=dialect.entry_bytes))
    try:
        found, entry = parse_entry(junk)
    except EncodingError as error:
        assert error.name == "BadEntry"
    else:
        assert encode_entry(found, entry) == junk
