"""Signed protocol messages for the tests of the PKD core, made by the project's own client side.

Keys and random bytes are derived from names, so a message is the same in every run but for its
signature. Import ``remembered_argon2`` or ``quick_argon2`` into a test module to have it build them fast.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from ktlog.errors import MessageRejected
from ktlog.pkd import attributes
from ktlog.pkd.compose import plain_members
from ktlog.pkd.dialects import SPEC, Dialect
from ktlog.pkd.entry import make_entry
from ktlog.pkd.keys import ZERO_ROOT, private_key_from_seed
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    Message,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
    build_wire,
    encrypted_attributes,
    format_wire,
    open_message_attributes,
    parse_wire,
)
from ktlog.pkd.rejections import REJECTIONS
from ktlog.pkd.replay import Directory
from ktlog.pkd.state import Change
from ktlog.pkd.token import make_token, parse_token

ALICE = "https://example.com/users/alice"
BOB = "https://example.com/users/bob"
CAROL = "https://example.net/users/carol"
NOW = 1_800_000_000

_remembered = functools.cache(attributes.argon2id)
_remembered_stream = functools.cache(attributes.xsalsa20_xor)


def bytes_of(name: str, size: int = 32) -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


@functools.cache
def private(name: str):
    return private_key_from_seed(bytes_of(f"signing key {name}"))


@functools.cache
def public(name: str) -> bytes:
    return private(name).public_key().public_bytes_raw()


@functools.cache
def token(name: str):
    return parse_token(make_token(private(name), public(name)))


def revoke_by_token(name: str) -> RevokeKeyThirdParty:
    return RevokeKeyThirdParty(token(name))


ONE_OF_EACH: tuple[Message, ...] = (
    AddKey(ALICE, public("a"), NOW),
    RevokeKey(ALICE, public("a"), NOW),
    revoke_by_token("a"),
    MoveIdentity(ALICE, CAROL, NOW),
    BurnDown(BOB, ALICE, NOW),
    Fireproof(ALICE, NOW),
    UndoFireproof(ALICE, NOW),
    AddAuxData(ALICE, "test-v1", "some data: ü", None, NOW),
    RevokeAuxData(ALICE, "test-v1", None, "some data: ü", NOW),
    CheckpointMessage(
        "https://keys.example.net", ZERO_ROOT, public("directory"), "https://keys.example.com", ZERO_ROOT, NOW
    ),
)


@pytest.fixture(scope="module", autouse=True)
def quick_argon2():
    """A quick hash in Argon2id's place, for tests of what comes after commitments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributes, "argon2id", lambda password, salt: hashlib.sha256(salt + password).digest())
        text_of.cache_clear()
        yield
        text_of.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def remembered_argon2():
    """The real functions, each distinct call made once: the tests ask the same things over and over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributes, "argon2id", _remembered)
        patch.setattr(attributes, "xsalsa20_xor", _remembered_stream)
        yield


def build(
    dialect: Dialect, message: Message, signer: str = "a", root: str = ZERO_ROOT, **options: Any
) -> dict[str, Any]:
    """A fresh copy of the message's JSON object."""
    members = plain_members(message)
    names = [name for name in encrypted_attributes(dialect, message.action) if name in members]
    keys = {name: bytes_of(f"key {message.action} {name}") for name in names}
    randoms = {name: bytes_of(f"random {message.action} {name}") for name in names}
    return build_wire(dialect, message, root, private(signer), keys, randoms, **options)


@functools.cache
def text_of(dialect: Dialect, message: Message, signer: str = "a", root: str = ZERO_ROOT) -> str:
    """The same as text, remembered."""
    return format_wire(build(dialect, message, signer, root))


class Log:
    """A directory with a leaf key, told messages the way a server is."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.directory = Directory("keys.example.com")

    def send(self, message: Message, signer: str = "a", *, root: str | None = None, **options: Any) -> Change:
        """Build, sign, parse, decrypt and apply. Commitments are the message tests' business."""
        root = self.directory.root_text if root is None else root
        return self.deliver(format_wire(build(self.dialect, message, signer, root, **options)))

    def deliver(self, text: str, **options: Any) -> Change:
        wire = parse_wire(self.dialect, text)
        message = open_message_attributes(self.dialect, wire, commitments=False)
        signer = self.directory.check(wire, message, **options)
        entry = make_entry(self.dialect, wire.preimage, private("leaf"), public("leaf"))
        return self.directory.accept(self.directory.size, wire, message, signer, entry)


def refusal(call: Callable[[], Any]) -> str:
    """The code of the refusal that *call* must raise, whose text must be the table's."""
    with pytest.raises(MessageRejected) as caught:
        call()
    assert caught.value.message == REJECTIONS[caught.value.code]
    return caught.value.code


def refused(text: str | bytes | dict[str, Any], dialect: Dialect = SPEC) -> str:
    """The code with which the parser refuses *text*, or a message's JSON object."""
    return refusal(lambda: parse_wire(dialect, json.dumps(text) if isinstance(text, dict) else text))
