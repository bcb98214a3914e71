"""Who there is in the zoo: the log and its map, their keys, the witnesses and the verifier, and the policy that names them."""

from __future__ import annotations

from functools import cache
from hashlib import sha256

from ktlog.client.verify import Log
from ktlog.keymap.output import map_origin
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Signer,
    signer_from_seed,
)
from ktlog.tlog.policy import Policy, parse_policy
from tests.erasure_log import ORIGIN

MAP = map_origin(ORIGIN)
URL = f"https://{ORIGIN}"
WITNESSES = tuple(f"w{number}.witness.example" for number in (1, 2, 3))
VERIFIER = "v1.verifier.example"
HOME = "https://example.com/users/"
STEP = 600
"""Seconds between two things that happen: more than any promise of the map's, less than a head may be old."""


def person(name: str) -> str:
    return HOME + name


@cache
def log_signers(origin: str = ORIGIN, seed: int = 1) -> tuple[Signer, Signer]:
    seed += 10 * origin.endswith("/map")
    first, second = (
        signer_from_seed(origin, algorithm, bytes([seed + algorithm]) * 32)
        for algorithm in (ED25519, COSIGNATURE_MLDSA44)
    )
    return first, second


@cache
def cosigner(name: str) -> Signer:
    """Ed25519 alone: what cosignatures are made of is not what is tried here."""
    return signer_from_seed(name, COSIGNATURE_ED25519, sha256(name.encode()).digest())


@cache
def policy(origin: str = ORIGIN, quick: bool = False, mapped: bool = True) -> Policy:
    """Two of the three witnesses; for the map's log the verifier besides.

    quick: see :func:`audited_log`. mapped: whether it knows the key of the map's log.
    """
    logs = (ORIGIN, MAP) if mapped else (ORIGIN,)
    lines = [f"log {audited_log(one, quick).vkeys[0]} {audited_log(one).url}" for one in logs]
    lines += [
        f"witness w{number} {cosigner(name).vkey} https://{name}" for number, name in enumerate(WITNESSES, 1)
    ]
    lines.append("group witnesses 2 w1 w2 w3")
    if origin == MAP:
        lines += [f"witness v1 {cosigner(VERIFIER).vkey}", "group verifiers all v1", "group both all witnesses verifiers"]
    lines.append(f"quorum {'witnesses' if origin == ORIGIN else 'both'}")
    return parse_policy(("\n".join(lines) + "\n").encode())


def audited_log(origin: str = ORIGIN, quick: bool = False) -> Log:
    """By its ML-DSA key; *quick*: by its Ed25519 key."""
    return Log(origin, (log_signers(origin)[not quick].vkey,), URL if origin == ORIGIN else f"{URL}/map")


def witness_path(name: str, origin: str) -> str:
    """The monitoring address of one log at one witness, without the scheme."""
    return f"{name}/{sha256(origin.encode()).hexdigest()}/checkpoint"
