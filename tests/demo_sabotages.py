"""Every sabotage of the demo: before which check, what is done, and in which words that check must fail.

They stand in the order of the story. Each tampers with running processes or with their bytes, and the name that
it expects is that of the one verification that it breaks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ktlog.pkd.canonical import canonical
from ktlog.pkd.keys import derive_key_id, key_hash
from ktlog.pkd.token import make_token
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64, decode_base64url, encode_base64
from ktlog.tlog.envelope import format_note
from ktlog.tlog.note import signer_from_seed
from ktlog.tlog.policy import LogKey, format_policy, parse_policy
from tests.demo_forger import Forger
from tests.demo_saboteur import STRANGER, STRANGER_PUBLIC, Saboteur, flip_lines

A01, A02 = "https://alpha.example/users/a01", "https://alpha.example/users/a02"


@dataclass(frozen=True)
class Sabotage:
    """``says`` are all in the failure's message. ``before``: where the demo is stopped, if not at ``check``."""

    check: str
    name: str
    act: Callable[[Saboteur], None]
    says: tuple[str, ...]
    before: str | None = None


SABOTAGES: list[Sabotage] = []


def sabotage(check: str, *says: str, before: str | None = None):
    def register(act: Callable[[Saboteur], None]) -> Callable[[Saboteur], None]:
        SABOTAGES.append(Sabotage(check, act.__name__, act, says, before))
        return act

    return register


# started


@sabotage("started", "log-alpha (-9) ended by itself")
def supervisor_is_killed(saboteur):
    saboteur.kill("log-alpha")


@sabotage("started", "front (-9) ended by itself")
def front_is_killed(saboteur):
    saboteur.kill("front")


@sabotage("started", "instance-beta (-9) ended by itself")
def instance_is_killed_at_once(saboteur):
    saboteur.kill_all("instance-beta")


@sabotage("started", "log-alpha (8) ended by itself", "log-alpha wrote: ", "log.db")
def database_header_is_garbage(saboteur):
    saboteur.pids()
    for suffix in ("-wal", "-shm"):
        (saboteur.log / f"log.db{suffix}").unlink(missing_ok=True)
    saboteur.replace("log-alpha/log.db", b"\xff" * 100 + (saboteur.log / "log.db").read_bytes()[100:])
    saboteur.restart_sequencer()


@sabotage("started", "log-alpha (8) ended by itself", "MissingSecret", "keys/leaf")
def leaf_key_is_gone(saboteur):
    saboteur.pids()
    (saboteur.log / "keys" / "leaf").unlink()
    saboteur.restart_sequencer()


@sabotage("started", "log-alpha (2) ended by itself", "NoPublishPolicy")
def publish_policy_is_gone(saboteur):
    saboteur.pids()
    (saboteur.log / "publish.policy").unlink()
    saboteur.restart_sequencer()


# enrolled


@sabotage("enrolled", "MessageRejected unauthorized", "signature")
def instance_signs_with_another_key(saboteur):
    # The actor documents, which the running instance has in memory, go on naming the old one.
    saboteur.replace("instance-alpha/keys/a02.key", b"13" * 32 + b"\n")


@sabotage("enrolled", "Invalid BadLeafSignature")
def receipt_is_signed_by_an_unpublished_key(saboteur):
    saboteur.publish_foreign_leaf_keys()


@sabotage("enrolled", "Unreachable Timeout")
def sequencer_hangs(saboteur):
    saboteur.freeze("sequencer-alpha")


@sabotage("enrolled", "instance-alpha (-9) ended by itself", "Unreachable")
def instance_is_killed(saboteur):
    saboteur.kill_all("instance-alpha")


# published


@sabotage("published", "waited 20 s for keys.alpha.example to publish 2 entries", "TooFewWitnesses",
          "witness-w1 (-9) ended by itself", before="enrolled")
def two_witnesses_are_killed(saboteur):
    saboteur.kill_all("witness-w1")
    saboteur.kill_all("witness-w2")


@sabotage("published", "PolicyUnmet TooFewWitnesses")
def trust_policy_names_other_witnesses(saboteur):
    saboteur.name_other_witnesses()


