"""What is left of the specification's failures: each has an attack here or in the files named below, against the client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from client_log import NOW, actor, key
from client_world import remembering_argon2id
from map_log import ALICE, BOB, MapWorld, say

from ktlog.client import Present, verify_bundle
from ktlog.client.build import add_aux_data, add_key, enrol
from ktlog.client.mapped import MAX_PAGES
from ktlog.errors import Invalid, KtlogError, PolicyUnmet, Stale, Unreachable
from ktlog.keymap.bundle import Page, encode_bundle, parse_bundle
from ktlog.keymap.value import ListedKey
from ktlog.pkd import attributes
from ktlog.tlog.note import Note, format_note, parse_note
from ktlog.tlog.tiles import tile_path

HERE = Path(__file__).parent


@pytest.fixture
def world(tmp_path, monkeypatch) -> MapWorld:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return MapWorld(tmp_path)


def refused(world: MapWorld, kind: type[KtlogError], name: str, who: str = ALICE, **options) -> KtlogError:
    """The lookup fails so, says something to a person, and nothing of the actor is remembered."""
    before = {path: data for path, data in world.remembered().items() if not path.startswith("heads/")}
    with pytest.raises(kind) as caught:
        world.lookup(who, **options)
    assert (type(caught.value), caught.value.name) == (kind, name), str(caught.value)
    assert name in caught.value.diagnostics()
    after = {path: data for path, data in world.remembered().items() if not path.startswith("heads/")}
    assert {path for path in after if path.startswith("actors/")} == {
        path for path in before if path.startswith("actors/")
    }
    return caught.value


# -- every name of section 9

NAMES = (
    "UnsafePolicy MalformedBundle WrongLog BadLogSignature BadCosignature TooFewWitnesses TooFewVerifiers",
    "OldCosignatures RolledBack TwoRoots Inconsistent BadConsistencyProof BundleBehindCheckpoint NotNewestLeaf",
    "BadOutputProof BadOutputLeaf WrongConfig OldMap MapContradiction BadMapProof OutcomeMismatch CommitmentMismatch",
    "WrongActor BadValue OmittedKey UnlistedKey WrongAuxData ActorRolledBack HistoryRewritten HistoryMismatch",
    "BadEntryProof BadLeafSignature BadEntry PlaintextMismatch BadMessageSignature BadTransition",
)
ATTACKS = ("test_client_map.py", "test_client_full.py", "test_client_pending.py", "test_client_attacks.py")


@pytest.mark.parametrize("name", " ".join(NAMES).split())
def test_every_failure_of_the_specification_has_an_attack_against_the_client(name):
    """By its name, in a call that expects it; the list above has none in quotes by itself."""
    assert any(f'"{name}"' in (HERE / attacks).read_text(encoding="utf-8") for attacks in ATTACKS)


# -- heads


def spoil(note_bytes: bytes, name: str, number: int = 0) -> bytes:
    """One bit of the signature on a line of *name*."""
    note = parse_note(note_bytes)
    lines = list(note.signatures)
    at = [place for place, line in enumerate(lines) if line.name == name][number]
    lines[at] = replace(lines[at], blob=lines[at].blob[:-1] + bytes([lines[at].blob[-1] ^ 1]))
    return format_note(Note(note.text, tuple(lines)))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["w3.witness.example", "v1.verifier.example"])
def test_a_bad_line_of_a_known_cosigner(world, name, number):
    """Two of three witnesses would do, and all the same: a known key's bad line spoils the note."""
    good = world.log.map_checkpoints[3]
    assert name in {line.name for line in parse_note(good).signatures}
    world.log.map_checkpoints[3] = spoil(good, name, number)
    refused(world, Invalid, "BadCosignature")
    world.log.map_checkpoints[3] = good
    assert world.lookup().keys
    bundle = encode_bundle(replace(parse_bundle(world.lookup().bundle), checkpoint=spoil(good, name, number)))
    with pytest.raises(Invalid, match="BadCosignature"):
        verify_bundle(bundle, None, world.policy, ALICE, NOW)


def test_the_log_s_own_line_is_no_cosignature(world):
    """The log has an ML-DSA line of the cosigners' kind under its name; without the verifier it counts for nothing."""
    world.log.map_checkpoints[3] = world.log.sign_map(verifiers=False)
    error = refused(world, PolicyUnmet, "TooFewVerifiers")
    assert (error.have, error.need) == (0, 2)


def test_what_was_verified_once_grows_old_all_the_same(world):
    """Signatures are remembered within one Directory, and their age is not."""
    directory = world.directory()
    directory.lookup(ALICE)
    world.now = NOW + 3601
    with pytest.raises(Stale, match="OldCosignatures"):
        directory.lookup(ALICE)


@pytest.mark.parametrize("behind", [301, 10_000])
def test_a_clock_that_was_set_back_is_named(world, behind):
    """What the quorum signs lies in its future, so nothing counts."""
    world.lookup()
    world.now = NOW - behind
    assert "clock" in refused(world, PolicyUnmet, "TooFewWitnesses").hint
    world.now = NOW
    world.log.map_checkpoints[3] = world.log.sign_map(witnesses=1)
    assert "clock" not in refused(world, PolicyUnmet, "TooFewWitnesses").hint


def test_another_note_of_the_same_tree_is_verified_again(world):
    directory = world.directory()
    directory.lookup(ALICE)
    world.log.map_checkpoints[3] = spoil(world.log.map_checkpoints[3], "w1.witness.example")
    with pytest.raises(Invalid, match="BadCosignature"):
        directory.lookup(ALICE)


def grow(world: MapWorld) -> None:
    world.lookup()
    say(world.log, enrol, actor("eve"), key(40))
    world.log.publish_map()


