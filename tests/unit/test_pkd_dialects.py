"""What the three dialects differ in; the fixed lengths above all."""

from __future__ import annotations

import dataclasses

import pytest

from ktlog.errors import EncodingError
from ktlog.pkd.dialects import DIALECTS, PHP, SPEC, VECTOR, dialect_of_entry


def test_names_and_lengths_are_fixed():
    assert {name: dialect.entry_bytes for name, dialect in DIALECTS.items()} == {
        "spec": 2484, "vector": 3312, "php": 2516,
    }
    assert all(DIALECTS[name].name == name for name in DIALECTS)


def test_length_shows_the_dialect():
    for dialect in DIALECTS.values():
        assert dialect_of_entry(bytes(dialect.entry_bytes)) is dialect
    for length in (0, 2483, 2485, 2515, 2517, 3311, 3313, 4968):
        with pytest.raises(EncodingError) as error:
            dialect_of_entry(bytes(length))
        assert error.value.name == "BadEntry"


def test_shorten_keeps_the_end_the_dialect_says():
    digest = bytes(range(64))
    assert SPEC.shorten(digest, 16) == PHP.shorten(digest, 16) == digest[48:]
    assert VECTOR.shorten(digest, 16) == digest[:16]
    assert SPEC.shorten(digest, 32) == digest[32:]
    assert VECTOR.shorten(digest, 32) == digest[:32]


def test_only_the_vector_dialect_would_log_symmetric_keys():
    assert [d.name for d in DIALECTS.values() if "symmetric-keys" in d.hashed_fields] == ["vector"]
    assert not any("otp" in d.hashed_fields or "key-id" in d.hashed_fields for d in DIALECTS.values())
    assert PHP.plain_actions == {"BurnDown"}
    assert not SPEC.plain_actions
    assert not VECTOR.plain_actions


def test_nothing_can_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        DIALECTS["other"] = SPEC  # type: ignore[index]
