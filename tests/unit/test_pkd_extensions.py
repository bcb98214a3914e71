"""Types of auxiliary data: real keys pass, and every text that is almost one does not."""

from __future__ import annotations

import base64
import importlib.util
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ktlog.errors import MessageRejected, UsageError
from ktlog.pkd import extensions
from ktlog.pkd.extensions import EXTENSIONS, choose, find
from ktlog.pkd.extensions.age_v1 import decode_recipient

AGE = EXTENSIONS["age-v1"].validate
SSH = EXTENSIONS["ssh-v2"].validate


def refused(validate, text: str) -> bool:
    try:
        validate(text)
    except MessageRejected as error:
        assert error.code == "bad_aux_data"
        assert len(text) < 25 or text not in str(error) + error.hint
        return True
    return False


# --- the registry


def test_the_registry_has_what_was_asked_for():
    assert list(EXTENSIONS) == ["age-v1", "ssh-v2"]
    for name, extension in EXTENSIONS.items():
        assert extension.id == name
        assert extension.version
        assert extension.ref.startswith("https://")


def test_types_are_found_by_id_and_alias():
    assert find("age-v1") is find("age") is EXTENSIONS["age-v1"]
    assert find("ssh-v2") is find("ssh") is EXTENSIONS["ssh-v2"]
    assert find("age-v2") is find("") is find("AGE") is None


def test_names_are_what_messages_may_name_and_nobody_shares_one():
    names = [name for extension in EXTENSIONS.values() for name in (extension.id, *extension.aliases)]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set(string.ascii_lowercase + string.digits + "-") and len(name) <= 32 for name in names)


def test_a_log_chooses_by_id():
    assert dict(choose(["ssh-v2"])) == {"ssh-v2": EXTENSIONS["ssh-v2"]}
    assert dict(choose([])) == {}
    assert dict(choose(["age-v1", "ssh-v2", "age-v1"])) == dict(EXTENSIONS)


@pytest.mark.parametrize("name", ["age", "ssh", "nostr-v1", "", "AGE-V1"])
def test_a_name_that_is_not_registered_is_a_usage_error(name):
    """An alias too: the same data under two names would have two ids, and be revoked under one only."""
    with pytest.raises(UsageError, match="UnknownAuxType"):
        choose(["age-v1", name])


def test_adding_a_type_is_one_file(tmp_path):
    """A copy of the registry with one more file in it, in a process of its own."""
    package = Path(importlib.util.find_spec("ktlog").submodule_search_locations[0])
    copy = tmp_path / "ktlog"
    for path in package.rglob("*.py"):
        target = copy / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (copy / "pkd" / "extensions" / "note_v1.py").write_text(
        "from ktlog.pkd.auxdata import Extension\n"
        "EXTENSION = Extension('note-v1', (), '1', 'https://example.org/note', lambda text: None)\n"
    )
    code = "from ktlog.pkd.extensions import find; print(find('note-v1').ref)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "https://example.org/note\n"
    assert "note-v1" not in extensions.EXTENSIONS


# --- age-v1, against an encoder written for the test

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def bech32(groups: list[int], name: str = "age", constant: int = 1) -> str:
    def step(checksum: int, value: int) -> int:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator if top >> i & 1 else 0
        return checksum

    values = [ord(x) >> 5 for x in name] + [0] + [ord(x) & 31 for x in name] + groups + [0] * 6
    checksum = 1
    for value in values:
        checksum = step(checksum, value)
    checksum ^= constant
    tail = [checksum >> 5 * (5 - i) & 31 for i in range(6)]
    return name + "1" + "".join(_CHARSET[group] for group in groups + tail)


def groups_of(data: bytes, stray: int = 0) -> list[int]:
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += f"{stray:0{-len(bits) % 5}b}" if len(bits) % 5 else ""
    return [int(bits[i:i + 5], 2) for i in range(0, len(bits), 5)]


def public_x25519() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


@pytest.mark.parametrize("recipient", [
    # From age's own documentation.
    "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
    "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg",
])
def test_known_age_recipients(recipient):
    AGE(recipient)
    assert bech32(groups_of(decode_recipient(recipient))) == recipient


