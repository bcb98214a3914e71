"""HPKE over X-Wing: known answers, the library's own HPKE in both directions, and every tampering."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.bindings._rust import openssl as rust_openssl
from cryptography.hazmat.primitives import hpke as library
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.hpke import (
    KEM_XWING,
    MESSAGE_INFO,
    DecapsulationKey,
    encapsulate,
    key_id,
    key_schedule,
    open_message,
    open_sealed,
    seal,
    seal_message,
)
from ktlog.tlog.encoding import decode_base64url, encode_base64url

SEED = bytes(range(32))
KEY = DecapsulationKey.from_seed(SEED)
PUBLIC = KEY.encapsulation_key
SUITE = library.Suite(library.KEM.MLKEM768_X25519, library.KDF.HKDF_SHA256, library.AEAD.CHACHA20_POLY1305)
PLAINTEXT = b'{"action":"AddKey"}'

_private_api = pytest.mark.skipif(
    not hasattr(rust_openssl.hpke, "_encrypt_with_aad"),
    reason="this release of cryptography has no private HPKE functions with additional data",
)


def _library_private(seed: bytes) -> library.MLKEM768X25519PrivateKey:
    expanded = hashlib.shake_256(seed).digest(96)
    return library.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
    )


def _library_public(raw: bytes) -> library.MLKEM768X25519PublicKey:
    return library.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(raw[:1184]), X25519PublicKey.from_public_bytes(raw[1184:])
    )


# -- known answers ----------------------------------------------------------------------------


def test_rfc_9180_key_schedule_and_first_message():
    # Source: RFC 9180 A.2.1, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, base mode.
    info = b"Ode on a Grecian Urn"
    shared_secret = "0bbe78490412b4bbea4812666f7916932b828bba79942424abb65244930d69a7"
    schedule = key_schedule(0x0020, bytes.fromhex(shared_secret), info)
    assert schedule.key.hex() == "ad2744de8e17f4ebba575b3f5f5a8fa1f69c2a07f6e7500bc60ca6e3e3ec1c91"
    assert schedule.base_nonce.hex() == "5c4d98150661b848853b547f"
    exporter_secret = "a3b010d4994890e2c6968a36f64470d3c824c8f5029942feb11e7a74b2921922"
    assert schedule.exporter_secret.hex() == exporter_secret
    sealed = ChaCha20Poly1305(schedule.key).encrypt(
        schedule.base_nonce, b"Beauty is truth, truth beauty", b"Count-0"
    )
    assert sealed.hex() == (
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28"
    )


# Source: draft-connolly-cfrg-xwing-kem-08, appendix C, first vector.
XWING_SEED = "7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26"
XWING_PUBLIC_ENDS = "e2236b35a8c24b39b10aa1323a96a919a2ced884", "570216223593d4ba32d9abac8cd049040ef6534"
XWING_SECRET = "d2df0522128f09dd8e2c92b1e905c793d8f57a54c3da25861f10bf4ca613e384"
XWING_CIPHERTEXT = """
b83aa828d4d62b9a83ceffe1d3d3bb1ef31264643c070c5798927e41fb07914a273f8f96
e7826cd5375a283d7da885304c5de0516a0f0654243dc5b97f8bfeb831f68251219aabdd
723bc6512041acbaef8af44265524942b902e68ffd23221cda70b1b55d776a92d1143ea3
a0c475f63ee6890157c7116dae3f62bf72f60acd2bb8cc31ce2ba0de364f52b8ed38c79d
719715963a5dd3842d8e8b43ab704e4759b5327bf027c63c8fa857c4908d5a8a7b88ac7f
2be394d93c3706ddd4e698cc6ce370101f4d0213254238b4a2e8821b6e414a1cf20f6c12
44b699046f5a01caa0a1a55516300b40d2048c77cc73afba79afeea9d2c0118bdf2adb88
70dc328c5516cc45b1a2058141039e2c90a110a9e16b318dfb53bd49a126d6b73f215787
517b8917cc01cabd107d06859854ee8b4f9861c226d3764c87339ab16c3667d2f49384e5
5456dd40414b70a6af841585f4c90c68725d57704ee8ee7ce6e2f9be582dbee985e038ff
c346ebfb4e22158b6c84374a9ab4a44e1f91de5aac5197f89bc5e5442f51f9a5937b102b
a3beaebf6e1c58380a4a5fedce4a4e5026f88f528f59ffd2db41752b3a3d90efabe46389
9b7d40870c530c8841e8712b733668ed033adbfafb2d49d37a44d4064e5863eb0af0a08d
47b3cc888373bc05f7a33b841bc2587c57eb69554e8a3767b7506917b6b70498727f16ea
c1a36ec8d8cfaf751549f2277db277e8a55a9a5106b23a0206b4721fa9b3048552c5bd5b
594d6e247f38c18c591aea7f56249c72ce7b117afcc3a8621582f9cf71787e183dee0936
7976e98409ad9217a497df888042384d7707a6b78f5f7fb8409e3b535175373461b77600
2d799cbad62860be70573ecbe13b246e0da7e93a52168e0fb6a9756b895ef7f0147a0dc8
1bfa644b088a9228160c0f9acf1379a2941cd28c06ebc80e44e17aa2f8177010afd78a97
ce0868d1629ebb294c5151812c583daeb88685220f4da9118112e07041fcc24d5564a99f
dbde28869fe0722387d7a9a4d16e1cc8555917e09944aa5ebaaaec2cf62693afad42a3f5
18fce67d273cc6c9fb5472b380e8573ec7de06a3ba2fd5f931d725b493026cb0acbd3fe6
2d00e4c790d965d7a03a3c0b4222ba8c2a9a16e2ac658f572ae0e746eafc4feba023576f
08942278a041fb82a70a595d5bacbf297ce2029898a71e5c3b0d1c6228b485b1ade509b3
5fbca7eca97b2132e7cb6bc465375146b7dceac969308ac0c2ac89e7863eb8943015b243
14cafb9c7c0e85fe543d56658c213632599efabfc1ec49dd8c88547bb2cc40c9d38cbd30
99b4547840560531d0188cd1e9c23a0ebee0a03d5577d66b1d2bcb4baaf21cc7fef1e038
06ca96299df0dfbc56e1b2b43e4fc20c37f834c4af62127e7dae86c3c25a2f696ac8b589
dec71d595bfbe94b5ed4bc07d800b330796fda89edb77be0294136139354eb8cd3759157
8f9c600dd9be8ec6219fdd507adf3397ed4d68707b8d13b24ce4cd8fb22851bfe9d63240
7f31ed6f7cb1600de56f17576740ce2a32fc5145030145cfb97e63e0e41d354274a079d3
e6fb2e15
"""


def test_xwing_draft_vector():
    key = DecapsulationKey.from_seed(bytes.fromhex(XWING_SEED))
    assert key.encapsulation_key.hex().startswith(XWING_PUBLIC_ENDS[0])
    assert key.encapsulation_key.hex().endswith(XWING_PUBLIC_ENDS[1])
    enc = bytes.fromhex(XWING_CIPHERTEXT)
    assert len(enc) == 1120
    assert key.decapsulate(enc).hex() == XWING_SECRET


def test_key_id_is_an_hmac_under_the_key_itself():
    message = b"fedi-e2ee/public-key-directory:v1:key-id"
    assert key_id(PUBLIC) == hmac.new(PUBLIC, message, hashlib.sha256).digest()
    # HMAC hashes a key longer than a block first; 1216 bytes are.
    assert key_id(PUBLIC) == hmac.new(hashlib.sha256(PUBLIC).digest(), message, hashlib.sha256).digest()


# -- both directions --------------------------------------------------------------------------


def test_encapsulation_round_trip():
    shared_secret, enc = encapsulate(PUBLIC)
    assert (len(shared_secret), len(enc)) == (32, 1120)
    assert KEY.decapsulate(enc) == shared_secret
    assert encapsulate(PUBLIC)[1] != enc


@pytest.mark.parametrize("info", [b"", b"info", MESSAGE_INFO])
@pytest.mark.parametrize("plaintext", [b"", b"x", bytes(4096)], ids=len)
def test_library_hpke_without_additional_data(info, plaintext):
    assert SUITE.decrypt(seal(PUBLIC, plaintext, info, b""), _library_private(SEED), info) == plaintext
    assert open_sealed(KEY, SUITE.encrypt(plaintext, _library_public(PUBLIC), info), info, b"") == plaintext


@_private_api
@pytest.mark.parametrize("aad", [b"", b"aad", bytes(5000)], ids=len)
def test_library_hpke_with_additional_data(aad):
    sealed = seal(PUBLIC, PLAINTEXT, b"info", aad)
    opened = rust_openssl.hpke._decrypt_with_aad(SUITE, sealed, _library_private(SEED), b"info", aad)
    assert opened == PLAINTEXT
    sealed = rust_openssl.hpke._encrypt_with_aad(SUITE, PLAINTEXT, _library_public(PUBLIC), b"info", aad)
    assert open_sealed(KEY, sealed, b"info", aad) == PLAINTEXT


@_private_api
def test_messages_bind_info_and_the_key_id():
    raw = decode_base64url(seal_message(PUBLIC, PLAINTEXT).removeprefix("hpke:"))
    assert len(raw) == 1120 + len(PLAINTEXT) + 16
    info = b"fedi-e2ee/public-key-directory:v1:protocol-message"
    opened = rust_openssl.hpke._decrypt_with_aad(SUITE, raw, _library_private(SEED), info, key_id(PUBLIC))
    assert opened == PLAINTEXT


def test_the_kem_id_is_part_of_the_schedule():
    assert key_schedule(KEM_XWING, bytes(32), b"") != key_schedule(0x0020, bytes(32), b"")


# -- refusals ---------------------------------------------------------------------------------


def test_every_changed_byte_is_refused():
    sealed = seal(PUBLIC, PLAINTEXT, b"info", b"aad")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1 << position % 8
        with pytest.raises(Invalid) as error:
            open_sealed(KEY, bytes(changed), b"info", b"aad")
        assert error.value.name == "HpkeOpenFailed"


def test_the_ignored_top_bit_of_x25519_is_not_ignored():
    # X25519 drops the top bit of its input; the combiner hashes the bytes as sent.
    sealed = bytearray(seal(PUBLIC, PLAINTEXT, b"", b""))
    sealed[1119] ^= 0x80
    with pytest.raises(Invalid):
        open_sealed(KEY, bytes(sealed), b"", b"")


def test_another_key_info_or_aad_is_refused():
    sealed = seal(PUBLIC, PLAINTEXT, b"info", b"aad")
    other = DecapsulationKey.from_seed(bytes(32))
    for key, info, aad in [
        (other, b"info", b"aad"), (KEY, b"inf", b"aad"), (KEY, b"info", b""), (KEY, b"", b"aad"),
    ]:
        with pytest.raises(Invalid) as error:
            open_sealed(key, sealed, info, aad)
        assert error.value.name == "HpkeOpenFailed"
    assert open_sealed(KEY, sealed, b"info", b"aad") == PLAINTEXT


def test_truncated_and_extended_data_is_refused():
    sealed = seal(PUBLIC, PLAINTEXT, b"", b"")
    for length in (0, 1, 1088, 1119, 1120, 1135):
        with pytest.raises(EncodingError) as error:
            open_sealed(KEY, sealed[:length], b"", b"")
        assert error.value.name == "BadEncapsulation"
    for changed in (sealed[:1136], sealed[:-1], sealed + b"\0", sealed[:1120] + sealed[1121:]):
        with pytest.raises(Invalid):
            open_sealed(KEY, changed, b"", b"")


# Curve25519's points of small order: u = 0, 1, the two of order 8, and p - 1. RFC 7748 §6.1 warns of them.
LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
def test_low_order_x25519_is_a_coded_error(point):
    with pytest.raises(EncodingError) as error:
        encapsulate(PUBLIC[:1184] + point)
    assert error.value.name == "BadEncapsulationKey"
    sealed = seal(PUBLIC, PLAINTEXT, b"", b"")
    with pytest.raises(EncodingError) as error:
        open_sealed(KEY, sealed[:1088] + point + sealed[1120:], b"", b"")
    assert error.value.name == "BadEncapsulation"


@pytest.mark.parametrize("key", [b"", PUBLIC[:-1], PUBLIC + b"\0", b"\xff" * 1184 + PUBLIC[1184:]], ids=len)
def test_bad_encapsulation_keys_are_coded_errors(key):
    for function in (encapsulate, lambda each: seal_message(each, PLAINTEXT)):
        with pytest.raises(EncodingError) as error:
            function(key)
        assert error.value.name == "BadEncapsulationKey"


def test_seeds_of_another_length_are_refused():
    for size in (0, 31, 33, 96):
        with pytest.raises(EncodingError) as error:
            DecapsulationKey.from_seed(bytes(size))
        assert error.value.name == "BadSeed"


def test_representation_shows_nothing():
    assert repr(KEY) == "DecapsulationKey()"


def test_message_round_trip_and_refusals():
    text = seal_message(PUBLIC, PLAINTEXT)
    assert open_message(KEY, text) == PLAINTEXT
    body = text.removeprefix("hpke:")
    for bad in ["", "hpke:", body, "HPKE:" + body, "hpke:" + body + "=", "hpke:" + body + "\n",
                "hpke: " + body, "hpke:" + body[:1000], "hpke:+" + body[1:], "hpke:" + "\u0663" * 2000, None]:
        with pytest.raises(EncodingError) as error:
            open_message(KEY, bad)
        assert error.value.name == "BadHpkeMessage"
    with pytest.raises(Invalid) as invalid:
        open_message(DecapsulationKey.from_seed(bytes(32)), text)
    assert invalid.value.name == "HpkeOpenFailed"


def test_a_message_sealed_without_the_key_id_is_refused():
    sealed = seal(PUBLIC, PLAINTEXT, MESSAGE_INFO, b"")
    with pytest.raises(Invalid):
        open_message(KEY, "hpke:" + encode_base64url(sealed))


def test_more_than_16_mib_is_refused_both_ways():
    limit = 16 * 1024 * 1024
    with pytest.raises(EncodingError) as error:
        seal_message(PUBLIC, bytes(limit + 1))
    assert error.value.name == "TooLarge"
    with pytest.raises(EncodingError) as error:
        open_message(KEY, "hpke:" + "A" * ((limit + 4096) * 4 // 3))
    assert error.value.name == "TooLarge"


def test_exactly_16_mib_passes():
    plaintext = bytes(16 * 1024 * 1024)
    assert open_message(KEY, seal_message(PUBLIC, plaintext)) == plaintext


# -- published vectors ------------------------------------------------------------------------


def test_every_published_ciphertext_opens(vectors):
    document = parse_json((vectors / "pkd-vectors-0.9.0.json").read_bytes())
    opened = 0
    for case in document["test-cases"]:
        server = case["server-keys"]
        key = DecapsulationKey.from_seed(decode_base64url(server["hpke-decaps-key"], 32))
        assert encode_base64url(key.encapsulation_key) == server["hpke-encaps-key"]
        for step in case["steps"]:
            if not step["hpke-wrapped-message"]:
                continue
            plaintext = open_message(key, step["hpke-wrapped-message"])
            assert len(plaintext) % 1024 == 0
            message = parse_json(plaintext)
            assert set(message.pop("padding")) == {"A"}
            assert message == parse_json(step["signed-message"])
            with pytest.raises(Invalid):
                open_message(KEY, step["hpke-wrapped-message"])
            opened += 1
    assert opened == 19


def test_every_published_xwing_key_derives_from_its_seed(vectors):
    document = parse_json((vectors / "pkd-vectors-0.9.0.json").read_bytes())
    pairs = [
        (identity["xwing"]["secret-key"], identity["xwing"]["public-key"])
        for case in document["test-cases"]
        for identity in case["identities"].values()
        if "xwing" in identity
    ]
    assert len(pairs) > 10
    for seed, public in pairs:
        key = DecapsulationKey.from_seed(decode_base64url(seed, 32))
        assert encode_base64url(key.encapsulation_key) == public
