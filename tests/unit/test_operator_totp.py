"""The three TOTP requests: who may ask, which passwords allow it, and what is stored then."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from ktlog.client import totp as client
from ktlog.client.keyfile import SigningKey
from ktlog.errors import Conflict, MessageRejected
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.authenticate import Authenticator
from ktlog.operator.guard import Guard
from ktlog.operator.request import Request, Source
from ktlog.operator.totp import TotpDesk
from ktlog.pkd.hpke import DecapsulationKey, seal_message
from ktlog.pkd.keys import sign_mldsa44
from ktlog.pkd.messages import AddKey, RevokeKey
from ktlog.pkd.totp import encode_secret, totp_code
from ktlog.pkd.totp_requests import Operation, build_totp_request, parse_totp_request, signed_bytes
from ktlog.tlog.encoding import encode_base64url
from ktlog.wire.httpsig import sign_request
from tests.admission_world import HPKE, LOG_URL, WINDOW, Instances, flipped, http_key, refusal_code
from tests.operator_world import NOW, ORIGIN, Clock, Desk
from tests.pkd_samples import ALICE, BOB, CAROL, bytes_of, private, public, quick_argon2  # noqa: F401

SECRET, OTHER = bytes_of("totp secret"), bytes_of("another totp secret")
KEYS = {ALICE: "a", BOB: "b", CAROL: "c"}


class Link:
    """The sequencer's side of it, without the socket."""

    def __init__(self, store) -> None:
        self.store = store
        self.meanwhile = lambda: None

    def totp_set(self, domain: str, secret: bytes | None, window: int, expected_serial: int | None) -> None:
        self.meanwhile()
        try:
            self.store.set_totp(domain, secret, window, expected_serial)
        except Conflict:
            raise MessageRejected("totp_moved", "changed meanwhile") from None


class World:
    """A log that ALICE, BOB (example.com) and CAROL (example.net) are enrolled in, and its three endpoints."""

    def __init__(self, actor_domains: frozenset[str] = frozenset()) -> None:
        self.desk = Desk()
        self.store = self.desk.store
        self.clock = Clock()
        self._directory = TemporaryDirectory()
        guard = Guard(Path(self._directory.name) / "guard.db", 100, 3600, (), lambda: self.clock() * 1000)
        self.link = Link(self.store)
        self.instances = Instances()
        self.totp = TotpDesk(
            store=self.store, link=self.link, hpke_key=HPKE, time_window_seconds=WINDOW, now=self.clock,
            authenticator=Authenticator(ORIGIN, ActorKeys(self.instances, self.clock), guard, self.clock),
            actor_domains=actor_domains,
        )
        for actor, name in KEYS.items():
            self.desk.send(AddKey(actor, public(name), NOW), name)

    def key_id(self, actor: str) -> str:
        return self.store.actor(actor).keys[0].key_id

    def signer(self, actor: str) -> SigningKey:
        return SigningKey(bytes_of(f"signing key {KEYS[actor]}"))

    def request(
        self, operation: Operation, members: dict[str, Any] | bytes, sender: str = ALICE, **options: Any
    ) -> Request:
        body = members if isinstance(members, bytes) else json.dumps(members).encode()
        url = f"{LOG_URL}/api/totp/{operation.value}"
        fields = {"key": http_key(sender), "key_id": f"{sender}#main-key", "url": url} | options
        headers = sign_request(
            "POST", fields["url"], {"Content-Type": "application/json"}, body, fields["key_id"], fields["key"],
            self.clock(),
        )
        return Request("POST", url, list(headers.items()), body, Source("192.0.2.1"))

    # What a client sends.

    def enrollment(self, secret: bytes = SECRET, actor: str = ALICE) -> dict[str, Any]:
        return client.enroll(
            actor, self.key_id(actor), self.signer(actor), secret, HPKE.encapsulation_key, now=self.clock()
        )

    def rotation(self, secret: bytes = OTHER, old: str | None = None, actor: str = ALICE) -> dict[str, Any]:
        old = client.password(SECRET, self.clock()) if old is None else old
        return client.rotate(
            actor, self.key_id(actor), self.signer(actor), secret, old, HPKE.encapsulation_key, now=self.clock()
        )

    def disenrollment(self, otp: str | None = None, actor: str = ALICE) -> dict[str, Any]:
        otp = client.password(SECRET, self.clock()) if otp is None else otp
        return client.disenroll(actor, self.key_id(actor), self.signer(actor), otp, now=self.clock())

    def remade(self, operation: Operation, body: dict[str, Any], **fields: str) -> dict[str, Any]:
        """*body* with other fields, signed anew."""
        return build_totp_request(operation, body[operation.member] | fields, private("a"), self.clock())

    def enroll(self, body: dict[str, Any] | None = None, sender: str = ALICE, **options: Any) -> None:
        body = self.enrollment() if body is None else body
        self.totp.enroll(self.request(Operation.ENROLL, body, sender, **options))

    def rotate(self, body: dict[str, Any] | None = None, sender: str = ALICE) -> None:
        self.totp.rotate(self.request(Operation.ROTATE, self.rotation() if body is None else body, sender))

    def disenroll(self, body: dict[str, Any] | None = None, sender: str = ALICE) -> None:
        self.totp.disenroll(self.request(Operation.DISENROLL, self.disenrollment() if body is None else body, sender))

    def enrolled(self) -> World:
        self.enroll()
        self.clock.now += 30
        return self

    def stored(self, domain: str = "example.com") -> bytes | None:
        found = self.store.totp(domain)
        return found.secret if found else None