@sabotage("published", "keys.alpha.example")
def trust_policy_names_another_log_key(saboteur):
    policy = parse_policy((saboteur.directory / "trust.policy").read_bytes())
    strange = signer_from_seed(saboteur.origin, 6, b"\x77" * 32).vkey
    logs = tuple(LogKey(strange, log.url) if log.vkey.name == saboteur.origin else log for log in policy.logs)
    saboteur.replace("trust.policy", format_policy(replace(policy, logs=logs)))


@sabotage("published", "waited 20 s for keys.alpha.example to publish 2 entries")
def checkpoint_is_garbage(saboteur):
    saboteur.wait_published(2)
    saboteur.replace("log-alpha/tiles/checkpoint", b"nothing\n")


@sabotage("published", "Invalid WrongSize", "3 entries; 2 were sent")
def log_shows_an_entry_too_many(saboteur):
    saboteur.wait_published(2)
    forger = Forger(saboteur)
    # Growing is what a log does, and a client would not mind; the story knows how many were sent.
    forger.publish(forger.sign(3, bytes(32)))


# looked-up


@sabotage("looked-up", "Invalid BadLogSignature")
def log_signature_is_flipped(saboteur):
    saboteur.flip_signature(saboteur.origin)


@sabotage("looked-up", "Invalid BadLogSignature")
def checkpoint_has_another_root(saboteur):
    saboteur.edit_checkpoint(lambda note: replace(note, text=_with_root(note.text, b"\x55" * 32)))


@sabotage("looked-up", "Invalid WrongLog", "keys.beta.example")
def checkpoint_is_of_the_other_log(saboteur):
    other = saboteur.directory / "log-beta" / "tiles" / "checkpoint"
    saboteur.replace("log-alpha/tiles/checkpoint", other.read_bytes())


@sabotage("looked-up", "PolicyUnmet TooFewWitnesses")
def cosignatures_are_missing(saboteur):
    saboteur.drop_cosignatures()


@sabotage("looked-up", "PolicyUnmet TooFewWitnesses")
def client_trusts_other_witnesses(saboteur):
    saboteur.name_other_witnesses()


@sabotage("looked-up", "Invalid BadCosignature")
def cosignature_is_flipped(saboteur):
    saboteur.flip_signature("w1.witness.example")


@sabotage("looked-up", "Stale OldCosignatures")
def cosignatures_are_old(saboteur):
    forger, (size, root) = Forger(saboteur), saboteur.head()
    forger.publish(forger.sign(size, root, when=int(time.time()) - 7200))


# Proofs come from the published tiles, so nobody is shown a wrong one; the log itself notices when it grows.
@sabotage("rotated", "CorruptEntry")
def stored_leaf_hash_is_flipped(saboteur):
    saboteur.flip_stored_leaf_hash(1)


@sabotage("looked-up", "Invalid PlaintextMismatch: entry 0")
def commitment_does_not_open(saboteur):
    saboteur.change_plaintext(0)


@sabotage("looked-up", "Invalid WrongActor: entry 1")
def plaintext_is_withheld(saboteur):
    saboteur.edit_plain(1, lambda plain: plain.update(dict.fromkeys(plain)))


@sabotage("looked-up", "Invalid BadLeafSignature: entry 1")
def leaf_signature_is_flipped(saboteur):
    Forger(saboteur).break_leaf_signature(1)


@sabotage("looked-up", "Invalid BadLeafSignature")
def leaf_keys_are_foreign(saboteur):
    saboteur.publish_foreign_leaf_keys()


@sabotage("looked-up", "Invalid BadMessageSignature: entry 1")
def message_signature_is_flipped(saboteur):
    Forger(saboteur).break_message_signature(1)


@sabotage("looked-up", "Invalid BadEntry: entry 1")
def message_is_another(saboteur):
    Forger(saboteur).change_preimage(1)


@sabotage("looked-up", "Invalid UnlistedKey")
def directory_lists_another_key(saboteur):
    saboteur.swap_stored_key(A02)


@sabotage("looked-up", "Invalid OmittedKey")
def directory_omits_a_key(saboteur):
    saboteur.sql("DELETE FROM directory_keys WHERE actor_number ="
                 " (SELECT actor_number FROM directory_actors WHERE actor_id = ?)", A02)


@sabotage("looked-up", "NotLogged UnknownHandle")
def handle_leads_to_the_other_instance(saboteur):
    routes = json.loads((saboteur.directory / "front" / "routes.json").read_text())
    routes["alpha.example"] = routes["beta.example"]
    saboteur.replace("front/routes.json", json.dumps(routes).encode())


