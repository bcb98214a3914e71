"""An audit of a log that erased actors: it passes, says what it had to take, and catches a log that lies about it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
from auditor_runs import Mutation, names, run
from auditor_world import ALICE, BOB, DAVE, World, honest_world, person, public

from ktlog.errors import Unreachable
from ktlog.pkd.erasure import (
    NAMING,
    CarriedMove,
    ErasureRecord,
    Mention,
    encode_erasure_record,
    map_index,
    plan_erasure,
)
from ktlog.pkd.messages import AddKey, BurnDown, MoveIdentity, RevokeKeyThirdParty, message_from_plain
from ktlog.pkd.replay import Directory
from ktlog.pkd.token import make_token, parse_token
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.tiles import format_bundle
from ktlog.tlog.tree import Frontier, hash_leaf

ERIN, FRED, GINA = (f"https://alpha.example/users/{name}" for name in ("erin", "fred", "gina"))


class ErasedWorld:
    """A world and its erasure log."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.records: list[ErasureRecord] = []
        follower = Directory(world.directory.origin)
        self.moved: dict[int, CarriedMove | None] = {}
        for index, record in enumerate(world.records):
            wire, message = message_from_plain(
                world.dialect, record["message"].encode(), record["plain"], commitments=False
            )
            follower.replay(wire, message, world.entries[index])
            self.moved[index] = follower.moves.get(index)

    def clone(self) -> ErasedWorld:
        twin = object.__new__(ErasedWorld)
        twin.world, twin.records, twin.moved = self.world.clone(), list(self.records), self.moved
        return twin

    def plain(self, index: int) -> dict[str, str | None]:
        return self.world.records[index]["plain"]

    def erase(self, actor_id: str) -> None:
        mentions = [
            Mention(i, json.loads(r["message"])["action"], None, dict(r["plain"]), self.moved.get(i))
            for i, r in enumerate(self.world.records) if actor_id in {r["plain"].get(name) for name in NAMING}
        ]
        directory = self.world.directory
        plan = plan_erasure(
            directory.origin, self.world.size, directory.actors[actor_id], mentions, self.records, self.plain
        )
        directory.erase(plan.record, mentions, self.plain)
        for index, taken in plan.withhold.items():
            self.world.records[index]["plain"] |= dict.fromkeys(taken)
            self.world.records[index] |= {"withheld": True, "salts": {}}
        self.records.append(plan.record)

    def publish(self) -> World:
        leaves = [encode_erasure_record(record) for record in self.records]
        frontier = Frontier()
        for leaf in leaves:
            frontier = frontier.append(hash_leaf(leaf))
        self.world.publish()
        self.world.serve["erasures"] = json.dumps(
            {"size": len(leaves), "root": encode_base64(frontier.root())}
        ).encode()
        if leaves:
            self.world.serve[f"erasures/000.p/{len(leaves)}"] = format_bundle(leaves)
        return self.world


@cache
def erased_world() -> ErasedWorld:
    """Bob, who moved to Dave, is gone; so are Fred, who burned Alice down, and Erin, whose key a token revoked."""
    world = honest_world().clone()
    world.say(AddKey(FRED, public("fred"), world.next_time()), "fred")
    world.say(AddKey(ERIN, public("erin"), world.next_time()), "erin")
    world.say(BurnDown(ALICE, FRED, world.next_time()), "fred")
    world.say(RevokeKeyThirdParty(parse_token(make_token(person("erin"), public("erin")))))
    world.say(AddKey(GINA, public("gina"), world.next_time()), "gina")
    erased = ErasedWorld(world)
    for actor_id in (BOB, FRED, ERIN):
        erased.erase(actor_id)
    return erased


