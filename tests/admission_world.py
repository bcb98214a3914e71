"""A log's admission in one process, and everything an instance or another directory needs to get past it.

Real keys, real rules, a real guard; documents that would be fetched come from ``Instances`` and ``Peers``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.client import build_envelope
from ktlog.errors import MessageRejected, Unreachable
from ktlog.operator.activity import PLAINTEXT_CONTEXT, REVOKE_CONTEXT
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.admission import Admission
from ktlog.operator.authenticate import Authenticator
from ktlog.operator.directories import INFO_CONTEXT, Directories
from ktlog.operator.gate import Gate
from ktlog.operator.guard import Guard
from ktlog.operator.instance import direct_message
from ktlog.operator.link import Receipt, Submission
from ktlog.operator.request import Request, Source
from ktlog.pkd.auxdata import Extension, bad_aux_data
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.hpke import DecapsulationKey, seal_message
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import (
    PADDING_RANDOM_BYTES,
    AddKey,
    CheckpointMessage,
    Message,
    pad_plaintext,
)
from ktlog.pkd.token import make_token
from ktlog.store.memory import MemoryStore
from ktlog.tlog.encoding import encode_base64url
from ktlog.wire.actor import ED25519, actor_key
from ktlog.wire.fetch import Response
from ktlog.wire.httpsig import sign_request
from tests.operator_world import NOW, ORIGIN, Clock, Desk
from tests.pkd_samples import ALICE, BOB, build, bytes_of, private, public

LOG_URL = f"https://{ORIGIN}"
LOG_ACTOR = f"{LOG_URL}/users/pubkeydir"
INBOX = f"{LOG_ACTOR}/inbox"
BURNDOWN = f"{LOG_URL}/api/burndown"
REVOKE = f"{LOG_URL}/api/revoke"
HPKE = DecapsulationKey.from_seed(b"\x05" * 32)
WINDOW = 86_400

PEER = "https://keys.example.net"
PEER_ACTOR = f"{PEER}/users/pubkeydir"
ERIN = "https://elsewhere.example/users/erin"


def http_key(actor: str, generation: int = 1) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes_of(f"http key {actor} {generation}"))


def refuse_spam(text: str) -> None:
    """The rule of the one type of auxiliary data that the log takes here."""
    if text == "spam":
        raise bad_aux_data("spam")


TEST_TYPE = Extension("test", ("test-alias",), "1", "https://example.org/test", refuse_spam)


class Instances:
    """Every actor's document, with one HTTP key each."""

    def __init__(self) -> None:
        self.generation = 1
        self.asked: list[str] = []

    def get(self, url: str, **_: Any) -> Response:
        self.asked.append(url)
        key = http_key(url, self.generation).public_key().public_bytes_raw()
        keys = [actor_key(f"{url}#main-key", url, ED25519, key)]
        body = {"id": url, "type": "Person", "inbox": f"{url}/inbox", "assertionMethod": keys}
        return Response(200, {"content-type": "application/activity+json"}, json.dumps(body).encode(), url)


class Peers:
    """Other directories: what each answers at /api/info."""

    def __init__(self) -> None:
        self.infos: dict[str, Any] = {
            PEER: {"!pkd-context": INFO_CONTEXT, "public-key": encode_public_key(public("directory"))},
        }
        self.asked: list[str] = []

    def fetch_json(self, url: str, content_types: Iterable[str] = (), *, max_bytes: int | None = None) -> Any:
        self.asked.append(url)
        info = self.infos.get(url.removesuffix("/api/info"))
        if info is None:
            raise Unreachable("Refused", f"nothing answers at {url}")
        return info


