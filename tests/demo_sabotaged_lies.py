"""Sabotages of the demo's lies and of its last look round: see demo_sabotages.py, whose table they are added to."""

from __future__ import annotations

import json

from tests.demo_sabotages import sabotage

# The lies: each sabotage lets one through, or keeps it from being told.


@sabotage("smaller", "the client believed the lie")
def client_forgets_before_the_roll_back(saboteur):
    for kind in ("heads", "actors", "maps"):
        for path in (saboteur.client / kind).iterdir():
            path.unlink()


@sabotage("smaller", "the auditor said [] and exit code 0")
def auditor_forgets_before_the_roll_back(saboteur):
    saboteur.auditor_forgets()


@sabotage("smaller", "a cosigner should answer 409", "200")
def old_checkpoint_is_the_newest(saboteur):
    saboteur.replace("earlier-checkpoint", saboteur.checkpoint.read_bytes())


@sabotage("smaller", "a cosigner should answer 409", "v1.verifier.example", "200")
def old_map_is_the_newest(saboteur):
    saboteur.replace("earlier-map-checkpoint", saboteur.map_checkpoint())


@sabotage("swapped-key", "the client should say UnlistedKey; it said CommitmentMismatch")
def answer_is_wrong_in_another_way(saboteur):
    saboteur.sql("UPDATE map_values SET opening = zeroblob(16)", path="log-alpha/map.db")


@sabotage("swapped-key", "the auditor could not audit keys.alpha.example", "Locked")
def auditor_cannot_see_the_swap(saboteur):
    saboteur.hold_auditor()


@sabotage("hidden-revocation", "the witnesses should cosign", "w1.witness.example")
def witness_is_not_there_to_cosign(saboteur):
    saboteur.kill_all("witness-w1")


@sabotage("hidden-revocation", "the verifier should answer 422", "v1.verifier.example")
def verifier_is_not_there_to_refuse(saboteur):
    saboteur.kill_all("verifier-v1")


@sabotage("hidden-revocation", "MessageRejected unauthorized")
def nobody_revokes_anything(saboteur):
    saboteur.replace("instance-beta/keys/b01.key", b"13" * 32 + b"\n")


@sabotage("hidden-revocation", "the auditor could not audit keys.beta.example", "Locked")
def auditor_cannot_look(saboteur):
    saboteur.hold_auditor("beta")


@sabotage("same-size", "the client should say TwoRoots; it said TooFewWitnesses")
def client_forgets_before_the_fork(saboteur):
    (saboteur.directory / "client-alpha" / "heads" / "keys.beta.example%2Fmap.json").unlink()


@sabotage("same-size", "the auditor said [", "'TreeMismatch'", "not TwoRoots")
def auditor_forgets_before_the_fork(saboteur):
    saboteur.auditor_forgets("beta")


@sabotage("same-size", "a cosigner should answer 422", "409")
def witness_forgets_before_the_fork(saboteur):
    saboteur.sql("DELETE FROM checkpoints", path="witness-w1/witness.db")


@sabotage("same-size", "witness-w1 (-9) ended by itself", "w1.witness.example")
def witness_is_not_there_to_refuse(saboteur):
    saboteur.kill_all("witness-w1")


@sabotage("same-size", "unexpected KeyError: 'told'", "demo wrote: ")
def liar_is_not_understood(saboteur):
    # What nobody foresaw ends in a named check too, and the traceback is with the other output.
    saboteur.replace("lie-same-size.json", b"{}")


@sabotage("same-size", "does not convict")
def evidence_is_flipped(saboteur):
    def act() -> bool:
        for path in (saboteur.directory / "auditor-beta" / "evidence").glob("two-roots-*.json"):
            saboteur.replace(f"auditor-beta/evidence/{path.name}", _damage_evidence(path.read_bytes()))
            return True
        return False

    saboteur.watch(act)


# still-running


@sabotage("still-running", "witness-w3 (-9) ended by itself")
def witness_dies(saboteur):
    saboteur.kill("witness-w3")


@sabotage("still-running", "verifier-v1 (-9) ended by itself")
def verifier_dies(saboteur):
    saboteur.kill("verifier-v1")


@sabotage("still-running", "v1.verifier.example does not answer")
def verifier_falls_silent(saboteur):
    saboteur.freeze("verifier-v1")


@sabotage("still-running", "sequencer-alpha ended by itself")
def sequencer_dies_and_is_started_again(saboteur):
    saboteur.kill("sequencer-alpha")


@sabotage("still-running", "web-alpha ended by itself")
def web_workers_are_started_again(saboteur):
    saboteur.restart_web()


@sabotage("still-running", "beta.example does not answer")
def instance_hangs(saboteur):
    saboteur.freeze("instance-beta")


def _damage_evidence(data: bytes) -> bytes:
    """The same file with one bit of a signature changed, in a way that still parses."""
    found = json.loads(data)
    text = found["notes"][0]
    at = len(text) - 200
    found["notes"][0] = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1:]
    return json.dumps(found).encode()
