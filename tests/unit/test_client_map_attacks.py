"""What a hostile log, or somebody who hates an honest one, tries on clients and judges of the map."""

from __future__ import annotations

from dataclasses import replace

import pytest
from client_log import NOW, actor, key
from client_world import remembering_argon2id
from map_log import ALICE, BOB, ROOT, MapWorld, say

from ktlog.client.build import burn_down, enrol, move_identity
from ktlog.errors import EncodingError, Forked, Invalid
from ktlog.keymap.bundle import encode_bundle, parse_bundle
from ktlog.keymap.evidence import (
    ACTOR_ROLLED_BACK,
    MapEvidence,
    actor_statement,
    keep_lines,
    parse_map_evidence,
    verify_map_evidence,
)
from ktlog.keymap.prefix import encode_prefix_proof, parse_prefix_proof, prove
from ktlog.pkd import attributes
from ktlog.pkd.actors import Key
from ktlog.pkd.erasure import map_index
from ktlog.tlog.binary import s32, u8, u32

NEW = actor("new")


@pytest.fixture
def world(tmp_path, monkeypatch) -> MapWorld:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return MapWorld(tmp_path)


def test_an_absence_under_another_name_convicts_nobody(world):
    """Where an actor lies in a map follows from the log's name: with another name anybody can be shown to be absent."""
    log, vkey = world.log, world.policy.logs[0].vkey
    note = keep_lines(log.map_checkpoints[len(log.output)], [vkey])
    elsewhere = prove(log.map_leaves(), [map_index("keys.elsewhere.example", ALICE)])
    absent = replace(
        log.bundle(actor("nobody")), origin="keys.elsewhere.example/map",
        proof=parse_prefix_proof(encode_prefix_proof(elsewhere)),
    )
    items = actor_statement(log.bundle(ALICE), note), actor_statement(absent, note)
    with pytest.raises(Invalid, match="WrongLog"):
        verify_map_evidence(MapEvidence(ACTOR_ROLLED_BACK, vkey, ALICE, items), vkey)


def begin_anew(world: MapWorld, who: str, **changes) -> None:
    """All verifiers lie: the log enrols a key of its own for *who*, and the map gives it the old generation's number."""
    log, row = world.log, world.log.states[-1][who]
    built = enrol(who, key(66), recent_root=log.recent(), now=NOW)
    log.append(built.preimage, {"actor": who, "public-key": key(66).public_text}, {who: 1})
    at = log.size - 1
    log.states[-1][who] = replace(
        row, keys=(Key(key(66).public_key, "x", at, NOW),), version=row.version + 1, generation_leaf=at, status=1,
        status_leaf=at, **changes,
    )
    log.publish_map()


def caught(world: MapWorld, who: str, *, full: bool) -> None:
    with pytest.raises(Forked, match="generation 2 began in two ways") as error:
        world.lookup(who, full=full)
    evidence = parse_map_evidence(error.value.evidence)
    verify_map_evidence(evidence, world.policy.logs[0].vkey)
    assert evidence.kind == ACTOR_ROLLED_BACK


@pytest.mark.parametrize("full", [False, True])
def test_a_reset_behind_an_erasure_that_never_was(world, full):
    say(world.log, burn_down, ALICE, ROOT, key(20))
    say(world.log, enrol, ALICE, key(4))
    world.log.publish_map()
    assert world.lookup(full=True).generation == 2
    world.log.erased_at[ALICE] = world.log.size
    begin_anew(world, ALICE, erasures=1, cause=5)
    caught(world, ALICE, full=full)


def test_a_reset_behind_a_move_that_is_not_shown(world):
    say(world.log, move_identity, ALICE, NEW, key(2))
    say(world.log, burn_down, NEW, ROOT, key(20))
    say(world.log, enrol, NEW, key(6))
    world.log.publish_map()
    world.log.lie = lambda bundle: replace(bundle, old_histories=((),)) if bundle.old_histories else bundle
    assert world.lookup(NEW, full=True).generation == 2
    begin_anew(world, NEW)
    caught(world, NEW, full=True)


EMPTY_ITEM = bytes(4 + 4 + 4 + 2 + 2)


@pytest.mark.parametrize("sections", [
    u8(8) + s32(bytes(65536)),
    u8(10) + s32(b"") + u8(11) + s32(bytes(4 * 65537)),
    u8(10) + s32(b"") + u8(11) + s32((u32(32769) + EMPTY_ITEM * 32769) * 2),
    u8(10) + s32(EMPTY_ITEM) + u8(11) + s32(u32(65536) + EMPTY_ITEM * 65536),
    u8(10) + s32(bytes(12) + (17).to_bytes(2, "big") + b"".join(s32(b"%02d" % n) + b"\0" for n in range(17)) + bytes(2))
    + u8(11) + s32(b""),
], ids=["texts", "empty histories", "two long histories", "one too many in all", "attributes"])
def test_a_short_bundle_that_would_fill_the_memory(world, sections):
    with pytest.raises(EncodingError, match="more than 65535|more than 65536|17 attributes"):
        parse_bundle(encode_bundle(replace(world.log.bundle(BOB), aux=None)) + sections)