@pytest.fixture
def world() -> World:
    return World()


# --- enrolling


def test_an_instance_enrolls_a_secret(world):
    world.enroll()
    assert world.stored() == SECRET
    assert world.stored("example.net") is None


def test_nothing_enters_the_log(world):
    before = world.store.state()
    world.enrolled().rotate()
    assert world.store.state() == before


def test_a_secret_may_come_as_base32(world):
    sealed = seal_message(HPKE.encapsulation_key, encode_secret(SECRET).encode())
    world.enroll(world.remade(Operation.ENROLL, world.enrollment(), **{"totp-secret": sealed}))
    assert world.stored() == SECRET


def test_enrolling_twice_fails(world):
    world.enrolled()
    assert refusal_code(lambda: world.enroll(world.enrollment(OTHER))) == "totp_exists"
    assert refusal_code(lambda: world.enroll(world.enrollment(OTHER, BOB), BOB)) == "totp_exists"
    assert world.stored() == SECRET


def test_two_enrollments_at_once(world):
    world.link.meanwhile = lambda: world.store.set_totp("example.com", OTHER, 1, None)
    assert refusal_code(world.enroll) == "totp_moved"
    assert world.stored() == OTHER


@pytest.mark.parametrize("name", ["otp-current", "otp-previous"])
def test_both_passwords_must_be_right(world, name):
    body = world.remade(Operation.ENROLL, world.enrollment(), **{name: "00000000"})
    assert refusal_code(lambda: world.enroll(body)) == "bad_new_otp"
    assert world.stored() is None


def test_passwords_are_of_the_secret_that_decrypts(world):
    sealed = seal_message(HPKE.encapsulation_key, OTHER)
    body = world.remade(Operation.ENROLL, world.enrollment(), **{"totp-secret": sealed})
    assert refusal_code(lambda: world.enroll(body)) == "bad_new_otp"


@pytest.mark.parametrize("secret", [
    "", "hpke:", "hpke:AAAA", encode_secret(SECRET), "hpke:" + encode_base64url(SECRET),
    seal_message(DecapsulationKey.from_seed(b"\x06" * 32).encapsulation_key, SECRET),
    seal_message(HPKE.encapsulation_key, SECRET[:31]), seal_message(HPKE.encapsulation_key, b'{"action":"AddKey"}'),
    flipped(seal_message(HPKE.encapsulation_key, SECRET), 1540),
])
def test_a_secret_that_does_not_decrypt(world, secret):
    body = world.remade(Operation.ENROLL, world.enrollment(), **{"totp-secret": secret})
    assert refusal_code(lambda: world.enroll(body)) == "bad_totp_secret"


