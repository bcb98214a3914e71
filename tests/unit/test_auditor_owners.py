"""Events, subscriptions, and alarms with proofs that an owner checks offline."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import auditor.sinks
from auditor.alarm import finding_alarm
from auditor.alarmproof import verify_alarm
from auditor.audit import parse_selection
from auditor.cli import ktlog_auditor
from auditor.events import ERASURE, Event, erased_name, erasure_event, events_of
from auditor.fetch import LogReader
from auditor.follow import Follower
from auditor.live import keys_in
from auditor.outbox import KEPT_ALARMS, MAX_WAITING, Outbox
from auditor.outbox_room import MAX_FINDINGS_WAITING
from auditor.owners import Owners
from auditor.report import Finding
from auditor.saved import Actors
from auditor.sinks import KINDS
from auditor.state import AuditDirectory
from auditor.subscriptions import ACTOR, DOMAIN, KEY, Subscriptions
from ktlog.client.publicfiles import PublicFiles
from ktlog.client.verify import open_head
from ktlog.errors import EncodingError, Invalid, PolicyUnmet, StoreError, UsageError
from ktlog.pkd.actions import AddAuxData, AddKey, BurnDown, UndoFireproof
from ktlog.pkd.actors import Actor
from ktlog.pkd.erasure import ErasureRecord, map_index
from ktlog.pkd.keys import derive_key_id, encode_public_key
from ktlog.pkd.messages import message_from_plain
from ktlog.pkd.replay import Directory
from tests.auditor_world import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    NOW,
    ORIGIN,
    World,
    honest_world,
    log_under_audit,
    policy,
    policy_bytes,
    public,
)
from tests.watch_world import WatchedWorld

ENTRIES = 10


@cache
def events(world: World) -> tuple[Event, ...]:
    """What a replay of the world's entries tells."""
    directory, out = Directory(ORIGIN), []
    for index, (entry, record) in enumerate(zip(world.entries, world.records, strict=True)):
        wire, message = message_from_plain(
            world.dialect, record["message"].encode(), record["plain"], commitments=False
        )
        before: dict[str, Actor | None] = dict(directory.view_for(message).actors)
        change = directory.replay(wire, message, entry)
        after = {actor.actor_id: actor for actor in change.actors}
        out += events_of(index, wire, message, before, after, origin=ORIGIN)
    return tuple(out)


def files(world: World) -> PublicFiles:
    return PublicFiles(world, f"https://{ORIGIN}")


class Box:
    name, findings, rewrites = "box", True, False

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.why: list[list[str]] = []

    def send(self, document: dict[str, Any], reasons: list[str], recent: object) -> None:
        self.got.append(document)
        self.why.append(reasons)


class Site:
    """An outbox, one sink and its owners."""

    def __init__(self, directory: Path) -> None:
        self.outbox = Outbox(directory)
        self.box = Box()
        self.owners = Owners(self.outbox, {"box": self.box})

    def watch(self, kind: str, text: str, label: str = "", first: int = 0) -> None:
        self.owners.subscriptions.add(ORIGIN, kind, text, "box", label, NOW, first)

    def take(self, world: World, given: tuple[Event, ...] | None = None) -> list[dict[str, Any]]:
        """What the sink is given of *given*, by default all that happened in the world."""
        before = len(self.box.got)
        head = open_head(world.checkpoint(), log_under_audit())
        self.owners.take(ORIGIN, events(world) if given is None else given, head, files(world), NOW)
        self.outbox.deliver({"box": self.box}, NOW)
        return self.box.got[before:]


@pytest.fixture
def site(tmp_path: Path):
    site = Site(tmp_path)
    yield site
    site.outbox.close()


# Events


def test_each_entry_says_whom_it_touched_and_which_keys_came_and_went() -> None:
    told = {event.leaf_index: event for event in events(honest_world())}
    assert set(told) == {0, 1, 2, 3, 4, 5, 7, 8, 9}  # entry 6 is a Checkpoint: it touches nobody
    assert (told[0].action, told[0].subjects, told[0].added) == ("AddKey", (ALICE,), (public("alice-1"),))
    assert told[0].key_ids == (derive_key_id(ORIGIN, 0),) and told[0].generation == 1 and not told[0].reset
    assert (told[3].action, told[3].removed, told[3].added) == ("RevokeKey", (public("alice-1"),), ())
    assert told[4].action == "Fireproof" and told[4].alarming
    assert (told[7].action, told[7].subjects) == ("MoveIdentity", (BOB, DAVE))
    assert told[7].added == told[7].removed == (public("bob"),) and "Fireproof went" in told[7].detail
    assert (told[8].action, told[8].subjects, told[8].removed) == (
        "RevokeKeyThirdParty", (CAROL,), (public("carol"),)
    )
    assert told[8].time is None and told[8].detail == "no key is left"