def test_age_recipients_of_fresh_keys():
    for _ in range(50):
        raw = public_x25519()
        text = bech32(groups_of(raw))
        AGE(text)
        assert decode_recipient(text) == raw


RECIPIENT = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
RAW = decode_recipient(RECIPIENT)


@pytest.mark.parametrize("text", [
    "", "age1", RECIPIENT.upper(), RECIPIENT.title(), "AGE1" + RECIPIENT[4:], " " + RECIPIENT, RECIPIENT + " ",
    RECIPIENT + "\n", RECIPIENT[:30] + "\n" + RECIPIENT[30:], RECIPIENT + "\x00", RECIPIENT[:-1], RECIPIENT + "q",
    RECIPIENT[:-1] + "b", RECIPIENT[:-1] + "1", RECIPIENT[:-1] + "\uff50", RECIPIENT[:-1] + "\u0440",
    "age2" + RECIPIENT[4:], "agepq1" + RECIPIENT[6:],
    "AGE-SECRET-KEY-1" + "Q" * 46, bech32(groups_of(RAW), constant=0x2BC830A3),  # a secret key; bech32m
    bech32(groups_of(RAW), "agf"), bech32(groups_of(RAW), "ag"), bech32(groups_of(RAW + b"\x00"))[:62],
    bech32(groups_of(RAW[:31])), bech32(groups_of(RAW + b"\x01")), RECIPIENT + "\n" + RECIPIENT,
    "age1yubikey1" + "q" * 50,
])
def test_almost_an_age_recipient(text):
    assert refused(AGE, text)


def test_every_single_changed_character_is_noticed():
    for index in range(4, 62):
        other = _CHARSET[(_CHARSET.index(RECIPIENT[index]) + 1) % 32]
        assert refused(AGE, RECIPIENT[:index] + other + RECIPIENT[index + 1:])


@pytest.mark.parametrize("stray", range(1, 16))
def test_bits_behind_the_last_byte(stray):
    text = bech32(groups_of(RAW, stray))
    assert len(text) == 62
    assert refused(AGE, text)


P = 2**255 - 19
ORDER_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504


@pytest.mark.parametrize("number", [
    0, 1, P - 1, ORDER_8,  # of small order: nobody can encrypt to them
    P, P + 1, P + 9, 2**255 - 1, int.from_bytes(RAW, "little") | 1 << 255, 9 | 1 << 255,  # not canonical
])
def test_points_that_are_no_public_key(number):
    assert refused(AGE, bech32(groups_of(number.to_bytes(32, "little"))))
    AGE(bech32(groups_of((9).to_bytes(32, "little"))))


# --- ssh-v2, against the library's own writer