def test_tiles_that_are_not_the_head_s(world):
    grow(world)
    world.network.replace("/map/" + tile_path(0, 0, 4), bytes(4 * 32))
    refused(world, Invalid, "BadConsistencyProof")


def test_tiles_that_are_not_to_be_had(world):
    grow(world)
    for width in (4, 256):
        world.network.break_("/map/" + (tile_path(0, 0, width) if width < 256 else tile_path(0, 0)))
    refused(world, Unreachable, "Timeout")


# -- values: what verifiers cosigned and is wrong all the same


def with_value(world: MapWorld, **changes: object) -> None:
    """The log's map says something else of Alice."""
    honest = world.log.value
    world.log.value = lambda who: replace(honest(who), **changes) if who == ALICE else honest(who)
    world.log.publish_map()


def test_the_value_of_another_actor_at_the_actor_s_place(world):
    with_value(world, actor_id=BOB)
    refused(world, Invalid, "WrongActor")


def test_values_that_cannot_be(world):
    value = world.log.value(ALICE)
    beyond = replace(value.keys[-1], leaf_index=world.log.size)
    with_value(world, keys=(value.keys[0], beyond))
    refused(world, Invalid, "BadValue")


@pytest.mark.parametrize("changes", [
    {"generation": 0}, {"history_size": 99}, {"status_leaf": 6}, {"keys": ()},
    {"keys": (ListedKey(2, bytes(32)), ListedKey(2, b"x" * 32))}, {"keys": (ListedKey(3, bytes(32)),) * 2},
])
def test_values_that_break_a_rule(world, changes):
    with_value(world, **changes)
    refused(world, Invalid, "BadValue")


def test_other_auxiliary_data(world):
    say(world.log, add_aux_data, ALICE, "ssh-v2", "text", key(2))
    world.log.publish_map()
    assert world.lookup().aux[0].aux_data == "text"
    for aux in (("other",), (), ("text", "text")):
        world.log.lie = lambda bundle, aux=aux: replace(bundle, aux=aux)
        refused(world, Invalid, "WrongAuxData")
    world.log.lie = lambda bundle: replace(bundle, aux=(None,))
    assert world.lookup().aux[0].aux_data is None


# -- histories in pages


def test_a_full_check_of_a_long_history(world):
    """Page by page it is the same answer, and what is kept of it is one bundle."""
    whole = world.lookup(full=True)
    world.log.page_items = 1
    paged = world.lookup(full=True, state=world.state.with_name("second"))
    assert isinstance(paged, Present) and paged.bundle == whole.bundle and paged.map.full
    assert sum("&from=" in url for url in world.network.requests) == 3
    again = verify_bundle(paged.bundle, None, world.policy, ALICE, NOW)
    assert again.map.full and parse_bundle(paged.bundle).page is None


def test_a_page_alone_proves_nothing(world):
    world.log.page_items = 2
    page = world.log.map_page(world.log.bundle(ALICE, full=True), 0)
    data = encode_bundle(replace(page, checkpoint=world.log.map_checkpoints[3]))
    with pytest.raises(Invalid, match="MalformedBundle"):
        verify_bundle(data, None, world.policy, ALICE, NOW)


PAGES = {
    "another_actor_s": lambda w, b: replace(
        w.log.bundle(BOB), history=b.history, old_histories=b.old_histories, page=b.page),
    "the_same_again": lambda w, b: replace(b, page=Page(0, b.page.total)),
    "of_more_items": lambda w, b: replace(b, page=replace(b.page, total=b.page.total + 1)),
    "of_another_leaf": lambda w, b: replace(b, output_leaf=b.output_leaf + b" "),
}


@pytest.mark.parametrize("case", PAGES)
def test_pages_that_do_not_belong_together(world, case):
    world.log.page_items = 2
    honest = world.log.map_page
    world.log.map_page = lambda bundle, start: (
        honest(bundle, start) if not start else PAGES[case](world, honest(bundle, start))
    )
    refused(world, Invalid, "MalformedBundle", full=True)


def test_pages_between_which_the_map_moves_on(world):
    """Then both, checkpoint and pages, are asked for again."""
    world.log.page_items = 2

    def meanwhile(url: str) -> None:
        if "&from=" in url:
            world.network.before = lambda _: None
            say(world.log, add_key, ALICE, key(4).public_key, key(2))
            world.log.publish_map()

    world.network.before = meanwhile
    answer = world.lookup(full=True)
    assert (answer.map.size, len(answer.keys)) == (4, 3)


def test_pages_without_end(world, monkeypatch):
    monkeypatch.setattr("ktlog.client.mapped.MAX_PAGES", 3)
    assert MAX_PAGES > 3
    world.log.page_items = 1
    refused(world, Invalid, "HistoryTooLong", full=True)


def test_a_grown_history_costs_its_places_and_not_its_messages(world):
    """The light lookup after a rotation fetches no message, and keeps a light bundle."""
    light = world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.publish_map()
    world.network.requests.clear()
    answer = world.lookup()
    asked = [url for url in world.network.requests if f"/bundle/{quote(ALICE, safe='')}" in url]
    assert ["leaves=true" in url for url in asked] == [False, True] and not any("full" in url for url in asked)
    assert len(answer.new_keys) == 1 and not answer.map.full
    assert len(answer.bundle) < len(light.bundle) + 2 * 1400
    again = verify_bundle(answer.bundle, None, world.policy, ALICE, NOW)
    assert not again.map.full and again.keys == answer.keys


def test_places_that_are_not_those_committed_to(world):
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.publish_map()
    world.log.lie = lambda bundle: bundle if bundle.history is None else replace(bundle, history=bundle.history[:-1])
    refused(world, Invalid, "HistoryMismatch")
