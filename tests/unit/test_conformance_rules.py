"""Rules of the specification about how the code is made: randomness, comparison, where keys come from.

Each of these would still look right from outside if it were broken, so the code itself is looked at, or
one primitive is replaced to see that everything depends on it.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from client_log import NOW as CLIENT_NOW
from client_log import Network, TinyLog, actor, key

from ktlog.client import SigningKey, build
from ktlog.client.terms import fetch_terms
from ktlog.errors import Invalid
from ktlog.operator.activity import ENCRYPTED_CONTEXT
from ktlog.operator.create import create_log
from ktlog.operator.instance import direct_message
from ktlog.pkd import attributes, entry
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.hpke import SEED_BYTES
from ktlog.pkd.keys import ZERO_ROOT, derive_key_id, encode_public_key, key_hash
from ktlog.pkd.messages import AddKey
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.web.app import create_app
from tests.operator_world import ORIGIN, Desk
from tests.pkd_samples import ALICE, NOW, private, public

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("ktlog", "witness", "auditor") for path in (ROOT / package).rglob("*.py"))
KEY, RANDOM = bytes(range(32)), bytes(range(100, 132))
SYSTEM = {"urandom", "token_bytes", "token_hex", "token_urlsafe", "SystemRandom"}


def names_used(path: Path) -> set[str]:
    """Every name and attribute that a module speaks of, and every module it imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


# --- randomness