def test_a_token_is_told_to_who_watches_the_key_even_if_nobody_who_can_be_read_had_it() -> None:
    record = honest_world().records[8]
    wire, message = message_from_plain(honest_world().dialect, record["message"].encode(), {}, commitments=False)
    event, = events_of(8, wire, message, {}, {}, origin=ORIGIN)
    assert (event.subjects, event.removed, event.generation) == ((), (public("carol"),), None) and event.alarming


@cache
def later_world() -> World:
    """The honest one, and then: alice is burned down by erin and enrols anew; aux data; Fireproof lifted."""
    world = honest_world().clone()
    erin = "https://alpha.example/users/erin"
    world.say(AddKey(erin, public("beta"), world.next_time()), "beta")
    world.say(BurnDown(ALICE, erin, world.next_time()), "beta")
    world.say(AddKey(ALICE, public("bob"), world.next_time()), "bob")
    world.say(AddAuxData(DAVE, "age-v1", "age1" + "q" * 58, None, world.next_time()), "bob")
    world.say(UndoFireproof(DAVE, world.next_time()), "bob")
    return world.publish()


def test_a_new_root_of_trust_is_told_with_its_cause_and_aux_data_wake_nobody() -> None:
    told = {event.leaf_index: event for event in events(later_world())}
    assert told[11].action == "BurnDown" and set(told[11].removed) == {public("alice-2"), public("alice-3")}
    assert told[11].subjects == (ALICE, "https://alpha.example/users/erin")
    assert told[12].reset and told[12].generation == 2 and told[12].detail == "after a BurnDown"
    assert not told[13].alarming and told[14].alarming


# Who is told


@pytest.mark.parametrize(("kind", "text", "entries"), [
    (ACTOR, ALICE, {0, 2, 3, 9}),
    (ACTOR, DAVE, {7}),
    (DOMAIN, "alpha.example", {0, 1, 2, 3, 4, 5, 7, 8, 9}),
    (DOMAIN, "pha.example", set()),
    (KEY, "alice-1", {0, 3}),
    (KEY, "carol", {5, 8}),
    (KEY, derive_key_id(ORIGIN, 1), {1, 7}),
])
def test_a_subscription_hears_of_its_own_and_of_nothing_else(
    site: Site, kind: str, text: str, entries: set[int]
) -> None:
    site.watch(kind, encode_public_key(public(text)) if text in ("alice-1", "carol") else text, "mine")
    got = site.take(honest_world())
    assert {alarm["leaf_index"] for alarm in got} == entries and all(why == ["mine"] for why in site.box.why)
    assert site.take(honest_world()) == []  # the same again, as after a crash


def test_entries_before_the_first_one_that_counts_raise_no_alarm(site: Site) -> None:
    site.watch(ACTOR, ALICE, first=3)
    assert [alarm["leaf_index"] for alarm in site.take(honest_world())] == [3, 9]


def test_a_sink_with_two_reasons_gets_one_alarm_with_both(site: Site) -> None:
    site.watch(ACTOR, ALICE, "me")
    site.watch(DOMAIN, "alpha.example", "our users")
    site.take(honest_world(), events(honest_world())[:1])
    assert site.box.why == [["me", "our users"]]