def test_a_shredded_log_passes_and_says_what_was_taken() -> None:
    erased = erased_world().clone()
    report = run(erased.publish())
    assert names(report) == set() and report.ok
    assert (report.erasures, report.entries_withheld, report.actors) == (3, 6, 4)
    assert report.taken == {
        7: "moved what the erasure record says from an actor erased since",
        12: "burned an actor down on the word of an operator erased since",
        13: "revokes a key that only an actor erased since can have had",
    }
    assert [item["leaf_index"] for item in report.as_dict()["taken"]] == [7, 12, 13]
    assert any("What an erasure withholds" in sentence for sentence in report.not_checked)
    assert BOB.encode() not in erased.world.serve[erased.world.records_path]
    dave = erased.world.directory.actors[DAVE]
    assert dave.fireproof and dave.keys[0].public_key == public("bob")


def test_an_actor_who_enrols_again_is_followed() -> None:
    erased = erased_world().clone()
    erased.world.say(AddKey(FRED, public("fred-2"), erased.world.next_time()), "fred-2")
    fred = erased.world.directory.actors[FRED]
    assert (fred.version, fred.generation, fred.erasures) == (3, 2, 1)
    erased.moved = {**erased.moved, 15: None}
    assert run(erased.clone().publish()).ok
    erased.erase(FRED)
    assert erased.records[-1].version == 4 and run(erased.publish()).ok


def _record(world: ErasedWorld, number: int, **changes: object) -> None:
    world.records[number] = replace(world.records[number], **changes)


def _put_back(world: ErasedWorld) -> None:
    world.plain(10)["actor"] = FRED
    world.plain(10)["public-key"] = None


def _withhold(world: ErasedWorld, index: int, *attributes: str) -> None:
    world.world.records[index]["plain"] |= dict.fromkeys(attributes)
    world.world.records[index]["withheld"] = True


def _forget_the_move(world: ErasedWorld) -> None:
    _record(world, 0, carried=())


def _another_key(world: ErasedWorld) -> None:
    """The record says that somebody else's key moved, whose holder was never erased."""
    _record(world, 0, carried=(replace(world.records[0].carried[0], leaves=(5,)),))


LIES: list[tuple[str, str, Mutation]] = [
    ("one attribute more is withheld than the records say", "RecordWithheld", lambda w: _withhold(w, 5, "actor", "public-key")),
    ("an entry after the last erasure is withheld", "RecordWithheld",
     lambda w: (_withhold(w, 14, "actor", "public-key"), [_record(w, n, input_size=14) for n in range(3)])),
    ("only a key is withheld", "RecordWithheld", lambda w: _withhold(w, 14, "public-key")),
    ("a name is put back beside a withheld key", "RecordWithheld", _put_back),
    ("a record claims more than is withheld", "NotErased", lambda w: _record(w, 1, newly_withheld=4)),
    ("an actor who can be read is said to be erased", "NotErased",
     lambda w: _record(w, 2, index=map_index(w.world.directory.origin, GINA))),
    ("nothing says what a move carried", "BadTransition", _forget_the_move),
    ("a move is said to have carried another's key", "BadErasure", _another_key),
    ("a version goes back", "BadErasure",
     lambda w: w.records.append(replace(w.records[1], input_size=15, version=3, generation=2, newly_withheld=1))),
    ("a generation stays", "BadErasure",
     lambda w: w.records.append(replace(w.records[1], input_size=15, version=9, newly_withheld=1))),
    ("two records speak for one move", "BadErasure",
     lambda w: _record(w, 1, carried=w.records[0].carried, version=9)),
    ("sizes fall", "BadErasure", lambda w: _record(w, 0, input_size=16)),
    ("a burn-down of the fireproof", "BadTransition", lambda w: w.world.force(
        BurnDown(DAVE, GINA, w.world.next_time()), "gina")),
]


@pytest.mark.parametrize(("lie", "name", "mutate"), LIES, ids=[lie for lie, _, _ in LIES])
def test_a_log_that_lies_about_an_erasure(lie: str, name: str, mutate: Mutation) -> None:
    erased = erased_world().clone()
    mutate(erased)
    report = run(erased.publish())
    assert name in names(report) and report.exit_code == 5, report.findings