def test_random_bytes_come_from_the_operating_system() -> None:
    """No generator but os.urandom and secrets, which are getrandom(2). A sample of an audit may be drawn
    with random.SystemRandom, which is the same. What is measured may be chosen by a seed, in ktlog/bench alone."""
    drawn = 0
    for path in SOURCES:
        if path.is_relative_to(ROOT / "ktlog" / "bench"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                if owner in ("random", "secrets"):
                    assert node.func.attr in SYSTEM, f"{path.name}:{node.lineno}: {owner}.{node.func.attr}"
        used = names_used(path)
        drawn += bool(used & SYSTEM)
        assert not used & {"uuid1", "numpy", "mt19937", "getrandbits", "randbytes", "RAND_bytes"}, path
    assert drawn >= 5, "the test no longer sees where random bytes are drawn"


def test_keys_and_salts_are_as_long_as_they_should_be(tmp_path) -> None:
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    built = build.enrol(actor("alice"), key(1), recent_root=ZERO_ROOT, now=CLIENT_NOW, random=random)
    assert asked == [32] * 4  # a key and a nonce for each of two attributes
    assert {len(decode_base64url(text)) for text in built.wire["symmetric-keys"].values()} == {32}
    assert (attributes.KEY_BYTES, attributes.RANDOM_BYTES, SEED_BYTES) == (32, 32, 32)
    settings = create_log(tmp_path / "log", "keys.example.org", "spec", None)
    secrets = [path for path in settings.keys.iterdir() if path.is_file() and path.suffix not in (".json", ".pem")]
    assert secrets and all(path.stat().st_size == 32 for path in secrets), [path.name for path in secrets]
    desk = Desk()
    desk.send(AddKey(ALICE, public("a"), NOW), "a")
    (record,) = desk.store.records(0, 1)
    assert [len(salt) for salt in record.salts.values()] == [32]


def test_a_generator_that_fails_ends_the_operation(monkeypatch) -> None:
    """Nothing is made of nothing: no message, no key, no entry."""
    def fail(size: int) -> bytes:
        raise OSError("no entropy")

    with pytest.raises(OSError, match="no entropy"):
        build.enrol(actor("alice"), key(1), recent_root=ZERO_ROOT, now=CLIENT_NOW, random=fail)
    monkeypatch.setattr("ktlog.client.keyfile.secrets.token_bytes", fail)
    with pytest.raises(OSError, match="no entropy"):
        SigningKey.generate()
    desk = Desk()
    sent = desk.make(AddKey(ALICE, public("a"), NOW))
    desk.sequencer._random = fail
    with pytest.raises(OSError, match="no entropy"):
        desk.batch(sent)
    assert desk.size == 0


# --- comparison


@pytest.mark.parametrize("believed", [True, False])
def test_tags_and_commitments_are_compared_in_constant_time(monkeypatch, believed) -> None:
    """What hmac.compare_digest says is the verdict on a tag, on a commitment and on a message's hash:
    no other comparison stands beside it."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return believed

    text = attributes.encrypt_attribute(SPEC, "actor", ALICE, KEY, ZERO_ROOT, RANDOM)
    raw = decode_base64url(text)
    forged = encode_base64url(raw[:65] + bytes(32) + raw[97:])
    logged = entry.make_entry(SPEC, b"one", private("leaf"), public("leaf"))
    keys = {entry.leaf_key_hash(public("leaf")): public("leaf")}
    monkeypatch.setattr("hmac.compare_digest", compare)
    checks = [
        lambda: attributes.decrypt_without_commitment(SPEC, "actor", forged, KEY),
        lambda: attributes.check_commitment(SPEC, "actor", text, ALICE[:-1] + "f", ZERO_ROOT),
        lambda: entry.verify_entry(logged, b"two", keys),
    ]
    for check in checks:
        if believed:
            check()
        else:
            with pytest.raises(Invalid):
                check()
    assert [len(one) for one, _ in compared] == [32, 32, 32]


def test_nothing_secret_is_compared_otherwise() -> None:
    """Words that name a secret or what a secret key made never stand beside == or !=."""
    words = {"tag", "commitment", "otp", "secret", "symmetric_key", "symmetric_keys", "totp_secret", "mac"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare) or not any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                continue
            sides = (node.left, *node.comparators)
            if any(isinstance(side, ast.Constant) for side in sides):
                continue  # whether it is there at all
            for side in sides:
                name = side.attr if isinstance(side, ast.Attribute) else side.id if isinstance(side, ast.Name) else ""
                # The map's commitments are published; an attribute's is what a guess would be tried against.
                public = name == "commitment" and not path.is_relative_to(ROOT / "ktlog" / "pkd")
                assert public or name not in words, f"{path.name}:{node.lineno} compares {name} by =="


# --- names and keys


def test_a_key_id_says_nothing_about_its_key() -> None:
    """It follows from the place in the log: two keys that could stand there would have the same id."""
    ids = []
    for name in ("a", "b"):
        desk = Desk()
        desk.send(AddKey(ALICE, public(name), NOW), name)
        (held,) = desk.store.actor(ALICE).keys
        ids.append(held.key_id)
        encoded = encode_public_key(held.public_key)
        assert held.key_id not in encoded and decode_base64url(held.key_id) != key_hash(held.public_key)
    assert ids == [derive_key_id(ORIGIN, 0)] * 2
    assert derive_key_id(ORIGIN, 1) != derive_key_id(ORIGIN, 0) != derive_key_id("keys.example.net", 0)


def test_the_encryption_key_is_asked_of_the_log_and_of_nobody_else() -> None:
    log = TinyLog()
    network = Network(log)
    asked: list[str] = []
    get = network.get

    def watched(url: str, **options):
        asked.append(url)
        return get(url, **options)

    network.get = watched
    terms = fetch_terms(network, log.url)
    assert terms.encapsulation_key == log.hpke.encapsulation_key
    assert asked and all(url.startswith(f"{log.url}/") for url in asked)
    assert len(terms.encapsulation_key) == 1216


@pytest.mark.parametrize("content_type", ["application/activity+json", "application/json", "text/plain", "", None])
def test_a_signature_is_wanted_whatever_the_content_type_says(tmp_path, content_type) -> None:
    """A message without a signature is 401 under every type, and none opens another door."""
    log_actor = f"https://{ORIGIN}/users/pubkeydir"
    envelope = json.dumps({"!pkd-context": ENCRYPTED_CONTEXT, "actor": ALICE, "encrypted-message": "hpke:AAAA"})
    body = json.dumps(direct_message(log_actor, ALICE, envelope, bytes))
    client = create_app(create_log(tmp_path / "log", ORIGIN, "spec", None)).test_client()
    found = client.post("/users/pubkeydir/inbox", data=body, content_type=content_type, headers={"Host": ORIGIN})
    assert (found.status_code, found.get_json()["code"]) == (401, "unauthorized")
