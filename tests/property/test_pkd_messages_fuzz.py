"""Whatever arrives, the parser answers with a message or a coded refusal; what it reads, it reads for good."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.compose import PADDING_RANDOM_BYTES
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.identity import check_actor_id
from ktlog.pkd.messages import (
    message_from_plain,
    open_message_attributes,
    pad_plaintext,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.rejections import REJECTIONS
from ktlog.wire.actor_id import parse_actor_id
from tests.pkd_samples import ONE_OF_EACH, bytes_of, quick_argon2, text_of  # noqa: F401 - the fixture works by being here

dialects = st.sampled_from(list(DIALECTS.values()))
samples = st.tuples(dialects, st.sampled_from(ONE_OF_EACH))
odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
few = settings(max_examples=150, deadline=None)


def read(dialect, data: bytes | str) -> Any:
    """The message with its value, or None for a refusal, which must have a code of the table."""
    try:
        wire = parse_wire(dialect, data)
        return wire, open_message_attributes(dialect, wire, commitments=False)
    except MessageRejected as refusal:
        assert refusal.message == REJECTIONS[refusal.code]
        return None


@few
@given(dialects, st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_refused_with_a_code(dialect, data) -> None:
    assert read(dialect, data) is None


@few
@given(samples, st.data())
def test_a_message_with_one_member_replaced_is_read_or_refused(sample, data) -> None:
    dialect, message = sample
    members = json.loads(text_of(dialect, message))
    inner = [name for name in ("message", "symmetric-keys") if members.get(name)]
    place = members if not inner or data.draw(st.booleans()) else members[data.draw(st.sampled_from(inner))]
    name = data.draw(st.sampled_from(sorted(place)) | st.text(max_size=3))
    place[name] = data.draw(odd_json)
    found = read(dialect, json.dumps(members))
    if found is not None:
        wire, _ = found
        assert parse_wire(dialect, wire.preimage).preimage == wire.preimage
        assert parse_wire(dialect, wire.preimage).unique_hash == wire.unique_hash


@few
@given(samples, st.data())
def test_a_text_with_one_byte_changed_is_another_message_or_none(sample, data) -> None:
    """A changed byte never yields the same preimage with other contents, nor other signed bytes unnoticed."""
    dialect, message = sample
    text = text_of(dialect, message).encode()
    place = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.integers(0, 255))
    changed = text[:place] + bytes([byte]) + text[place + 1:]
    found, original = read(dialect, changed), parse_wire(dialect, text)
    if found is not None and changed != text:
        wire, _ = found
        assert (wire.preimage == original.preimage) == (
            json.loads(wire.preimage) == json.loads(original.preimage)
        )
        same_content = {"message", "action", "recent-merkle-root", "revocation-token"}
        before, after = json.loads(text), json.loads(changed)
        if all(before.get(name) == after.get(name) for name in same_content):
            assert wire.unique_hash == original.unique_hash
        elif wire.token is None:
            assert wire.unique_hash != original.unique_hash


@few
@given(samples, st.sampled_from([None, " ", "\n", "\t ", "\r\n"]), st.randoms(use_true_random=False))
def test_order_and_white_space_mean_nothing(sample, space, random) -> None:
    dialect, message = sample
    members = json.loads(text_of(dialect, message))
    shuffled = copy.deepcopy(members)
    for place in (shuffled, shuffled.get("message"), shuffled.get("symmetric-keys")):
        if isinstance(place, dict):
            items = list(place.items())
            random.shuffle(items)
            place.clear()
            place.update(items)
    other = parse_wire(dialect, (space or "") + json.dumps(shuffled, indent=space))
    assert other == parse_wire(dialect, text_of(dialect, message))


@few
@given(samples, st.binary(min_size=PADDING_RANDOM_BYTES, max_size=PADDING_RANDOM_BYTES))
def test_padding_rounds_up_and_changes_nothing(sample, random_bytes) -> None:
    dialect, message = sample
    members = json.loads(text_of(dialect, message))
    padded = pad_plaintext(members, random_bytes)
    assert len(padded.encode()) % 1024 == 0
    assert parse_wire(dialect, padded).unique_hash == parse_wire(dialect, text_of(dialect, message)).unique_hash
    assert {k: v for k, v in parse_json(padded).items() if k != "padding"} == members


@few
@given(samples, st.data())
def test_a_replayer_gets_the_message_or_an_error_of_its_own_kind(sample, data) -> None:
    dialect, message = sample
    wire = parse_wire(dialect, text_of(dialect, message))
    plain: dict[str, Any] = dict(plain_attributes(wire, message))
    preimage = bytearray(wire.preimage)
    if data.draw(st.booleans()):
        preimage[data.draw(st.integers(0, len(preimage) - 1))] = data.draw(st.integers(0, 255))
    for name in list(plain):
        if data.draw(st.booleans()):
            plain[name] = data.draw(st.none() | st.text(max_size=20))
    try:
        read_again, value = message_from_plain(dialect, bytes(preimage), plain, commitments=True)
    except Invalid as error:
        assert error.name in ("BadEntry", "PlaintextMismatch")
    else:
        assert read_again.preimage == bytes(preimage)
        assert value is None if None in plain.values() else value is not None


pieces = st.lists(st.sampled_from([
    "https://", "http://", "HTTPS://", "example", "EXAMPLE", ".", ".com", "a", "1", "127.0.0.1", "-", "/", "users", "..",
    "%2e", "%zz", "?", "#", "@", ":443", ":80", ":", "[::1]", " ", "é", "\n", "x" * 64, "~", "|", "\x00",
]), max_size=8).map("".join)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(["", "https://example.com", "https://example.com/"]), pieces)
def test_an_actor_id_is_one_for_the_log_exactly_when_it_is_one_for_the_wire(start, rest) -> None:
    text = start + rest
    try:
        assert check_actor_id(text) == text
        canonical = True
    except MessageRejected as refusal:
        assert refusal.code == "bad_actor_id"
        canonical = False
    try:
        parse_actor_id(text)
        fetchable = True
    except EncodingError:
        fetchable = False
    assert canonical == fetchable
