"""A test-vectors file of our own, in the published format, written with our own client side.

It takes the actions that the published cases leave out and tells them in dialect ``vector``, with
real keys, real HPKE and real leaves. Nothing in it is copied from the published file.
"""

from __future__ import annotations

from typing import Any

from ktlog.conformance import FIRST_TIME, PLAIN_ACTIONS
from ktlog.pkd.actions import TOKEN_ACTION, Message
from ktlog.pkd.compose import PADDING_RANDOM_BYTES
from ktlog.pkd.dialects import VECTOR
from ktlog.pkd.entry import make_entry
from ktlog.pkd.hpke import DecapsulationKey, seal_message
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    UndoFireproof,
    aux_data_id,
    format_wire,
    pad_plaintext,
    parse_wire,
)
from ktlog.pkd.rejections import REJECTIONS
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.tree import Frontier, hash_leaf
from tests.pkd_samples import ALICE, BOB, CAROL, build, bytes_of, private, public, revoke_by_token

Line = tuple[Message, str, str | None]
"""A message, who signs, and the code of its refusal."""


def at(step: int) -> int:
    return FIRST_TIME + step


STORIES: dict[str, list[Line]] = {
    "short": [
        (AddKey(ALICE, public("a"), at(0)), "a", None),
        (AddAuxData(ALICE, "test-v1", "datum", None, at(1)), "a", None),
    ],
    "moving": [
        (AddKey(ALICE, public("a"), at(0)), "a", None),
        (AddAuxData(ALICE, "test-v1", "datum", None, at(1)), "a", None),
        (Fireproof(ALICE, at(2)), "a", None),
        (MoveIdentity(ALICE, CAROL, at(3)), "a", None),
        (MoveIdentity(ALICE, CAROL, at(4)), "a", "actor_not_enrolled"),
        (AddKey(ALICE, public("b"), at(5)), "b", None),
        (MoveIdentity(ALICE, CAROL, at(6)), "b", "target_has_keys"),
        (MoveIdentity(ALICE, BOB, at(7)), "a", "bad_signature"),
        (UndoFireproof(CAROL, at(8)), "a", None),
    ],
    "auxiliary-data": [
        (AddKey(ALICE, public("a"), at(0)), "a", None),
        (AddAuxData(ALICE, "test-v1", "first", aux_data_id("test-v1", "first"), at(1)), "a", None),
        (AddAuxData(ALICE, "test-v1", "first", None, at(2)), "a", "aux_exists"),
        (AddAuxData(ALICE, "test-v1", "other", aux_data_id("test-v1", "first"), at(3)), "a", "aux_id_mismatch"),
        (AddAuxData(ALICE, "test-v1", "second", None, at(4)), "a", None),
        (AddAuxData(ALICE, "test-v1", "third", None, at(5)), "a", None),
        (RevokeAuxData(ALICE, "test-v1", None, "second", at(6)), "a", None),
        (RevokeAuxData(ALICE, "test-v1", None, "second", at(7)), "a", "unknown_aux"),
        (RevokeAuxData(ALICE, "test-v1", aux_data_id("test-v1", "first"), None, at(8)), "a", None),
        (RevokeAuxData(ALICE, "test-v1", aux_data_id("test-v1", "first"), "third", at(9)), "a", "aux_id_mismatch"),
    ],
    "the-other-seven": [
        (AddKey(ALICE, public("a"), at(0)), "a", None),
        (AddKey(ALICE, public("c"), at(1)), "a", None),
        (RevokeKey(ALICE, public("c"), at(2)), "a", None),
        (AddKey(BOB, public("b"), at(3)), "b", None),
        (BurnDown(BOB, ALICE, at(4)), "a", None),
        (revoke_by_token("b"), "b", "unknown_token_key"),
        (CheckpointMessage(
            "https://keys.example.net", ZERO_ROOT, public("directory"), "https://keys.example.com", ZERO_ROOT, at(6)
        ), "directory", None),
        (revoke_by_token("a"), "a", None),
    ],
}


class _Maker:
    def __init__(self, name: str) -> None:
        self.name = name
        self.root = ZERO_ROOT
        self.frontier = Frontier()
        self.leaves: list[str] = []
        self.hpke = DecapsulationKey.from_seed(bytes_of("hpke"))

    def step(self, line: Line) -> dict[str, Any]:
        message, signer, refusal = line
        wire = build(VECTOR, message, signer, self.root)
        signed = format_wire(wire)
        entry = make_entry(VECTOR, parse_wire(VECTOR, signed).preimage, private("leaf"), public("leaf"))
        step = {
            "merkle-root-before": self.root,
            "protocol-message": format_wire({k: v for k, v in wire.items() if k != "signature"}),
            "signed-message": "" if message.action == TOKEN_ACTION else signed,
            "hpke-wrapped-message": "" if message.action in PLAIN_ACTIONS else self._sealed(wire),
            "merkle-leaf": entry.decode(),
            "expect-fail": refusal is not None,
            "description": "one of our own",
        }
        if refusal is None:
            self.frontier = self.frontier.append(hash_leaf(entry))
            self.root = "pkd-mr-v1:" + encode_base64url(self.frontier.root())
            self.leaves.append(encode_base64url(entry))
        else:
            step["expected-error"] = REJECTIONS[refusal]
        return step | {"merkle-root-after": self.root}

    def _sealed(self, wire: dict[str, Any]) -> str:
        padded = pad_plaintext(wire, bytes_of("padding", PADDING_RANDOM_BYTES))
        return seal_message(self.hpke.encapsulation_key, padded.encode())

    def case(self, actors: dict[str, Any]) -> dict[str, Any]:
        steps = [self.step(line) for line in STORIES[self.name]]
        return {
            "name": self.name,
            "seed": self.name,
            "server-keys": {
                "hpke-decaps-key": encode_base64url(bytes_of("hpke")),
                "hpke-encaps-key": encode_base64url(self.hpke.encapsulation_key),
                "sign-secret-key": encode_base64url(bytes_of("signing key leaf")),
                "sign-public-key": encode_base64url(public("leaf")),
            },
            "identities": {name: {"mldsa44": _signer(name)} for name in ("a", "b", "c", "directory")},
            "steps": steps,
            "final-mapping": {
                "actors": actors,
                "merkle-tree": {"root": self.root, "leaf-count": self.frontier.size, "leaves": self.leaves},
            },
        }


def _signer(name: str) -> dict[str, str]:
    secret = encode_base64url(bytes_of(f"signing key {name}"))
    return {"secret-key": secret, "public-key": encode_base64url(public(name))}


def _actor(*names: str, fireproof: bool = False, aux: tuple[str, ...] = ()) -> dict[str, Any]:
    keys = {
        encode_base64url(bytes_of(f"key-id {name}")): {
            "public-key": encode_public_key(public(name)), "revoked": False
        } for name in names
    }
    return {
        "fireproof": fireproof,
        "public-keys": keys or [],
        "aux-data": [{"aux-type": "test-v1", "aux-data": text} for text in aux],
    }


def make_vectors() -> dict[str, Any]:
    """All ten actions, refusals among them."""
    final = {
        "short": {ALICE: _actor("a", aux=("datum",))},
        "moving": {ALICE: _actor("b"), CAROL: _actor("a", aux=("datum",))},
        "auxiliary-data": {ALICE: _actor("a", aux=("third",))},
        "the-other-seven": {ALICE: _actor(), BOB: _actor()},
    }
    return {
        "version": "0.9.0",
        "test-cases": [_Maker(name).case(actors) for name, actors in final.items()],
    }
