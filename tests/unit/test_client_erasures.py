"""Lookups in a log that erased actors: what is left of them still counts, and is listed as taken."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from client_log import DOMAIN, NOW, TinyLog, actor, key
from client_world import ALICE, ROOT, World, remembering_argon2id, say

from ktlog.client.build import add_key, burn_down, enrol, fireproof, move_identity, revoke_key
from ktlog.errors import Invalid, NotLogged, Stale
from ktlog.pkd import attributes
from ktlog.pkd.actors import Status
from ktlog.pkd.canonical import canonical
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.erasure import (
    NAMING,
    CarriedMove,
    ErasureRecord,
    Mention,
    encode_erasure_record,
    plan_erasure,
)
from ktlog.pkd.messages import parse_wire
from ktlog.tlog.encoding import decode_base64url, encode_base64
from ktlog.tlog.tiles import format_bundle
from ktlog.tlog.tree import Frontier, hash_leaf

OLD, MID, CAROL = actor("old"), actor("mid"), actor("carol")
BLANK = ErasureRecord(1, bytes(32), 2, 1, 1, ())


class ErasingLog(TinyLog):
    """A log that erases, and serves what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[ErasureRecord] = []
        self.moved: dict[int, CarriedMove] = {}

    def accept(self, built):
        receipt = super().accept(built)
        index = self.size - 1
        for name, role in self.roles[index].items():
            if role == 3:
                row = self.actors[name]
                leaves = sorted(held.leaf_index for held in (*row.keys, *row.aux))
                self.moved[index] = CarriedMove(index, row.fireproof, tuple(leaves), 1, bytes(32))
        return receipt

    def erase(self, actor_id: str) -> ErasingLog:
        plains = [row["plain"] for row in self.rows]
        mentions = [
            Mention(i, json.loads(self.rows[i]["encrypted-message"])["action"], None, dict(plain), self.moved.get(i))
            for i, plain in enumerate(plains) if actor_id in {plain.get(name) for name in NAMING}
        ]
        plan = plan_erasure(
            self.origin, self.size, self.actors[actor_id], mentions, self.records, plains.__getitem__
        )
        for index, taken in plan.withhold.items():
            self.rows[index] = {**self.rows[index], "plain": plains[index] | dict.fromkeys(taken)}
        self.roles = [{name: role for name, role in roles.items() if name != actor_id} for roles in self.roles]
        self.states = [{name: row for name, row in state.items() if name != actor_id} for state in self.states]
        self.states[-1][actor_id] = plan.erased
        self.records.append(plan.record)
        return self

    def page(self, actor_id: str, size: int, after: int = -1):
        row = self.states[size].get(actor_id)
        return None if row is None or row.status == Status.ERASED else super().page(actor_id, size, after)

    def answer(self, path: str, query: str) -> tuple[int, bytes]:
        if path.startswith("/erasures"):
            leaves = [encode_erasure_record(record) for record in self.records]
            frontier = Frontier()
            for leaf in leaves:
                frontier = frontier.append(hash_leaf(leaf))
            if path == "/erasures":
                return 200, json.dumps({"size": len(leaves), "root": encode_base64(frontier.root())}).encode()
            start = int(path[10:13]) * 256
            return 200, format_bundle(leaves[start : start + 256])
        if path.startswith("/tile/entries/"):
            return 200, format_bundle([decode_base64url(row["merkle-leaf"]) for row in self.rows[: self.published]])
        if path.startswith("/records/"):
            lines = [
                json.dumps({
                    "leaf-index": index, "message": row["encrypted-message"], "plain": row["plain"], "salts": {},
                    "withheld": None in row["plain"].values(),
                })
                for index, row in enumerate(self.rows[: self.published])
            ]
            return 200, ("\n".join(lines) + "\n").encode()
        return super().answer(path, query)


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    log = ErasingLog()
    say(log, enrol, ROOT, key(20))
    say(log, enrol, ALICE, key(1))
    return World(tmp_path, log.publish())


@pytest.fixture
def moved(world) -> World:
    """OLD, fireproof, moved two keys to MID and on to Alice's new name; OLD and MID are erased."""
    log = world.log
    say(log, enrol, OLD, key(30))
    say(log, add_key, OLD, key(31).public_key, key(30))
    say(log, fireproof, OLD, key(30))
    say(log, move_identity, OLD, MID, key(31))
    say(log, move_identity, MID, CAROL, key(30))
    say(log, revoke_key, CAROL, key(30).public_key, key(31))
    log.publish()
    return world


def test_keys_that_came_from_an_erased_actor_are_found(moved):
    before = moved.lookup(CAROL)
    moved.log.erase(OLD)
    moved.log.erase(MID).publish()
    answer = moved.lookup(CAROL)
    assert (answer.keys, answer.fireproof, answer.status) == (before.keys, True, "active")
    assert (answer.version, answer.generation, answer.reset) == (before.version, before.generation, None)
    assert answer.keys[0].public_key == key(31).public_key
    assert not before.taken and len(answer.taken) == 1 and "entry 6 moved" in answer.taken[0]
    assert answer.as_dict()["taken"] == list(answer.taken)
    assert "taken" in answer.not_proven[0] and any("but for what is taken" in text for text in answer.checks)


