"""Sabotages of the demo's lookups, until somebody rotates: see demo_sabotages.py, whose table they are added to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ktlog.keymap.bundle import Bundle, HistoryItem, NoLeaf, encode_bundle
from ktlog.pkd.keys import key_hash
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.policy import format_policy, parse_policy
from ktlog.tlog.tiles import entry_bundle_path
from tests.demo_forger import Forger
from tests.demo_map_forger import MapForger
from tests.demo_sabotages import A01, A02, MAP, YOU, sabotage
from tests.demo_saboteur import STRANGER_PUBLIC, Saboteur, drop_lines, flip, flip_lines

# looked-up: the head of the map's log


@sabotage("looked-up", "Invalid BadLogSignature")
def log_signature_is_flipped(saboteur):
    saboteur.edit_map_checkpoint(lambda note: flip_lines(note, MAP))


@sabotage("looked-up", "Invalid BadLogSignature")
def checkpoint_has_another_root(saboteur):
    saboteur.edit_map_checkpoint(lambda note: replace(note, text=_with_root(note.text, b"\x55" * 32)))


@sabotage("looked-up", "Invalid WrongLog", "keys.beta.example")
def checkpoint_is_of_the_other_log(saboteur):
    saboteur.publish_map_checkpoint(saboteur.map_checkpoint("log-beta"))


@sabotage("looked-up", "Invalid WrongLog", "keys.alpha.example")
def checkpoint_is_of_the_log_itself(saboteur):
    saboteur.publish_map_checkpoint(saboteur.checkpoint.read_bytes())


@sabotage("looked-up", "PolicyUnmet TooFewWitnesses")
def cosignatures_are_missing(saboteur):
    saboteur.edit_map_checkpoint(lambda note: drop_lines(note, "w1.witness.example", "w2.witness.example"))


@sabotage("looked-up", "PolicyUnmet TooFewVerifiers")
def verifier_did_not_sign(saboteur):
    saboteur.edit_map_checkpoint(lambda note: drop_lines(note, "v1.verifier.example"))


@sabotage("looked-up", "PolicyUnmet TooFewVerifiers")
def client_trusts_another_verifier(saboteur):
    saboteur.name_other_cosigners("verifier")


@sabotage("looked-up", "PolicyUnmet UnsafePolicy")
def client_trusts_no_verifier(saboteur):
    policy = parse_policy((saboteur.directory / "trust.policy").read_bytes())
    groups = {name: group for name, group in policy.groups.items() if name not in ("verifiers", "quorum")}
    saboteur.replace("trust.policy", format_policy(replace(policy, groups=groups, quorum="witnesses")))


@sabotage("looked-up", "Invalid BadCosignature")
def cosignature_is_flipped(saboteur):
    saboteur.edit_map_checkpoint(lambda note: flip_lines(note, "w1.witness.example"))


@sabotage("looked-up", "Stale OldCosignatures")
def cosignatures_are_old(saboteur):
    _, newest = parse_signed_checkpoint(saboteur.map_checkpoint())
    forger = MapForger(saboteur)
    saboteur.publish_map_checkpoint(forger.sign(newest.size, newest.root, when=int(time.time()) - 7200))


# looked-up: the newest leaf


@sabotage("looked-up", "Invalid MalformedBundle")
def answer_is_cut(saboteur):
    saboteur.edit_bundles(lambda bundle: encode_bundle(bundle)[:-1])


@sabotage("looked-up", "Stale BundleBehindCheckpoint")
def answer_is_of_an_earlier_map(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, output_size=bundle.output_size - 1))


@sabotage("looked-up", "Invalid WrongLog")
def answer_is_of_another_map(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, origin="keys.beta.example/map"))


@sabotage("looked-up", "Invalid BadOutputProof")
def leaf_is_not_the_newest(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, output_path=_flipped(bundle.output_path)))


@sabotage("looked-up", "Invalid BadOutputProof", "configuration")
def configuration_is_not_in_the_tree(saboteur):
    size = parse_signed_checkpoint(saboteur.map_checkpoint())[1].size
    saboteur.flip(f"log-alpha/tiles/map/{entry_bundle_path(0, size)}", 40)


@sabotage("looked-up", "Invalid BadOutputLeaf")
def leaf_is_garbage(saboteur):
    MapForger(saboteur).publish(leaf=b"nothing\n")


@sabotage("looked-up", "Invalid BadOutputLeaf", "newer than its cosignatures")
def map_claims_to_be_newer_than_it_is(saboteur):
    MapForger(saboteur).publish(edit=lambda leaf: replace(leaf, time=leaf.time + 3600))


@sabotage("looked-up", "Invalid WrongConfig")
def leaf_names_another_configuration(saboteur):
    MapForger(saboteur).publish(edit=lambda leaf: replace(leaf, config=b"\x55" * 32))


@sabotage("looked-up", "Stale OldMap")
def map_is_old(saboteur):
    MapForger(saboteur).publish(edit=lambda leaf: replace(leaf, time=leaf.time - 7200))


# looked-up: the actor's place in the map


@sabotage("looked-up", "Invalid OutcomeMismatch")
def absence_is_claimed_of_somebody_enrolled(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, outcome=NoLeaf(), keys=()))


@sabotage("looked-up", "Invalid CommitmentMismatch")
def map_says_another_thing(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, outcome=replace(bundle.outcome, opening=bytes(16))))


@sabotage("looked-up", "Invalid WrongActor", A01)
def somebody_else_lies_in_their_place(saboteur):
    forger = MapForger(saboteur)
    forger.publish(forger.value(A01, lambda value: value, at=A02))


@sabotage("looked-up", "Invalid BadValue", "names entry 99")
def value_names_an_entry_that_is_not_there(saboteur):
    forger = MapForger(saboteur)
    # Where the generation began is listed by nobody else, so that the log itself does not trip over it.
    forger.publish(forger.value(A02, lambda value: replace(value, generation_leaf=99, status_leaf=99)))


@sabotage("looked-up", "Invalid OmittedKey")
def key_is_left_out(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, keys=()))


@sabotage("looked-up", "Invalid UnlistedKey")
def key_is_another(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, keys=(STRANGER_PUBLIC,)))


@sabotage("looked-up", "Invalid WrongAuxData")
def auxiliary_data_are_added(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, aux=("a stranger's",)))


@sabotage("looked-up", "NotLogged UnknownHandle")
def handle_leads_to_the_other_instance(saboteur):
    routes = json.loads((saboteur.directory / "front" / "routes.json").read_text())
    routes["alpha.example"] = routes["beta.example"]
    saboteur.replace("front/routes.json", json.dumps(routes).encode())


@sabotage("looked-up", "@a02@alpha.example: the log has other keys than the person")
def everybody_vouches_for_another_key(saboteur):
    # With the keys of log, witnesses and verifier alike: what no light answer can show. The full one does, below.
    saboteur.swap_stored_key(A02)
    forger = MapForger(saboteur)
    forger.publish(forger.value(A02, lambda value: replace(value, keys=(
        replace(value.keys[0], key_hash=key_hash(STRANGER_PUBLIC)),
    ))))


# in-full


@sabotage("in-full", "Invalid HistoryMismatch")
def message_is_left_out(saboteur):
    saboteur.edit_bundles(lambda bundle: bundle if bundle.history is None else replace(bundle, history=()))


@sabotage("in-full", "Invalid BadEntryProof")
def message_is_not_in_the_log(saboteur):
    saboteur.edit_bundles(lambda bundle: _edit_first(bundle, lambda item: replace(item, path=_flipped(item.path))))


@sabotage("in-full", "Invalid PlaintextMismatch: entry 1")
def commitment_does_not_open(saboteur):
    saboteur.change_plaintext(1)


@sabotage("in-full", "Invalid ", "entry 1")
def plaintext_is_withheld(saboteur):
    saboteur.edit_plain(1, lambda plain: plain.update(dict.fromkeys(plain)))


@sabotage("in-full", "Invalid BadLeafSignature: entry 1", before="looked-up")
def leaf_signature_is_flipped(saboteur):
    Forger(saboteur).break_leaf_signature(1)
    _map_what_is_there(saboteur)


@sabotage("in-full", "Invalid BadLeafSignature")
def leaf_keys_are_foreign(saboteur):
    saboteur.publish_foreign_leaf_keys()


@sabotage("in-full", "Invalid BadMessageSignature: entry 1", before="looked-up")
def message_signature_is_flipped(saboteur):
    Forger(saboteur).break_message_signature(1)
    _map_what_is_there(saboteur)


@sabotage("in-full", "Invalid BadEntry: entry 1")
def message_is_another(saboteur):
    Forger(saboteur).change_preimage(1)


@sabotage("in-full", "Invalid BadTransition", before="looked-up")
def value_is_not_what_the_messages_lead_to(saboteur):
    # Everybody with a key lies, the verifier too: the light answers hold.
    forger = MapForger(saboteur)
    forger.publish(forger.value(A02, lambda value: replace(value, fireproof=True)))


# absent


@sabotage("absent", "nobody enrolled @you@alpha.example; the answer is Present", before="looked-up")
def somebody_was_enrolled_behind_their_back(saboteur):
    forger = MapForger(saboteur)
    forger.publish(forger.value(A02, lambda value: replace(value, actor_id=YOU), at=YOU))


@sabotage("absent", "Invalid BadMapProof")
def proof_of_absence_is_forged(saboteur):
    saboteur.edit_bundles(lambda bundle: replace(bundle, proof=replace(bundle.proof, hashes=_flipped(bundle.proof.hashes))))


@sabotage("absent", "Invalid OutcomeMismatch")
def answer_about_somebody_else_is_given(saboteur):
    known = saboteur.bundle(A01)
    saboteur.edit_bundles(lambda bundle: replace(bundle, outcome=known.outcome, keys=known.keys))


def _with_root(text: bytes, root: bytes) -> bytes:
    origin, size, _, *rest = text.split(b"\n")
    return b"\n".join([origin, size, encode_base64(root).encode(), *rest])


def _flipped(hashes: Sequence[bytes]) -> tuple[bytes, ...]:
    return (flip(hashes[0], 0), *hashes[1:])


def _edit_first(bundle: Bundle, edit: Callable[[HistoryItem], HistoryItem]) -> Bundle:
    """*bundle* with the first message behind it changed, if it shows any."""
    return replace(bundle, history=(edit(bundle.history[0]), *bundle.history[1:])) if bundle.history else bundle


def _map_what_is_there(saboteur: Saboteur) -> None:
    """Let the map be one of the entries that are there now, whatever was done to them."""
    _, root = saboteur.head()
    MapForger(saboteur).publish(edit=lambda leaf: replace(leaf, input_root=root))
