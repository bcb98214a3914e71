"""Cosignatures from listed witnesses: which are taken, for which roots, and how often."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ktlog.errors import StoreError, UsageError
from ktlog.operator.cosigning import CosignDesk, load_cosigners
from ktlog.pkd.cosign import make_cosignature
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key, encode_root
from ktlog.pkd.messages import AddKey
from ktlog.tlog.tree import EMPTY_ROOT
from tests.admission_world import WINDOW, refusal_code
from tests.operator_world import NOW, ORIGIN, Clock, Desk
from tests.pkd_samples import ALICE, BOB, private, public, quick_argon2  # noqa: F401

WITNESS = "https://w1.example"


class Link:
    """The sequencer's side of it, without the socket."""

    def __init__(self, store) -> None:
        self.store = store
        self.calls = 0

    def cosign(self, cosignature) -> bool:
        self.calls += 1
        return self.store.add_cosignature(cosignature)


class World:
    def __init__(self) -> None:
        self.desk = Desk()
        self.clock = Clock()
        self.desk.send(AddKey(ALICE, public("a"), NOW), "a")
        self.first = self.desk.root
        self.desk.send(AddKey(BOB, public("b"), NOW), "b")
        self.link = Link(self.desk.store)
        self.cosigning = CosignDesk(
            store=self.desk.store, link=self.link, origin=ORIGIN,
            cosigners={WITNESS: public("w1"), "w2.example": public("w2")}, time_window_seconds=WINDOW, now=self.clock,
        )

    def body(self, root: str, name: str = "w1", witness: Any = WITNESS, when: int = NOW, host: str = ORIGIN) -> bytes:
        return json.dumps({"witness": witness, "cosigned": make_cosignature(private(name), when, host, root)}).encode()

    def take(self, root: str, body: bytes | None = None, **options: Any) -> None:
        self.cosigning.take(root, self.body(root, **options) if body is None else body)

    def witnesses(self, size: int) -> list[str]:
        return [found.witness for found in self.desk.store.cosignatures(size)]


@pytest.fixture
def world() -> World:
    return World()


def test_a_cosignature_stands_beside_the_entry_that_completed_the_tree(world):
    body = world.body(world.first)
    world.take(world.first, body)
    (found,) = world.desk.store.cosignatures(1)
    assert (found.tree_size, found.merkle_root, found.witness, found.time) == (1, world.first, WITNESS, NOW)
    assert found.cosigned == json.loads(body)["cosigned"]
    assert world.witnesses(2) == []


def test_any_root_the_log_had_by_any_listed_witness(world):
    world.take(world.first)
    world.take(world.desk.root)
    world.take(world.desk.root, name="w2", witness="w2.example")
    assert (world.witnesses(1), world.witnesses(2)) == ([WITNESS], [WITNESS, "w2.example"])


def test_the_second_of_a_witness_for_one_root_changes_nothing(world):
    first = world.body(world.first)
    world.take(world.first, first)
    world.take(world.first, first)
    world.take(world.first, when=NOW + 60)
    assert (world.link.calls, world.witnesses(1)) == (1, [WITNESS])
    assert world.desk.store.cosignatures(1)[0].time == NOW


def test_strangers_are_not_heard(world):
    assert refusal_code(lambda: world.take(world.first, witness="https://w3.example")) == "unknown_witness"
    assert refusal_code(lambda: world.take(world.first, witness="w1.example")) == "unknown_witness"
    assert world.link.calls == 0


def test_one_witness_cannot_speak_for_another(world):
    assert refusal_code(lambda: world.take(world.first, name="w2")) == "bad_cosignature"
    assert refusal_code(lambda: world.take(world.first, witness="w2.example")) == "bad_cosignature"


def test_the_token_is_for_this_log_and_this_root(world):
    assert refusal_code(lambda: world.take(world.first, host="keys.example.net")) == "bad_cosignature"
    assert refusal_code(lambda: world.take(world.first, world.body(world.desk.root))) == "bad_cosignature"
    assert world.link.calls == 0


@pytest.mark.parametrize("root", [encode_root(bytes(31) + b"\x01"), ZERO_ROOT, encode_root(EMPTY_ROOT)])
def test_roots_the_log_never_had_and_that_of_no_entry(world, root):
    assert refusal_code(lambda: world.take(root)) == "unknown_root"


@pytest.mark.parametrize("root", ["", "x", "pkd-mr-v1:", ZERO_ROOT[:-1], ZERO_ROOT[:-1] + "B", "�"])
def test_a_path_that_names_no_root(world, root):
    assert refusal_code(lambda: world.take(root, world.body(world.first))) == "bad_root"


@pytest.mark.parametrize("shift", [-WINDOW - 1, WINDOW + 1])
def test_a_token_of_another_time(world, shift):
    assert refusal_code(lambda: world.take(world.first, when=NOW + shift)) == "stale_time"


@pytest.mark.parametrize(("body", "code"), [
    (b"", "bad_json"), (b"[]", "bad_request"), (b"{}", "bad_request"), (b'{"witness":"x"}', "bad_request"),
    (b'{"cosigned":"x"}', "bad_request"),
    (b'{"witness":"x","cosigned":{}}', "bad_request"), (b'{"witness":1,"cosigned":""}', "bad_request"),
    (b'{"witness":"x","cosigned":"","more":""}', "bad_request"), (b"\xff", "bad_json"),
    (b'{"witness":"x","witness":"y","cosigned":""}', "duplicate_json_key"),
    (b'{"witness":"https://w1.example","cosigned":"{}"}', "bad_cosignature"),
])
def test_malformed_requests(world, body, code):
    assert refusal_code(lambda: world.take(world.first, body)) == code


def test_the_list_is_read_from_the_log_s_directory(tmp_path):
    assert load_cosigners(tmp_path / "cosigners") == {}
    (tmp_path / "cosigners").write_text(f"{WITNESS} {encode_public_key(public('w1'))}\n")
    assert load_cosigners(tmp_path / "cosigners") == {WITNESS: public("w1")}
    (tmp_path / "cosigners").write_text(f"{WITNESS}\n")
    with pytest.raises(UsageError, match="BadCosigners"):
        load_cosigners(tmp_path / "cosigners")
    with pytest.raises(StoreError):
        load_cosigners(tmp_path)