def openssh(key) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def ssh_string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def mpint(number: int) -> bytes:
    return ssh_string(number.to_bytes(number.bit_length() // 8 + 1, "big"))


def line(kind: str, *fields: bytes, inner: str | None = None, more: bytes = b"") -> str:
    blob = ssh_string((kind if inner is None else inner).encode()) + b"".join(fields) + more
    return f"{kind} {base64.b64encode(blob).decode()}"


# An RSA modulus costs a second to make; any odd number of the right length looks the same from here.
MODULUS = random.Random(1).getrandbits(2048) | 1 << 2047 | 1
ED25519 = openssh(Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
ECDSA = {
    name: openssh(ec.derive_private_key(987654321, curve))
    for name, curve in (("nistp256", ec.SECP256R1()), ("nistp384", ec.SECP384R1()), ("nistp521", ec.SECP521R1()))
}
RSA = line("ssh-rsa", mpint(65537), mpint(MODULUS))


@pytest.mark.parametrize("text", [
    # Host keys that a large forge publishes.
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrY"
    "MjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=",
    ED25519, *ECDSA.values(), RSA, openssh(rsa.generate_private_key(65537, 2048)),
    line("ssh-rsa", mpint(65537), mpint(MODULUS << 1 | 1)), line("ssh-rsa", mpint(65537), mpint(2**16384 - 1)),
])
def test_known_ssh_keys(text):
    SSH(text)


BLOB = base64.b64decode(ED25519.split()[1])
KEY = BLOB[-32:]


@pytest.mark.parametrize("text", [
    "", "ssh-ed25519", "ssh-ed25519 ", " " + ED25519, ED25519 + " ", ED25519 + "\n", ED25519 + " me@example.com",
    ED25519.replace(" ", "  "), ED25519.replace(" ", "\t"), ED25519.replace(" ", "\u00a0"), ED25519 + "\r\n",
    ED25519.upper(), "no-pty " + ED25519, ED25519.split()[1], ED25519 + "=", ED25519 + "AAAA", ED25519[:-1],
    ED25519.replace("A", "Á", 1), ED25519[:40] + "\n" + ED25519[40:], ED25519 + "\n" + ED25519,
    "ssh-ed25519 " + base64.urlsafe_b64encode(ssh_string(b"ssh-ed25519") + ssh_string(b"\xff" * 32)).decode(),
    "ssh-ed448 " + ED25519.split()[1], "sk-ssh-ed25519@openssh.com " + ED25519.split()[1],
    line("ssh-ed25519", ssh_string(KEY), inner="ssh-rsa"), line("ssh-ed25519", ssh_string(KEY), inner="ssh-ed2551"),
    line("ssh-ed25519", ssh_string(KEY[:31])), line("ssh-ed25519", ssh_string(KEY + b"\x00")),
    line("ssh-ed25519", ssh_string(KEY), more=b"\x00"), line("ssh-ed25519", ssh_string(KEY), ssh_string(b"")),
    line("ssh-ed25519", ssh_string(KEY), more=b"\x00\x00\x00\x01"), line("ssh-ed25519"), line("ssh-ed25519", KEY),
    line("ssh-ed25519", b"\xff\xff\xff\xff" + KEY), line("ssh-ed25519", b"\x00\x00\x00\x21" + KEY),
    line("ssh-ed25519", ssh_string(bytes(32))), line("ssh-ed25519", ssh_string(b"\x01" + bytes(31))),
    line("ssh-ed25519", ssh_string(b"\x02" + bytes(31))), line("ssh-ed25519", ssh_string(b"\xff" * 32)),
    "ssh-dss AAAAB3NzaC1kc3MAAAAB", line("ssh-dss", *map(mpint, (2**1024 - 105, 2**160 - 47, 4, 5))),
])
def test_almost_an_ed25519_key(text):
    assert refused(SSH, text)


def test_base64_with_stray_bits():
    """This blob ends with padding, before which a character carries bits that say nothing."""
    kind, encoded = ECDSA["nistp256"].split()
    assert encoded.endswith("=")
    body = encoded.rstrip("=")
    spoilt = body[:-1] + chr(ord(body[-1]) + 1) + "=" * (len(encoded) - len(body))
    assert base64.b64decode(spoilt) == base64.b64decode(encoded)
    assert refused(SSH, f"{kind} {spoilt}")
    assert refused(SSH, f"{kind} {body}")


E, N = mpint(65537), mpint(MODULUS)


@pytest.mark.parametrize("fields", [
    (mpint(3), N), (mpint(35), N), (mpint(65539), N), (mpint(1), N), (ssh_string(b""), N), (mpint(0), N),
    (ssh_string(b"\x00\x01\x00\x01"), N), (ssh_string(b"\xff"), N),  # a zero too much; negative
    (E, ssh_string(b"\x00" + N[4:])), (E, ssh_string(N[5:])), (E, ssh_string(b"")),  # a zero too much; negative; 0
    (E, mpint(MODULUS >> 1 | 1)), (E, mpint(MODULUS - 1)), (E, mpint(1 << 16384 | 1)), (E, mpint(2**1024 - 1)),
    (E,), (N,), (N, E), (E, N, N), (E, N, ssh_string(b"")), (E, N[:-1]), (E, b"\x00\x00\x02\x01" + N[4:]),
    (E, mpint(2**2047 - 1)),
])
def test_almost_an_rsa_key(fields):
    assert refused(SSH, line("ssh-rsa", *fields))


def point(curve) -> bytes:
    key = ec.derive_private_key(987654321, curve).public_key()
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


P256 = point(ec.SECP256R1())
COMPRESSED = bytes([2 + (P256[-1] & 1)]) + P256[1:33]


@pytest.mark.parametrize(("kind", "fields"), [
    ("ecdsa-sha2-nistp256", (b"nistp256", P256[:-1])), ("ecdsa-sha2-nistp256", (b"nistp256", P256 + b"\x00")),
    ("ecdsa-sha2-nistp256", (b"nistp256", P256[:-1] + bytes([P256[-1] ^ 1]))),  # beside the curve
    ("ecdsa-sha2-nistp256", (b"nistp256", COMPRESSED)), ("ecdsa-sha2-nistp256", (b"nistp256", b"\x00")),
    ("ecdsa-sha2-nistp256", (b"nistp256", bytes([6 + (P256[-1] & 1)]) + P256[1:])),  # hybrid
    ("ecdsa-sha2-nistp256", (b"nistp256", b"\x04" + bytes(64))), ("ecdsa-sha2-nistp256", (b"nistp256", b"")),
    ("ecdsa-sha2-nistp256", (b"nistp256", b"\x04" + b"\xff" * 64)),
    ("ecdsa-sha2-nistp256", (b"nistp384", P256)), ("ecdsa-sha2-nistp256", (b"", P256)),
    ("ecdsa-sha2-nistp256", (b"nistp256",)), ("ecdsa-sha2-nistp256", (P256,)),
    ("ecdsa-sha2-nistp256", (b"nistp256", P256, b"")),
    ("ecdsa-sha2-nistp256", (b"nistp384", point(ec.SECP384R1()))),
    ("ecdsa-sha2-nistp384", (b"nistp384", P256)), ("ecdsa-sha2-nistp521", (b"nistp521", P256)),
    ("ecdsa-sha2-secp256k1", (b"secp256k1", point(ec.SECP256K1()))),
    ("ecdsa-sha2-nistp521", (b"nistp521", point(ec.SECP521R1())[:-1])),
])
def test_almost_an_ecdsa_key(kind, fields):
    assert refused(SSH, line(kind, *map(ssh_string, fields)))


def test_a_key_of_one_type_under_the_name_of_another():
    for text in (ED25519, RSA, *ECDSA.values()):
        for kind in ("ssh-ed25519", "ssh-rsa", *(f"ecdsa-sha2-{name}" for name in ECDSA)):
            if not text.startswith(f"{kind} "):
                assert refused(SSH, f"{kind} {text.split()[1]}")


@pytest.mark.parametrize("text", [RECIPIENT, ED25519, RSA, *ECDSA.values()])
def test_no_beginning_of_a_key_is_one(text):
    validate = AGE if text is RECIPIENT else SSH
    step = max(1, len(text) // 100)
    assert all(refused(validate, text[:end]) for end in range(0, len(text), step))


@pytest.mark.parametrize("name", list(EXTENSIONS))
def test_no_room_for_free_text(name):
    """What somebody might want published, put before, behind and into a value that is in order."""
    good = {"age-v1": [RECIPIENT], "ssh-v2": [ED25519, RSA, *ECDSA.values()]}[name]
    validate = EXTENSIONS[name].validate
    for text in good:
        validate(text)
        for free in ("x", " some words", "<script>", "\n", "\u202e", "https://example.org/"):
            places = (0, len(text) // 2, len(text))
            assert all(refused(validate, text[:place] + free + text[place:]) for place in places)


def test_nonsense_is_refused_and_nothing_but_the_coded_error_comes_out():
    generator = random.Random(2)
    seeds = [RECIPIENT, ED25519, RSA, *ECDSA.values()]
    for _ in range(3000):
        text = list(generator.choice(seeds))
        for _ in range(generator.randint(1, 4)):
            index = generator.randrange(len(text))
            text[index:index + generator.randint(0, 2)] = [chr(generator.choice([10, 32, 48, 61, 65, 0xE9, 0xD800]))]
        for validate in (AGE, SSH):
            refused(validate, "".join(text))