def test_only_the_first_of_a_chain_is_erased(moved):
    moved.log.erase(OLD).publish()
    answer = moved.lookup(CAROL)
    assert [text[:7] for text in answer.taken] == ["entry 5"] and answer.fireproof


def test_a_burn_down_by_an_operator_erased_since(world):
    say(world.log, burn_down, ALICE, ROOT, key(20))
    say(world.log, enrol, ALICE, key(2))
    world.log.erase(ROOT).publish()
    answer = world.lookup()
    assert [held.public_key for held in answer.keys] == [key(2).public_key]
    assert (answer.generation, answer.cause) == (2, "enrolment after a BurnDown")
    assert len(answer.taken) == 1 and "burned the actor down" in answer.taken[0]


def test_withheld_text_that_no_erasure_explains_is_refused(world):
    say(world.log, burn_down, ALICE, ROOT, key(20))
    say(world.log, enrol, ALICE, key(2))
    world.log.erase(ROOT).publish()
    (record,) = world.log.records
    world.log.records.clear()
    world.refuses(Invalid, "RecordWithheld")
    world.log.records.append(replace(record, input_size=2))
    world.refuses(Invalid, "RecordWithheld")


def test_a_burn_down_of_a_fireproof_actor_stays_refused(world):
    say(world.log, fireproof, ALICE, key(1))
    built = burn_down(ALICE, ROOT, key(20), recent_root=world.log.recent(), now=NOW)
    preimage = parse_wire(SPEC, canonical(dict(built.wire))).preimage
    world.log.append(preimage, {"actor": ALICE, "operator": ROOT}, {ALICE: 1})
    world.log.erase(ROOT).publish()
    world.refuses(Invalid, "BadTransition")


def test_a_record_that_says_nothing_of_a_move_is_refused(moved):
    moved.log.erase(MID).publish()
    moved.log.records[0] = replace(moved.log.records[0], carried=())
    moved.refuses(Invalid, "BadTransition", CAROL)


@pytest.mark.parametrize(("leaves", "name"), [
    ((2,), "BadMessageSignature"),  # key 31 is missing, so a later message was signed by nobody
    ((2, 4), "BadErasure"),  # entry 4 is a Fireproof, which nobody can have carried
    ((1, 2, 3), "OmittedKey"),  # entry 1 enrols Alice's key, which is then missing from Carol's answer
])
def test_a_record_that_lies_about_a_move_is_refused(moved, leaves, name):
    moved.log.erase(OLD).erase(MID).publish()
    moved.log.records[1] = replace(moved.log.records[1], carried=(CarriedMove(6, True, leaves, 1, bytes(32)),))
    moved.refuses(Invalid, name, CAROL)


def test_an_entry_that_is_not_in_the_tree_is_refused(moved):
    moved.log.erase(OLD).erase(MID).publish()
    entries = [decode_base64url(row["merkle-leaf"]) for row in moved.log.rows]
    entries[2] = entries[3]
    moved.network.replace("/tile/entries/000.p/8", format_bundle(entries))
    moved.refuses(Invalid, "BadEntryProof", CAROL)


def test_an_erased_actor_is_said_to_be_erased(world):
    world.lookup()
    world.log.erase(ALICE).publish()
    assert world.refuses(NotLogged, "Erased").exit_code == 4


def test_who_enrols_again_begins_anew(world):
    say(world.log, add_key, ALICE, key(2).public_key, key(1))
    world.log.publish()
    before = world.lookup()
    world.log.erase(ALICE)
    say(world.log, enrol, ALICE, key(3))
    world.log.publish()
    answer = world.lookup()
    assert (before.version, before.generation, before.cause) == (2, 1, "first enrolment")
    assert (answer.version, answer.generation, answer.cause) == (4, 2, "enrolment after erasure")
    assert answer.reset == "enrolment after erasure" and not answer.taken
    assert [held.public_key for held in answer.keys] == [key(3).public_key]


def test_a_page_from_before_the_erasure_is_stale(world):
    page = world.log.page(ALICE, world.log.size)
    world.log.erase(ALICE).publish()
    world.network.replace(f"/api/actor/https%3A%2F%2F{DOMAIN}%2Fusers%2Falice/keys", json.dumps(page).encode())
    assert world.refuses(Stale, "ErasedMeanwhile").hint


@pytest.mark.parametrize("body", [b"[]", b'{"size":-1,"root":""}', b'{"size":1,"root":"%s"}' % (b"A" * 43 + b"=")])
def test_an_erasure_log_that_is_none(world, body):
    world.log.erase(ROOT).publish()
    world.network.replace("/erasures", body)
    world.refuses(Invalid, "BadErasures")


def test_a_log_without_that_page_never_erased(world):
    world.network.replace("/erasures", b"{}", 404)
    assert world.lookup().keys


def test_pages_of_erasures_are_read_once(world):
    """A record never changes, so one that was read is not asked for again: only full pages can be told apart."""
    many = [replace(BLANK, index=number.to_bytes(32, "big")) for number in range(300)]
    world.log.records = many[:257]
    world.log.publish()
    directory = world.directory()
    directory.lookup(ALICE)
    world.log.records = many
    world.network.requests.clear()
    directory.lookup(ALICE)
    assert [url.rpartition("erasures/")[2] for url in world.network.requests if "erasures/" in url] == ["001.p/44"]