def test_a_refused_move_of_somebody_erased_is_one_finding_and_stops_nothing() -> None:
    world = World()
    for name in (BOB, FRED):
        world.say(AddKey(name, public(name), world.next_time()), name)
    erased = ErasedWorld(world)
    world.force(MoveIdentity(BOB, DAVE, world.next_time()), FRED)
    world.say(AddKey(GINA, public("gina"), world.next_time()), "gina")
    erased.erase(BOB)
    report = run(erased.publish())
    assert names(report) == {"BadTransition"} and report.actors == 2
    assert erased.records[0].carried == () and report.taken == {}


def test_lists_swapped_between_two_moves_are_caught_by_the_signatures() -> None:
    world = World()
    for name in (BOB, FRED):
        world.say(AddKey(name, public(name), world.next_time()), name)
    world.say(MoveIdentity(BOB, DAVE, world.next_time()), BOB)
    world.say(MoveIdentity(FRED, ERIN, world.next_time()), FRED)
    erased = ErasedWorld(world)
    erased.erase(BOB)
    erased.erase(FRED)
    assert run(erased.clone().publish()).ok
    _record(erased, 0, carried=(CarriedMove(2, False, (1,), 1, bytes(32)),))
    _record(erased, 1, carried=(CarriedMove(3, False, (0,), 1, bytes(32)),))
    assert "BadMessageSignature" in names(run(erased.publish()))


def test_withheld_text_without_an_erasure_log_is_a_finding() -> None:
    world = erased_world().clone().publish()
    for path in [path for path in world.serve if path.startswith("erasures")]:
        del world.serve[path]
    report = run(world)
    assert "RecordWithheld" in names(report) and any("no list" in line for line in report.not_checked)


@pytest.mark.parametrize(("path", "body", "name"), [
    ("erasures", b"[]", "BadErasures"),
    ("erasures", b'{"size":true,"root":""}', "BadErasures"),
    ("erasures", b'{"size":3,"root":"AAAA"}', "BadErasures"),
    ("erasures", b'{"size":3000000000,"root":"%s"}' % encode_base64(bytes(32)).encode(), "BadErasures"),
    ("erasures", b'{"size":3,"root":"%s"}' % encode_base64(bytes(32)).encode(), "BadErasures"),
    ("erasures/000.p/3", b"\x00\x01\x02", "BadErasures"),
    ("erasures/000.p/3", None, "MissingErasures"),
])
def test_an_erasure_log_that_is_none(path: str, body: bytes | None, name: str) -> None:
    world = erased_world().clone().publish()
    if body is None:
        del world.serve[path]
    else:
        world.serve[path] = body
    report = run(world)
    # What cannot be read accuses nobody of withholding: the replay ends there, and says so.
    assert names(report) == {name}
    assert any("could not be read" in line for line in report.not_checked)


def test_an_erasure_log_that_times_out_teaches_nothing() -> None:
    world = erased_world().clone().publish()
    world.serve["erasures"] = Unreachable("Timeout", "no answer")
    report = run(world)
    assert {(finding.name, finding.kind) for finding in report.findings} == {("Timeout", "Unreachable")}


def test_an_erasure_beyond_the_head_explains_text_and_erases_nobody_yet() -> None:
    """Text is gone at once; the erasure takes effect with the next checkpoint."""
    erased = erased_world().clone()
    for number in range(3):
        _record(erased, number, input_size=erased.world.size + 1)
    report = run(erased.publish())
    assert report.ok and report.entries_withheld == 6 and sorted(report.taken) == [7, 12, 13]


def test_an_erasure_during_the_audit_is_no_fault() -> None:
    erased = erased_world().clone()
    world, young = erased.publish(), erased.clone()
    young.records.pop()
    older = young.publish().serve
    real, asked = world.get, []

    def get(url: str, **options: object):
        if url.endswith("/erasures"):
            asked.append(url)
            if len(asked) == 1:
                newer, world.serve["erasures"] = world.serve["erasures"], older["erasures"]
                world.serve["erasures/000.p/2"] = older["erasures/000.p/2"]
                answer = real(url, **options)
                world.serve["erasures"] = newer
                return answer
        return real(url, **options)

    world.get = get
    report = run(world)
    assert report.ok and report.erasures == 3 and len(asked) >= 3
