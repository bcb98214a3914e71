"""Every sabotage of the demo: before which check, what is done, and in which words that check must fail.

They stand in the order of the story. Each tampers with running processes or with their bytes, and the name that
it expects is that of the one verification that it breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ktlog.tlog.note import signer_from_seed
from ktlog.tlog.policy import LogKey, format_policy, parse_policy
from tests.demo_forger import Forger
from tests.demo_saboteur import Saboteur

A01, A02, YOU = (f"https://alpha.example/users/{user}" for user in ("a01", "a02", "you"))
B02 = "https://beta.example/users/b02"
MAP = "keys.alpha.example/map"


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


@sabotage("enrolled", "keys_differ")
def receipt_is_signed_by_an_unpublished_key(saboteur):
    saboteur.publish_foreign_leaf_keys()


@sabotage("enrolled", "Unreachable Timeout")
def sequencer_hangs(saboteur):
    saboteur.freeze("sequencer-alpha")


@sabotage("enrolled", "instance-alpha (-9) ended by itself", "Unreachable")
def instance_is_killed(saboteur):
    saboteur.kill_all("instance-alpha")


# published


@sabotage("published", "waited 20 s for keys.alpha.example to publish 2 entries", "NotCompared",
          "witness-w1 (-9) ended by itself", before="enrolled")
def two_witnesses_are_killed(saboteur):
    saboteur.kill_all("witness-w1")
    saboteur.kill_all("witness-w2")


@sabotage("published", "to publish a map of 2 entries, and verifier-v1 (-9) ended by itself", before="enrolled")
def verifier_is_killed(saboteur):
    saboteur.kill_all("verifier-v1")


@sabotage("published", "waited 20 s for keys.alpha.example to publish a map of 2 entries", "TooFewVerifiers",
          before="enrolled")
def verifier_hangs(saboteur):
    saboteur.freeze("verifier-v1")


@sabotage("published", "PolicyUnmet TooFewWitnesses")
def audit_policy_names_other_witnesses(saboteur):
    saboteur.name_other_cosigners("witness", policy="audit.policy")


@sabotage("published", "PolicyUnmet TooFewWitnesses")
def trust_policy_names_other_witnesses(saboteur):
    saboteur.name_other_cosigners("witness", "verifier")


@sabotage("published", "PolicyUnmet TooFewVerifiers")
def trust_policy_names_another_verifier(saboteur):
    saboteur.name_other_cosigners("verifier")


@sabotage("published", "BadLogSignature", "keys.alpha.example/map")
def trust_policy_names_another_log_key(saboteur):
    policy = parse_policy((saboteur.directory / "trust.policy").read_bytes())
    strange = signer_from_seed(MAP, 6, b"\x77" * 32).vkey
    logs = tuple(LogKey(strange, log.url) if log.vkey.name == MAP else log for log in policy.logs)
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
