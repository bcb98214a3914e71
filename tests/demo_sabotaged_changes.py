"""Sabotages of what changes in the demo, and of the audit: see demo_sabotages.py, whose table they are added to."""

from __future__ import annotations

import json
from dataclasses import replace

from ktlog.keymap.bundle import NoLeaf
from ktlog.keymap.value import ListedKey
from ktlog.pkd.canonical import canonical
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import decode_public_key, key_hash
from ktlog.pkd.token import make_token
from ktlog.store.maptree import seal, unseal
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64
from ktlog.tlog.envelope import format_note
from ktlog.tlog.tiles import tile_path
from tests.demo_forger import Forger
from tests.demo_map_forger import MapForger
from tests.demo_sabotages import A01, A02, B02, MAP, sabotage
from tests.demo_saboteur import STRANGER, STRANGER_PUBLIC, Saboteur, drop_lines, flip, flip_lines

# rotated


@sabotage("rotated", "MessageRejected unauthorized")
def instance_changes_its_key(saboteur):
    saboteur.replace("instance-alpha/keys/a01.key", b"13" * 32 + b"\n")


@sabotage("rotated", "MessageRejected bad_signature")
def log_has_another_key_stored(saboteur):
    saboteur.swap_stored_key(A01)


@sabotage("rotated", "signed-head.json is not as this process left it")
def log_has_signed_a_larger_tree(saboteur):
    path = saboteur.log / "signed-head.json"
    saboteur.replace("log-alpha/signed-head.json", canonical({**json.loads(path.read_text()), "size": "99"}))


# Proofs come from the published tiles, so nobody is shown a wrong one; the log itself notices when it grows.
@sabotage("rotated", "CorruptTree")
def stored_leaf_hash_is_flipped(saboteur):
    saboteur.flip_stored_leaf_hash(1)


@sabotage("rotated", "waited 20 s for keys.alpha.example to publish a map of 4 entries", "WrongMap", "MapMismatch")
def map_is_not_what_the_log_leads_to(saboteur):
    # Whatever the log does to its map, deliberately or not: the verifier refuses, and nothing is published.
    index = map_index(saboteur.origin, A02)
    with saboteur.database("log-alpha/map.db") as database:
        for number, leaves in database.execute("SELECT number, leaves FROM map_buckets").fetchall():
            if (at := leaves.find(index)) >= 0:
                # With the sum that fits: else the log itself would refuse to go on.
                changed = seal(flip(unseal(leaves), at + len(index)))
                database.execute("UPDATE map_buckets SET leaves = ? WHERE number = ?", (changed, number))


# consistent


@sabotage("consistent", "StoreError HeadOfAnotherKey")
def remembered_head_is_flipped(saboteur):
    note, _ = parse_signed_checkpoint(decode_base64(json.loads(saboteur.client_head.read_text())["note"]))
    saboteur.remember_head(format_note(flip_lines(note, MAP)))


@sabotage("consistent", "StoreError BadState")
def remembered_head_is_garbage(saboteur):
    saboteur.client_head.write_bytes(b"{}")


@sabotage("consistent", "Forked Inconsistent")
def remembered_head_is_of_another_history(saboteur):
    saboteur.remember_head(MapForger(saboteur).sign(2, b"\x55" * 32))


@sabotage("consistent", "Invalid BadConsistencyProof")
def tile_for_consistency_is_flipped(saboteur):
    size = parse_signed_checkpoint(saboteur.map_checkpoint())[1].size
    saboteur.flip(f"log-alpha/tiles/map/{tile_path(0, 0, size)}", 70)


@sabotage("consistent", "Forked MapContradiction")
def map_is_of_fewer_entries_than_before(saboteur):
    MapForger(saboteur).publish(edit=lambda leaf: replace(leaf, input_size=1))


@sabotage("consistent", "Forked ActorRolledBack")
def actor_is_at_an_earlier_version(saboteur):
    forger = MapForger(saboteur)
    forger.publish(forger.value(A01, lambda value: replace(value, version=1, history_size=1, fireproof=True)))


@sabotage("consistent", "Forked HistoryRewritten")
def past_of_an_actor_is_another(saboteur):
    forger = MapForger(saboteur)
    forger.publish(forger.with_history(A01, (1, 2, 3)))


@sabotage("consistent", "Conflict HandleChanged")
def handle_meant_somebody_else(saboteur):
    (path,) = (saboteur.client / "handles").glob("*a01*.json")
    saboteur.replace(
        f"client-beta/handles/{path.name}", canonical({**json.loads(path.read_text()), "actor-id": A02})
    )


@sabotage("consistent", "PolicyUnmet TooFewVerifiers")
def revocation_is_hidden(saboteur):
    # The log is whole, its witnesses sign, and every other proof holds: only the verifier refused.
    _hide_revocation(saboteur, MapForger(saboteur, verifier=False))


@sabotage("consistent", "@a01@alpha.example: the log has other keys than the person")
def revocation_is_hidden_by_the_verifier_too(saboteur):
    # With every key that the policy names nobody but the person notices. This is what an honest verifier is for.
    _hide_revocation(saboteur, MapForger(saboteur))