class Inbox:
    """A log's admission, and everything an instance needs to get past it."""

    def __init__(
        self, aux_types: frozenset[str] = frozenset({"test"}), burndown_enabled: bool = True,
        directories: frozenset[str] = frozenset({PEER}), actor_domains: frozenset[str] = frozenset(),
    ) -> None:
        self.desk = Desk(MemoryStore(ORIGIN, "spec"))
        self.clock = Clock()
        self.instances = Instances()
        self.peers = Peers()
        self._directory = TemporaryDirectory()
        self.guard = Guard(Path(self._directory.name) / "guard.db", 100, 3600, (), lambda: self.clock() * 1000)
        self.admission = Admission(
            store=self.desk.store, dialect=SPEC, inbox_actor=LOG_ACTOR, hpke_key=HPKE,
            authenticator=Authenticator(ORIGIN, ActorKeys(self.instances, self.clock), self.guard, self.clock),
            directories=Directories(self.peers, LOG_URL, directories),
            extensions=dict.fromkeys(aux_types, TEST_TYPE), time_window_seconds=WINDOW, now=self.clock,
            actor_domains=actor_domains, burndown_enabled=burndown_enabled, gate=Gate.for_threads(8, 2),
        )
        self._requests = 0

    # From the message outwards.

    def wire(self, message: Message, signer: str = "a", root: str | None = None, **options: Any) -> dict[str, Any]:
        return build(SPEC, message, signer, self.desk.root if root is None else root, **options)

    def sealed(self, wire: dict[str, Any]) -> str:
        return self.seal_text(pad_plaintext(wire, bytes(PADDING_RANDOM_BYTES)))

    def seal_text(self, text: str) -> str:
        return seal_message(HPKE.encapsulation_key, text.encode())

    def random(self, size: int) -> bytes:
        self._requests += 1
        return bytes_of(f"random {self._requests}", size)

    def request(self, content: str, sender: str = ALICE, **changes: Any) -> Request:
        body = json.dumps(direct_message(LOG_ACTOR, sender, content, self.random) | changes).encode()
        return self.signed(body, sender)

    def plain(self, wire: dict[str, Any] | str, sender: str = ALICE) -> str:
        """The envelope of a message that is not encrypted."""
        text = wire if isinstance(wire, str) else json.dumps(wire)
        return json.dumps({"!pkd-context": PLAINTEXT_CONTEXT, "actor": sender, "message": text})

    def signed(self, body: bytes, sender: str = ALICE, door: str = INBOX, **options: Any) -> Request:
        """A request to *door*; *options* spoil what is signed."""
        fields = {"key": http_key(sender), "key_id": f"{sender}#main-key", "url": door, "created": self.clock()}
        fields |= options
        headers = sign_request(
            "POST", fields["url"], {"Content-Type": "application/activity+json"}, body, fields["key_id"],
            fields["key"], fields["created"],
        )
        return Request("POST", door, list(headers.items()), body, Source("192.0.2.1"))

    # Outcomes at the inbox.

    def admit(self, message: Message, signer: str = "a", sender: str = ALICE, **options: Any) -> Submission:
        wire = self.wire(message, signer, **options)
        return self.admission.admit(self.request(build_envelope(sender, self.sealed(wire)), sender))

    def take(self, message: Message, signer: str = "a", sender: str = ALICE, **options: Any) -> Receipt:
        """Through admission and into the log."""
        return self.sequence(self.admit(message, signer, sender, **options))

    def sequence(self, submission: Submission) -> Receipt:
        (result,) = self.desk.batch(submission)
        if isinstance(result, MessageRejected):
            raise result
        return result

    def code(self, request: Request) -> str:
        return refusal_code(lambda: self.admission.admit(request))

    def wire_code(self, wire: dict[str, Any] | str, sender: str = ALICE) -> str:
        sealed = self.seal_text(wire) if isinstance(wire, str) else self.sealed(wire)
        return self.code(self.request(build_envelope(sender, sealed), sender))

    def message_code(self, message: Message, signer: str = "a", sender: str = ALICE, **options: Any) -> str:
        return self.wire_code(self.wire(message, signer, **options), sender)

    def enrol(self, actor: str = ALICE, name: str = "a") -> None:
        self.desk.send(AddKey(actor, public(name), NOW), name)

    def key_id(self, actor: str, name: str) -> str:
        keys = self.desk.store.actor(actor).keys
        return next(key.key_id for key in keys if key.public_key == public(name))

    # BurnDown and tokens at their own doors.

    def burn_request(self, wire: dict[str, Any] | str, operator: str = ALICE, **options: Any) -> Request:
        return self.signed(self.plain(wire, operator).encode(), operator, BURNDOWN, **options)

    def burn(self, message: Message, signer: str = "a", operator: str = ALICE, **options: Any) -> Submission:
        return self.admission.admit_burndown(self.burn_request(self.wire(message, signer, **options), operator))

    def burn_code(
        self, message: Message | dict[str, Any], signer: str = "a", operator: str = ALICE, **options: Any
    ) -> str:
        wire = message if isinstance(message, dict) else self.wire(message, signer, **options)
        return refusal_code(lambda: self.admission.admit_burndown(self.burn_request(wire, operator)))

    def revoke_request(self, body: dict[str, Any], sender: str | None = None) -> Request:
        data = json.dumps(body).encode()
        if sender is not None:
            return self.signed(data, sender, REVOKE)
        return Request("POST", REVOKE, [("Content-Type", "application/json")], data, Source("192.0.2.1"))

    def revoke(self, token: str, sender: str | None = None) -> Submission:
        return self.admission.admit_revocation(self.revoke_request(revocation(token), sender))

    def revoke_code(self, body: dict[str, Any] | Request) -> str:
        request = self.revoke_request(body) if isinstance(body, dict) else body
        return refusal_code(lambda: self.admission.admit_revocation(request))