def test_passwords_used_to_enroll_are_used_up(world):
    world.enroll()
    for age in (0, 1, 2):
        body = world.disenrollment(totp_code(SECRET, NOW // 30 - age))
        assert refusal_code(lambda body=body: world.disenroll(body)) == "otp_reused"
    world.clock.now += 30
    world.disenroll()


# --- rotating


def test_an_instance_rotates_its_secret(world):
    world.enrolled().rotate()
    assert world.stored() == OTHER
    world.clock.now += 30
    assert refusal_code(world.disenroll) == "bad_otp"
    world.disenroll(world.disenrollment(client.password(OTHER, world.clock())))


def test_there_must_be_one_to_rotate(world):
    assert refusal_code(world.rotate) == "totp_not_enrolled"
    assert refusal_code(lambda: world.enrolled().rotate(world.rotation(actor=CAROL), CAROL)) == "totp_not_enrolled"


def test_the_old_password_must_be_right_before_anything_else(world):
    world.enrolled()
    body = world.remade(
        Operation.ROTATE, world.rotation(), **{"old-otp": "00000000", "new-totp-secret": "", "new-otp-current": ""}
    )
    assert refusal_code(lambda: world.rotate(body)) == "bad_otp"
    assert world.stored() == SECRET


def test_the_new_secret_is_checked_like_the_first(world):
    world.enrolled()
    for name, code in (
        ("new-otp-current", "bad_new_otp"), ("new-otp-previous", "bad_new_otp"), ("new-totp-secret", "bad_totp_secret")
    ):
        body = world.remade(Operation.ROTATE, world.rotation(), **{name: "00000000"})
        assert refusal_code(lambda body=body: world.rotate(body)) == code
    assert world.stored() == SECRET


def test_one_password_rotates_once(world):
    """Of two requests with the same password that were checked at the same moment, one is done."""
    world.enrolled()
    current = world.store.totp("example.com")
    world.link.meanwhile = lambda: world.store.set_totp("example.com", SECRET, world.clock() // 30, current.serial)
    assert refusal_code(world.rotate) == "totp_moved"


def test_rotating_to_the_same_secret_gives_no_password_a_second_life(world):
    world.enrolled()
    old = client.password(SECRET, world.clock())
    world.rotate(world.rotation(SECRET, old))
    assert refusal_code(lambda: world.disenroll(world.disenrollment(old))) == "otp_reused"


# --- removing


def test_an_instance_removes_its_secret(world):
    world.enrolled().disenroll()
    assert world.stored() is None


def test_removing_none_fails(world):
    """The specification says so in one place, and the contrary in another; failing is the safe reading."""
    assert refusal_code(world.disenroll) == "totp_absent"


def test_removing_takes_the_right_password(world):
    world.enrolled()
    assert refusal_code(lambda: world.disenroll(world.disenrollment("00000000"))) == "bad_otp"
    old = world.disenrollment(totp_code(SECRET, world.clock() // 30 - 3))
    assert refusal_code(lambda: world.disenroll(old)) == "bad_otp"
    assert world.stored() == SECRET


def test_a_password_does_not_come_back_with_its_secret(world):
    """Removed and enrolled again, the same secret does not let an overheard password pass once more."""
    world.enrolled()
    overheard = client.password(SECRET, world.clock())
    world.disenroll()
    world.enroll()
    assert refusal_code(lambda: world.disenroll(world.disenrollment(overheard))) == "otp_reused"


# --- who may ask


def test_a_secret_is_the_instance_s_not_the_actor_s(world):
    world.enrolled().disenroll(world.disenrollment(actor=BOB), BOB)
    assert world.stored() is None


def test_another_instance_cannot_touch_it(world):
    """Carol's request speaks for her own domain, whatever it says inside."""
    world.enrolled()
    assert refusal_code(lambda: world.disenroll(world.disenrollment(actor=CAROL), CAROL)) == "totp_absent"
    assert refusal_code(lambda: world.disenroll(world.disenrollment(), CAROL)) == "unknown_http_key"
    assert world.stored() == SECRET


def test_the_http_signature_is_the_same_actor_s(world):
    """Also between two actors of one instance."""
    assert refusal_code(lambda: world.enroll(world.enrollment(), BOB)) == "unknown_http_key"
    assert refusal_code(lambda: world.enroll(key=http_key(BOB))) == "unauthorized"
    assert refusal_code(lambda: world.enroll(url=f"{LOG_URL}/api/totp/rotate")) == "unauthorized"


def test_without_an_http_signature(world):
    request = world.request(Operation.ENROLL, world.enrollment())
    bare = Request(request.method, request.target_url, [], request.body, request.source)
    assert refusal_code(lambda: world.totp.enroll(bare)) == "unauthorized"


def test_a_request_that_was_seen_before(world):
    request = world.request(Operation.ENROLL, world.enrollment())
    world.totp.enroll(request)
    assert refusal_code(lambda: world.totp.enroll(request)) == "replayed_request"


def test_the_key_is_one_that_the_actor_has_now(world):
    body = world.remade(Operation.ENROLL, world.enrollment(), **{"key-id": world.key_id(BOB)})
    assert refusal_code(lambda: world.enroll(body)) == "unknown_key_id"
    stale = world.enrollment()
    world.desk.send(AddKey(ALICE, public("d"), NOW), "a")
    world.desk.send(RevokeKey(ALICE, public("a"), NOW), "d")
    assert refusal_code(lambda: world.enroll(stale)) == "unknown_key_id"


def test_the_key_id_decides(world):
    """A signature by another key of the actor, though it is one, is not by the key that is named."""
    world.desk.send(AddKey(ALICE, public("d"), NOW), "a")
    fields = world.enrollment()["enrollment"]
    body = build_totp_request(Operation.ENROLL, fields, private("d"), NOW)
    assert refusal_code(lambda: world.enroll(body)) == "bad_signature"


def test_somebody_without_keys(world):
    nobody = "https://example.com/users/nobody"
    body = world.remade(Operation.ENROLL, world.enrollment(), **{"actor-id": nobody})
    assert refusal_code(lambda: world.enroll(body, nobody)) == "actor_not_enrolled"


def test_what_is_signed_is_the_object(world):
    """Every member of it, and the action as it was spelt."""
    for name in Operation.ENROLL.fields - {"actor-id"}:
        body = world.enrollment()
        value = body["enrollment"][name]
        body["enrollment"][name] = world.key_id(BOB) if name == "key-id" else flipped(value, 6)
        assert refusal_code(lambda body=body: world.enroll(body)) in ("bad_signature", "unknown_key_id")
    assert refusal_code(lambda: world.enroll(world.enrollment() | {"action": "totp-enroll"})) == "bad_signature"
    assert world.stored() is None


def test_the_other_spelling_of_the_action(world):
    """``totp-enroll``, as "TOTP Signatures" has it; signed and sent alike."""
    body = world.enrollment()
    signature = sign_mldsa44(private("a"), signed_bytes(Operation.ENROLL, "totp-enroll", body["enrollment"]))
    world.enroll(body | {"action": "totp-enroll", "signature": encode_base64url(signature)})
    assert world.stored() == SECRET


def test_a_signature_for_one_request_is_none_for_another(world):
    """The same members under another member's name, context and action."""
    world.enrolled()
    fields = world.disenrollment()["disenrollment"]
    for operation in (Operation.ENROLL, Operation.ROTATE):
        signature = sign_mldsa44(private("a"), signed_bytes(operation, operation.action, fields))
        body = world.disenrollment() | {"signature": encode_base64url(signature)}
        assert refusal_code(lambda body=body: world.disenroll(body)) == "bad_signature"


def test_domains_that_are_not_served_cost_nothing():
    world = World(frozenset({"example.net"}))
    assert refusal_code(world.enroll) == "domain_not_served"
    assert world.instances.asked == []
    world.enroll(world.enrollment(actor=CAROL), CAROL)


@pytest.mark.parametrize("shift", [-WINDOW - 1, WINDOW + 1])
def test_the_time_is_near_the_log_s(world, shift):
    body = world.enrollment() | {"current-time": str(NOW + shift)}
    assert refusal_code(lambda: world.enroll(body)) == "stale_time"


# --- the shape of requests


@pytest.mark.parametrize(("change", "code"), [
    ({"!pkd-context": "fedi-e2ee:v1/api/totp/rotate"}, "wrong_context"), ({"action": "TOTP-Rotate"}, "unknown_action"),
    ({"action": "TOTP-ENROLL"}, "unknown_action"), ({"action": None}, "bad_request"), ({"extra": "x"}, "bad_request"),
    ({"current-time": NOW}, "bad_request"), ({"current-time": "+5"}, "bad_time"), ({"current-time": "1e9"}, "bad_time"),
    ({"enrollment": []}, "bad_request"), ({"enrollment": {}}, "bad_request"), ({"enrollment": "{}"}, "bad_request"),
    ({"signature": "AAAA"}, "bad_signature"), ({"signature": 5}, "bad_request"), ({"rotation": {}}, "bad_request"),
])
def test_malformed_requests(world, change, code):
    body = world.enrollment() | change
    assert refusal_code(lambda: world.enroll(body)) == code
    assert world.instances.asked == []


@pytest.mark.parametrize(("field", "value", "code"), [
    ("actor-id", "http://example.com/users/alice", "bad_actor_id"), ("actor-id", "alice", "bad_actor_id"),
    ("key-id", "", "bad_key_id"), ("key-id", "AAAA", "bad_key_id"), ("otp-current", 12345678, "bad_request"),
    ("otp-current", None, "bad_request"), ("unknown", "x", "bad_request"),
])
def test_malformed_members(world, field, value, code):
    body = world.enrollment()
    body["enrollment"][field] = value
    assert refusal_code(lambda: world.enroll(body)) == code
    assert world.instances.asked == []


@pytest.mark.parametrize("missing", ["!pkd-context", "action", "current-time", "enrollment", "signature"])
def test_missing_members(world, missing):
    body = {name: value for name, value in world.enrollment().items() if name != missing}
    assert refusal_code(lambda: world.enroll(body)) == "bad_request"


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"action": "TOTP-Enroll", "action": "x"}', b"null"])
def test_not_even_an_object(data):
    code = refusal_code(lambda: parse_totp_request(Operation.ENROLL, data))
    assert code in ("bad_json", "bad_request", "duplicate_json_key")


def test_secrets_do_not_show_in_what_is_logged(world):
    asked = parse_totp_request(Operation.DISENROLL, json.dumps(world.disenrollment("13572468")).encode())
    assert "13572468" not in repr(asked)