# rotated


@sabotage("rotated", "MessageRejected unauthorized")
def instance_changes_its_key(saboteur):
    saboteur.replace("instance-alpha/keys/a01.key", b"13" * 32 + b"\n")


@sabotage("rotated", "MessageRejected bad_signature")
def log_has_another_key_stored(saboteur):
    saboteur.swap_stored_key(A01)


@sabotage("rotated", "WouldRollBack")
def log_has_signed_a_larger_tree(saboteur):
    path = saboteur.log / "signed-head.json"
    saboteur.replace("log-alpha/signed-head.json", canonical({**json.loads(path.read_text()), "size": "99"}))


# consistent


@sabotage("consistent", "StoreError HeadOfAnotherKey")
def remembered_head_is_flipped(saboteur):
    note, _ = parse_signed_checkpoint(decode_base64(json.loads(saboteur.client_head.read_text())["note"]))
    saboteur.remember_head(format_note(flip_lines(note, saboteur.origin)))


@sabotage("consistent", "StoreError BadState")
def remembered_head_is_garbage(saboteur):
    saboteur.replace("client-beta/heads/keys.alpha.example.json", b"{}")


@sabotage("consistent", "Forked Inconsistent")
def remembered_head_is_of_another_history(saboteur):
    saboteur.remember_head(Forger(saboteur).sign(2, b"\x55" * 32))


@sabotage("consistent", "Invalid BadConsistencyProof")
def tile_for_consistency_is_flipped(saboteur):
    saboteur.flip("log-alpha/tiles/tile/0/000.p/4", 70)


@sabotage("consistent", "Stale ActorRolledBack")
def remembered_actor_had_more_messages(saboteur):
    (path,) = (saboteur.client / "actors").glob("*a01.json")
    found = json.loads(path.read_text())
    found["history"].append(["1", encode_base64(b"\x55" * 32)])
    saboteur.replace(f"client-beta/actors/{path.name}", canonical(found))


@sabotage("consistent", "Conflict HandleChanged")
def handle_meant_somebody_else(saboteur):
    (path,) = (saboteur.client / "handles").glob("*a01*.json")
    saboteur.replace(
        f"client-beta/handles/{path.name}", canonical({**json.loads(path.read_text()), "actor-id": A02})
    )


@sabotage("consistent", "@a01@alpha.example: the log has other keys than the person")
def revocation_is_hidden(saboteur):
    # Every proof holds: this is what only the directory map will let a client notice.
    with saboteur.database() as database:
        (number,) = database.execute(
            "SELECT actor_number FROM directory_actors WHERE actor_id = ?", (A01,)
        ).fetchone()
        database.execute("DELETE FROM directory_history WHERE actor_number = ? AND leaf_index = 3", (number,))
        database.execute("UPDATE directory_keys SET position = 1 WHERE actor_number = ?", (number,))
        plain, created = database.execute(
            "SELECT plain, created FROM record_plain JOIN records USING (leaf_index) WHERE leaf_index = 0"
        ).fetchone()
        old = decode_base64url(json.loads(plain)["public-key"].removeprefix("mldsa44:"))
        database.execute(
            "INSERT INTO directory_keys VALUES (?, 0, ?, ?, ?, 0, ?)",
            (number, old, key_hash(old), derive_key_id(saboteur.origin, 0), created),
        )


# audited. "keys.alpha.example: NAME:" says that it is the only kind of finding.


@sabotage("audited", "keys.alpha.example: BadLogSignature:")
def audited_log_signature_is_flipped(saboteur):
    saboteur.flip_signature(saboteur.origin)


@sabotage("audited", "keys.alpha.example: TooFewWitnesses:")
def audited_cosignatures_are_missing(saboteur):
    saboteur.drop_cosignatures()


@sabotage("audited", "keys.alpha.example: BadCosignature:")
def audited_cosignature_is_flipped(saboteur):
    saboteur.flip_signature("w2.witness.example")


@sabotage("audited", "keys.alpha.example: TileMismatch:")
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


def _with_root(text: bytes, root: bytes) -> bytes:
    origin, size, _, *rest = text.split(b"\n")
    return b"\n".join([origin, size, encode_base64(root).encode(), *rest])
