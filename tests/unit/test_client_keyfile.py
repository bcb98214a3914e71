"""Key files: private, canonical, never replaced."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from ktlog.client.keyfile import SigningKey, load_http_key, load_key, save_key
from ktlog.errors import EncodingError, StoreError
from ktlog.pkd.token import parse_token


def write(path, data: bytes, mode: int = 0o600):
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_a_key_comes_back_from_its_file(tmp_path):
    path, key = tmp_path / "alice.key", SigningKey.generate()
    save_key(path, key)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == key.seed.hex().encode() + b"\n"
    assert load_key(path) == key
    assert load_key(path).public_text == key.public_text


def test_a_file_is_never_replaced(tmp_path):
    path, key = tmp_path / "alice.key", SigningKey.generate()
    save_key(path, key)
    for other in (key, SigningKey.generate()):
        with pytest.raises(StoreError, match="SecretExists"):
            save_key(path, other)
    assert load_key(path) == key


def test_two_keys_differ_and_none_is_printed():
    one, other = SigningKey.generate(), SigningKey.generate()
    assert one.public_key != other.public_key
    assert one.seed.hex() not in repr(one)


def test_a_token_is_of_its_key():
    key = SigningKey(bytes(32))
    assert parse_token(key.revocation_token()).public_key == key.public_key


def test_a_seed_of_another_length():
    with pytest.raises(EncodingError, match="BadSeed"):
        _ = SigningKey(bytes(31)).public_key


@pytest.mark.parametrize("load", [load_key, load_http_key])
def test_files_that_are_refused(tmp_path, load):
    good = b"00" * 32 + b"\n"
    with pytest.raises(StoreError, match="MissingSecret"):
        load(tmp_path / "none")
    for mode in (0o640, 0o604, 0o644):
        with pytest.raises(StoreError, match="UnsafeSecret"):
            load(write(tmp_path / "open", good, mode))
    for bad in (b"", good + good, good[:-2], good[1:], b"zz" * 32, b" " + good, good + b"\n", b"0" * 20000):
        with pytest.raises(StoreError, match="BadSecret"):
            load(write(tmp_path / "bad", bad))
    load(write(tmp_path / "good", good))
    load(write(tmp_path / "bare", good.strip()))


def test_an_http_key_in_pem(tmp_path):
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    loaded = load_http_key(write(tmp_path / "key.pem", pem))
    assert loaded.private_bytes_raw() == key.private_bytes_raw()


def test_an_http_key_of_another_kind(tmp_path):
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(StoreError, match="another kind"):
        load_http_key(write(tmp_path / "other", other))
    locked = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    with pytest.raises(StoreError, match="BadSecret"):
        load_http_key(write(tmp_path / "locked", locked))