@pytest.mark.parametrize(("kind", "text"), [
    (ACTOR, "https://Alpha.example/users/x"), (ACTOR, "alice"), (KEY, "mldsa44:AA"), (KEY, "x"), (DOMAIN, "1.2.3.4"),
])
def test_a_subject_that_is_none_is_refused(site: Site, kind: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        site.watch(kind, text)
    assert caught.value.name == "BadSubject"


def test_when_the_outbox_is_full_the_error_reaches_the_follower(tmp_path: Path) -> None:
    with Outbox(tmp_path, max_waiting=2) as outbox:
        owners = Owners(outbox, {})
        owners.subscriptions.add(ORIGIN, DOMAIN, "alpha.example", "dead", "", NOW)
        with pytest.raises(StoreError) as caught:
            owners.take(ORIGIN, events(honest_world()), None, files(honest_world()), NOW)
        assert caught.value.name == "OutboxFull" and outbox.waiting() == 2


# Erasures


def erasure(actor_id: str, size: int = ENTRIES) -> Event:
    return erasure_event(ORIGIN, ErasureRecord(size, map_index(ORIGIN, actor_id), 5, 1, 3, ()))


def test_an_erasure_is_told_and_then_the_name_is_forgotten_but_a_new_enrolment_is_seen(site: Site) -> None:
    site.watch(ACTOR, ALICE, "me")
    site.watch(DOMAIN, "alpha.example", "our users")
    gone = erased_name(map_index(ORIGIN, ALICE))
    site.take(honest_world())
    alarm, = site.take(honest_world(), (erasure(ALICE),))
    assert (alarm["name"], alarm["subjects"], alarm["tlog_proof"]) == (ERASURE, [gone], None)
    assert site.box.why[-1] == ["me", "our users"]
    assert ALICE not in json.dumps(site.outbox.rows())
    assert [row.subject for row in Subscriptions(site.outbox).all()] == [None, "alpha.example"]
    again = Event(ORIGIN, 12, "AddKey", (ALICE,), reset=True, detail="after an erasure", generation=2)
    alarm, = site.take(honest_world(), (again,))
    assert "after an erasure" in alarm["sentence"] and "me" in site.box.why[-1]


def test_who_watches_a_domain_hears_of_an_erasure_of_one_of_its_actors(site: Site) -> None:
    site.watch(DOMAIN, "alpha.example", first=99)  # no alarm was ever raised: the name is known from the live checks
    site.take(honest_world())
    event = Event(ORIGIN, 120, ERASURE, erasure(BOB).subjects)
    alarm, = site.take(honest_world(), (event,))
    assert alarm["subjects"] == [erased_name(map_index(ORIGIN, BOB))]
    assert site.outbox.names_of(ORIGIN, map_index(ORIGIN, BOB)) == []


# Proofs


@pytest.fixture(scope="module")
def alarm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The alarm of entry 2, as a sink gets it."""
    site = Site(tmp_path_factory.mktemp("alarm"))
    site.watch(ACTOR, ALICE)
    alarm, = site.take(honest_world(), events(honest_world())[2:3])
    site.outbox.close()
    return alarm


def test_an_alarm_carries_its_proof_and_an_owner_checks_it_offline(alarm: dict[str, Any], tmp_path: Path) -> None:
    found = verify_alarm(alarm, policy(), NOW)
    assert (found.origin, found.leaf_index, found.action, found.subjects) == (ORIGIN, 2, "AddKey", (ALICE,))
    assert found.keys == (encode_public_key(public("alice-2")),) and found.as_of == NOW - 10
    (tmp_path / "alarm.json").write_text(json.dumps(alarm | {"reasons": ["me"]}))
    (tmp_path / "policy").write_bytes(policy_bytes())
    result = CliRunner().invoke(ktlog_auditor, [
        "verify-alarm", str(tmp_path / "alarm.json"), "--policy", str(tmp_path / "policy"), "--at", str(NOW)
    ], catch_exceptions=False)
    assert result.exit_code == 0 and "this AddKey as entry 2" in result.output and ALICE in result.output


@pytest.mark.parametrize(("change", "error"), [
    ({"subjects": [BOB]}, "AlarmContradictsEntry"),
    ({"name": "BurnDown"}, "AlarmContradictsEntry"),
    ({"leaf_index": 3}, "AlarmContradictsEntry"),
    ({"origin": "keys.beta.example"}, "AlarmContradictsEntry"),
    ({"keys_added": ["mldsa44:other"]}, "AlarmContradictsEntry"),
    ({"tlog_proof": None}, "NoProof"),
    ({"kind": "finding"}, "NoProof"),
    ({"entry": "0"}, "BadBase64"),
])
def test_an_alarm_that_was_changed_is_caught(alarm: dict[str, Any], change: dict[str, Any], error: str) -> None:
    with pytest.raises((Invalid, EncodingError)) as caught:
        verify_alarm(alarm | change, policy(), NOW)
    assert caught.value.name == error


def test_another_plaintext_another_message_or_too_few_witnesses_are_caught(alarm: dict[str, Any]) -> None:
    lied = alarm | {"record": alarm["record"] | {"plain": alarm["record"]["plain"] | {"actor": BOB}}, "subjects": [BOB]}
    with pytest.raises(Invalid) as caught:
        verify_alarm(lied, policy(), NOW)
    assert caught.value.name == "PlaintextMismatch"
    other = honest_world().records[1]
    with pytest.raises(Invalid) as caught:
        verify_alarm(alarm | {"record": other | {"leaf-index": 2}}, policy(), NOW)
    assert caught.value.name == "PreimageMismatch"
    alone = honest_world().checkpoint(witnesses=0).decode()
    proof = alarm["tlog_proof"].partition("\n\n")[0] + "\n\n" + alone
    with pytest.raises(PolicyUnmet):
        verify_alarm(alarm | {"tlog_proof": proof}, policy(), NOW)


def test_an_alarm_never_waits_for_its_proof(site: Site) -> None:
    world = honest_world().clone()
    for path in [path for path in world.serve if path.startswith("tile/0")]:
        del world.serve[path]
    site.watch(ACTOR, DAVE)
    alarm, = site.take(world)
    assert alarm["tlog_proof"] is None and "MissingTile" in alarm["proof_missing"] and alarm["entry"]
    with pytest.raises(Invalid) as caught:
        verify_alarm(alarm, policy(), NOW)
    assert caught.value.name == "NoProof"


# Commands


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(ktlog_auditor, arguments)
    if isinstance(result.exception, UsageError):
        return result.exception.name
    assert result.exit_code == code, result.output
    return result.output


def test_the_commands_of_an_owner_read_as_a_session(tmp_path: Path) -> None:
    where = ("--dir", str(tmp_path / "w"))
    assert run("subscribe", ORIGIN, *where, "--actor", ALICE, "--to", "feed") == "UnknownSink"
    (tmp_path / "w").mkdir(exist_ok=True)
    (tmp_path / "w" / "watch.toml").write_text('[sinks.feed]\ntype = "atom"\nfile = "feed.xml"\n')
    told = run("subscribe", ORIGIN, *where, "--actor", ALICE, "--domain", "alpha.example", "--to", "feed")
    assert told.splitlines()[0] == f"1: actor {ALICE} in {ORIGIN}, to feed"
    assert run("subscribe", ORIGIN, *where) == "NothingToWatch"
    assert run("unsubscribe", "9", *where) == "UnknownSubscription"
    run("unsubscribe", "2", *where)
    listed = json.loads(run("subscriptions", *where, "--json"))["subscriptions"]
    assert [(row["subject"], row["sink"]) for row in listed] == [(ALICE, "feed")]
    assert "took the test alarm" in run("test-sink", "feed", *where)
    assert b"test alarm" in (tmp_path / "w" / "feed.xml").read_bytes()
    assert json.loads(run("alarms", *where, "--json"))["waiting"] == 0


def test_who_subscribes_to_a_domain_is_told_at_once_who_is_there(tmp_path: Path) -> None:
    """Of what a watch has read no alarm tells; so the command does, while the watch runs, and their servers are asked."""
    words = ("subscribe", ORIGIN, "--dir", str(tmp_path), "--domain", "alpha.example")
    assert "has read no entry of the log yet" in run(*words) and json.loads(run(*words, "--json"))["there"] == []
    world = honest_world()
    keys = {name: len(actor.keys) for name, actor in world.directory.actors.items()}
    ours = {name: count for name, count in keys.items() if count and name.startswith("https://alpha.example/")}
    assert ours and len(ours) < len(keys)
    with AuditDirectory(tmp_path / "logs" / ORIGIN) as state:
        reader = LogReader(world.clone(), f"https://{ORIGIN}")
        none = parse_selection("none")
        assert Follower(log_under_audit(), reader, state, commitments=none, answers=none).advance(NOW).size == ENTRIES
        with state.ledger(ORIGIN, "semantic") as ledger:  # as in the midst of a reading: of its rows none counts
            new = replace(world.directory.actors[ALICE], actor_id="https://alpha.example/users/new")
            Actors(ledger, 0)[new.actor_id] = new
            told = json.loads(run(*words, "--json"))
    (there,) = told["there"]
    assert {one["id"]: one["keys"] for one in there["actors"]} == ours
    assert (there["domain"], there["read_to"], there["as_of"], there["more"]) == ("alpha.example", ENTRIES, NOW, 0)
    assert f"  {ALICE}: {ours[ALICE]}" in run(*words).splitlines()
    # A host is that very host.
    for host in ("alpha.exampl", "pha.example", "users.alpha.example"):
        assert f"Nobody of {host} has a key by the {ENTRIES}" in run(*words[:-1], host)
    with Outbox(tmp_path) as outbox:
        assert {name for (name,) in outbox.read("SELECT actor_id FROM live_checks")} == set(ours)
        outbox.forget_actor(ORIGIN, map_index(ORIGIN, ALICE), [])
        assert outbox.names_of(ORIGIN, map_index(ORIGIN, ALICE)) == []


def test_a_damaged_row_is_said_and_nothing_is_listed(tmp_path: Path) -> None:
    with AuditDirectory(tmp_path / "logs" / ORIGIN) as state:
        none = parse_selection("none")
        Follower(
            log_under_audit(), LogReader(honest_world().clone(), f"https://{ORIGIN}"), state, commitments=none, answers=none
        ).advance(NOW)
        with state.ledger(ORIGIN, "semantic") as ledger:
            ledger.put("actor", bytes(32), b'["https://alpha.example/users/x", 7]')
            ledger.keep()
    words = ("subscribe", ORIGIN, "--dir", str(tmp_path), "--domain", "alpha.example")
    assert CliRunner().invoke(ktlog_auditor, words).exception.name == "Corrupt"


# In the watch


def test_a_watch_raises_the_alarms_before_it_moves_on_and_compares_what_is_live(tmp_path: Path) -> None:
    """With the real follower and its ledger: a full outbox holds the position, and no alarm is lost or doubled."""
    world = honest_world()
    with WatchedWorld(tmp_path, world.clone(), read="all", commitments="none") as watched:
        box = Box()
        outbox = Outbox(tmp_path, max_waiting=3)
        owners = Owners(outbox, {"box": box})
        owners.subscriptions.add(ORIGIN, ACTOR, ALICE, "box", "me", NOW)
        watched.log._announcer = owners
        with pytest.raises(StoreError) as caught:
            watched.log.read(NOW)
        assert caught.value.name == "OutboxFull" and outbox.waiting() == 3
        outbox._max_waiting = 4
        assert watched.log.read(NOW).entries == ENTRIES
        watched.log.read(NOW)
        outbox.deliver(owners.sinks, NOW)
        assert [alarm["leaf_index"] for alarm in box.got] == [0, 2, 3, 9]
        assert verify_alarm(box.got[3], policy(), NOW).subjects == (ALICE,)
        keys = keys_in(watched.state, ORIGIN)((ALICE, CAROL, "https://alpha.example/users/nobody"))
        assert keys == {ALICE: (public("alice-2"), public("alice-3")), CAROL: ()}
        outbox.close()


def test_a_watch_does_not_begin_with_a_subscription_to_a_sink_that_is_not_there(site: Site) -> None:
    site.watch(ACTOR, ALICE)
    site.owners.check_sinks()
    with pytest.raises(UsageError) as caught:
        Owners(site.outbox, {}).check_sinks()
    assert caught.value.name == "UnknownSink"


def test_an_alarm_is_another_for_another_class_and_for_another_opening() -> None:
    def told(kind: str, openings: int) -> str:
        return finding_alarm(ORIGIN, Finding("RolledBack", kind, "less"), True, NOW, NOW, openings).alarm_id

    assert len({told("Stale", 1), told("Forked", 1), told("Stale", 2), told("Stale", 1)}) == 3


def test_the_page_names_every_member_setting_and_command(alarm: dict[str, Any], site: Site) -> None:
    text = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text(encoding="utf-8")
    finding = finding_alarm(ORIGIN, Finding("RolledBack", "Stale", "it shows less"), True, NOW, NOW).as_dict()
    assert [name for name in {**alarm, **finding, "proof_missing": 0, "redacted": 0} if f"`{name}`" not in text] == []
    for kind in KINDS:
        source = (Path(auditor.sinks.__file__).parent / f"{kind}.py").read_text(encoding="utf-8")
        asked = re.findall(r'settings\.\w+\("(\w+)"', source)
        assert f"`{kind}`" in text and [name for name in asked if f"`{name}`" not in text] == []
    for line in re.findall(r"^ktlog-auditor ([a-z-]+ .*)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        options = {name for option in ktlog_auditor.get_command(None, words[0]).params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= options, line
    assert f"{MAX_WAITING:,} alarms" in text and f"{MAX_FINDINGS_WAITING:,} findings" in text and f"newest\n{KEPT_ALARMS:,}" in text