@sabotage("consistent", "keys, new ones and gone ones are (1, 0, 0), not one of each")
def client_forgets_whom_it_knew(saboteur):
    for path in (saboteur.client / "actors").glob("*a01*"):
        path.unlink()


# erased, in the log of beta


@sabotage("erased", "ktlog shred ended with 8", "SequencerUnreachable")
def log_is_not_there_to_erase(saboteur):
    (saboteur.directory / "log-beta" / "sequencer.addr").unlink()


@sabotage("erased", "waited 20 s for keys.beta.example to erase @b02@beta.example")
def notice_period_is_never_over(saboteur):
    saboteur.sql("UPDATE publications SET time = time + 86400", path="log-beta/log.db")


@sabotage("erased", "Invalid OutcomeMismatch")
def erasure_is_denied(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, outcome=NoLeaf()), log="beta")


@sabotage("erased", "Invalid CommitmentMismatch")
def erased_actor_is_shown_as_present(saboteur):
    known = saboteur.bundle(B02, "beta")
    saboteur.edit_bundles(lambda bundle: replace(bundle, outcome=known.outcome, keys=known.keys), log="beta")


@sabotage("erased", "the client was not told that @b02@beta.example had a key that is gone")
def client_never_knew_the_erased_actor(saboteur):
    for path in (saboteur.directory / "client-alpha" / "actors").glob("*b02*"):
        path.unlink()


# audited. "keys.alpha.example: NAME:" says that it is the only kind of finding.


@sabotage("audited", "keys.alpha.example: BadLogSignature:")
def audited_log_signature_is_flipped(saboteur):
    saboteur.edit_checkpoint(lambda note: flip_lines(note, saboteur.origin))


@sabotage("audited", "keys.alpha.example: TooFewWitnesses:")
def audited_cosignatures_are_missing(saboteur):
    saboteur.edit_checkpoint(lambda note: drop_lines(note, "w1.witness.example", "w2.witness.example"))


@sabotage("audited", "keys.alpha.example: BadCosignature:")
def audited_cosignature_is_flipped(saboteur):
    saboteur.edit_checkpoint(lambda note: flip_lines(note, "w2.witness.example"))


# The log itself proves nothing from such a tile any more, so that the auditor misses answers too.
@sabotage("audited", "keys.alpha.example: TileMismatch", "tile/0/000.p/4 is not the tile that the entries make up")
def tile_is_flipped(saboteur):
    saboteur.flip("log-alpha/tiles/tile/0/000.p/4", 70)


@sabotage("audited", "TreeMismatch", "BadLeafSignature")
def entry_bundle_is_flipped(saboteur):
    saboteur.flip("log-alpha/tiles/tile/entries/000.p/4", 1000)


@sabotage("audited", "keys.alpha.example: BadEntryBundle:")
def entry_bundle_is_cut(saboteur):
    name = "log-alpha/tiles/tile/entries/000.p/4"
    saboteur.replace(name, (saboteur.directory / name).read_bytes()[:-1])


@sabotage("audited", "TreeMismatch")
def root_is_not_that_of_the_entries(saboteur):
    forger, (size, _) = Forger(saboteur), saboteur.head()
    forger.publish(forger.sign(size, b"\x55" * 32))


@sabotage("audited", "keys.alpha.example: Inconsistent:")
def auditor_remembers_another_history(saboteur):
    saboteur.auditor_head.parent.mkdir(parents=True)
    saboteur.auditor_head.write_bytes(Forger(saboteur).sign(2, b"\x55" * 32))


@sabotage("audited", "PlaintextMismatch")
def audited_commitment_does_not_open(saboteur):
    saboteur.change_plaintext(1)


@sabotage("audited", "PreimageMismatch")
def stored_preimage_is_changed(saboteur):
    Forger(saboteur).change_preimage(1)


@sabotage("audited", "BadLeafSignature:")
def audited_leaf_signature_is_flipped(saboteur):
    Forger(saboteur).break_leaf_signature(3)


@sabotage("audited", "BadMessageSignature")
def audited_message_signature_is_flipped(saboteur):
    Forger(saboteur).break_message_signature(3)


@sabotage("audited", "BadTransition")
def entry_breaks_a_rule(saboteur):
    # A revocation token for a key that nobody has: rightly signed, and refused by every honest directory.
    preimage = canonical({"action": "RevokeKeyThirdParty", "revocation-token": make_token(STRANGER, STRANGER_PUBLIC)})
    Forger(saboteur).rewrite(3, preimage=preimage, plain={}, action="RevokeKeyThirdParty")


@sabotage("audited", "keys.alpha.example: AnswerContradictsLog:")
def audited_answer_has_another_key(saboteur):
    saboteur.swap_stored_key(A02)


@sabotage("audited", "the auditor could not audit keys.alpha.example", "Locked")
def auditor_cannot_work(saboteur):
    saboteur.hold_auditor()


def _hide_revocation(saboteur: Saboteur, forger: MapForger) -> None:
    """Let the map list the key of entry 0 besides the one that replaced it."""
    with saboteur.database() as database:
        (plain,) = database.execute("SELECT plain FROM record_plain WHERE leaf_index = 0").fetchone()
    old = ListedKey(0, key_hash(decode_public_key(json.loads(plain)["public-key"])))
    forger.publish(forger.value(A01, lambda value: replace(value, keys=(old, *value.keys))))
