"""Why merkle-json stays out of the trust path: each test shows one way in which it would lie.

See docs/decisions/0001. Should a test here ever fail, a release has mended that flaw: read the
record again, and do not merely delete the test.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest
from merkle_json import MerkleJson

from ktlog.errors import EncodingError
from ktlog.pkd.canonical import canonical, parse_json

ROOT = Path(__file__).resolve().parents[2]


def digest(value) -> str:
    return MerkleJson().hash(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], [2, 1]),
        (["revoked", "active"], ["active", "revoked"]),
        (1, "1"),
        (None, "None"),
        (True, "True"),
        ({}, []),
        ({}, ""),
        ([], ""),
    ],
    ids=repr,
)
def test_different_documents_have_one_hash(one, other):
    assert digest(one) == digest(other)
    assert canonical(one) != canonical(other)


def test_a_document_may_state_its_own_hash():
    honest = {"actor": "alice", "key": "good"}
    forged = {"actor": "alice", "key": "evil", "merkleHash": digest(honest)}
    assert digest(forged) == digest(honest)


def test_and_switching_the_cache_off_does_not_help_below_the_top():
    honest = {"actor": "alice"}
    forged = {"message": {"actor": "mallory", "merkleHash": digest(honest)}}
    assert MerkleJson().hash(forged, cached=False) == MerkleJson().hash({"message": honest}, cached=False)


def test_a_key_can_swallow_its_neighbour():
    swallowed = {f"a:{digest(1)},b": 2}
    assert digest(swallowed) == digest({"a": 1, "b": 2})


def test_a_string_can_pass_for_an_object():
    assert digest(f"a:{digest(1)},") == digest({"a": 1})


def test_it_prints_another_document_than_it_was_given():
    value = {'a":1,"b': 2}
    assert json.loads(MerkleJson().stringify(value)) == {"a": 1, "b": 2} != value
    assert parse_json(canonical(value)) == value


def test_it_prints_what_is_not_json():
    value = {"a\nb": 1}
    with pytest.raises(EncodingError):
        parse_json(MerkleJson().stringify(value))
    assert parse_json(canonical(value)) == value


def test_one_instance_changes_the_next():
    shared: list[str] = []
    MerkleJson(hashTag="secret", ignoreKeys=shared)
    assert shared == ["secret"], "it keeps and extends the caller's list"
    MerkleJson(hashTag="price")
    # The default list is one object for all instances, so this one now skips "price" too.
    assert MerkleJson().hash({"price": 1}) == MerkleJson().hash({"price": 2})
    # Leave the shared default as it was for whoever runs next.
    MerkleJson.__init__.__defaults__[1].remove("price")


def test_the_hash_is_md5():
    # The two sides of a published MD5 collision would do; that it is MD5 is enough.
    assert digest("alice") == hashlib.md5(b"alice", usedforsecurity=False).hexdigest()


def test_nesting_crashes_it_instead_of_being_refused():
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        digest(deep)
    with pytest.raises(EncodingError):
        canonical(deep)


def test_nothing_in_the_product_imports_it():
    importers = []
    sources = [path for package in ("ktlog", "witness", "auditor") for path in (ROOT / package).rglob("*.py")]
    assert sources
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "merkle_json" for name in names):
                importers.append(path.relative_to(ROOT))
    assert importers == []


def test_it_is_declared_for_tests_only():
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    before, _, after = text.partition("\ntest =\n")
    assert "merkle-json" not in before
    assert "merkle-json" in after