def refusal_code(call: Callable[[], Any]) -> str:
    with pytest.raises(MessageRejected) as caught:
        call()
    return caught.value.code


def token_text(name: str) -> str:
    return make_token(private(name), public(name))


def revocation(token: str) -> dict[str, str]:
    """The parameters of /api/revoke."""
    return {"!pkd-context": REVOKE_CONTEXT, "current-time": str(NOW), "revocation-token": token}


def checkpoint(inbox: Inbox, **changes: Any) -> CheckpointMessage:
    """A Checkpoint of the peer that is as it should be, but for *changes*."""
    fields = {
        "from_directory": PEER, "from_root": inbox.desk.root, "from_public_key": public("directory"),
        "to_directory": LOG_URL, "to_validated_root": inbox.desk.root, "time": NOW,
    }
    return CheckpointMessage(**(fields | changes))


def flipped(text: str, at: int = 200) -> str:
    """*text*, base64url of something, with one character changed."""
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1:]


# How to spoil a message's JSON object, one thing at a time.


def wrong_key(wire: dict[str, Any], name: str) -> dict[str, Any]:
    """With another symmetric key for one attribute: it does not decrypt."""
    return wire | {"symmetric-keys": wire["symmetric-keys"] | {name: encode_base64url(b"\x01" * 32)}}


def keyless(wire: dict[str, Any], name: str) -> dict[str, Any]:
    """Without the symmetric key of one attribute."""
    return wire | {"symmetric-keys": {key: text for key, text in wire["symmetric-keys"].items() if key != name}}


def badly_signed(wire: dict[str, Any]) -> dict[str, Any]:
    return wire | {"signature": flipped(wire["signature"])}


UNDECIPHERABLE = [(wrong_key, "attribute_decryption_failed"), (keyless, "bad_symmetric_key")]
NOBODYS_KEY_ID = encode_base64url(b"\x07" * 32)


def two_actors() -> Inbox:
    """A log where Alice has the keys a and b, and Bob has c."""
    inbox = Inbox()
    inbox.enrol()
    inbox.desk.send(AddKey(ALICE, public("b"), NOW), "a")
    inbox.enrol(BOB, "c")
    return inbox
