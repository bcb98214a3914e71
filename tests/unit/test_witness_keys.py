"""Key derivation and key files."""

from __future__ import annotations

import hashlib
import hmac
import stat

import pytest

from ktlog.errors import StoreError, UsageError
from witness.config import WitnessDir
from witness.keys import KINDS, derive_seed, derive_signers, load_signers, write_keys

SEED = bytes(range(32))


def hkdf_one_block(seed: bytes, info: bytes) -> bytes:
    """RFC 5869 by hand: SHA-256, no salt, one block."""
    extracted = hmac.new(bytes(32), seed, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_the_derivation_is_hkdf_over_kind_and_name():
    expected = hkdf_one_block(SEED, b"ktlog-witness/v1\x00ed25519\x00example.com/w1")
    assert derive_seed(SEED, "example.com/w1", "ed25519") == expected
    expected = hkdf_one_block(SEED, b"ktlog-witness/v1\x00mldsa44\x00example.com/w1")
    assert derive_seed(SEED, "example.com/w1", "mldsa44") == expected


def test_known_key_ids():
    """Change these and every witness made from a seed file changes its keys."""
    ids = [signer.vkey.key_id.hex() for signer in derive_signers(SEED, "example.com/w1")]
    assert ids == ["ecae7a0f", "883d9d51"]


def test_other_names_and_kinds_make_unrelated_keys():
    keys = {
        signer.vkey.public_key for name in ("example.com/w1", "example.com/w2")
        for signer in derive_signers(SEED, name)
    }
    seeds = {derive_seed(SEED, name, kind) for name in ("a", "b") for _, kind in KINDS}
    assert len(keys) == len(seeds) == 4


def test_the_types_are_04_and_06():
    assert [signer.vkey.algorithm for signer in derive_signers(SEED, "w")] == [4, 6]


@pytest.mark.parametrize("name", ["", "two words", "a+b", "a\nb", "x" * 256, "\udcff"])
def test_a_name_that_cannot_stand_on_a_signature_line_is_refused(name):
    with pytest.raises(UsageError) as caught:
        derive_signers(SEED, name)
    assert caught.value.name == "BadName"


def test_files_are_0600_hold_no_root_seed_and_load_again(tmp_path):
    directory = WitnessDir(tmp_path)
    written = write_keys(directory, SEED, "example.com/w1")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["ed25519.key", "mldsa44.key"]
    for name in files:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert (tmp_path / name).read_bytes() != SEED
    assert [s.vkey for s in load_signers(directory, "example.com/w1")] == [s.vkey for s in written]


def test_keys_are_never_overwritten(tmp_path):
    write_keys(WitnessDir(tmp_path), SEED, "w")
    before = (tmp_path / "ed25519.key").read_bytes()
    with pytest.raises(StoreError):
        write_keys(WitnessDir(tmp_path), bytes(32), "w")
    assert (tmp_path / "ed25519.key").read_bytes() == before


def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    write_keys(WitnessDir(tmp_path), SEED, "w")
    (tmp_path / "mldsa44.key").chmod(0o640)
    with pytest.raises(StoreError) as caught:
        load_signers(WitnessDir(tmp_path), "w")
    assert caught.value.name == "UnsafeSecret"
