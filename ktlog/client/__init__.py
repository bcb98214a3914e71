"""The client library: look up keys and believe only what is proven; build messages for a log.

::

    from ktlog.client import Directory

    directory = Directory.from_policy_file("trust.policy", state="~/.local/share/ktlog")
    answer = directory.lookup("@alice@example.social")     # Present | Erased | NeverEnrolled, or a named error
    for key in answer.usable_keys:
        print(key.key_id, key.public_key.hex())

What was answered can be proven again later, offline, to anybody who has the policy::

    answer = verify_bundle(stored_bundle, None, policy, actor_id, now)

Needs nothing but ``cryptography`` and ``requests``. Failures are classes of :mod:`ktlog.errors`; each
has a stable ``name`` and ``diagnostics()`` for a person.
"""

from ktlog.client.answer import (
    NOT_PROVEN,
    Answer,
    Erased,
    MapBasis,
    NeverEnrolled,
    PendingMessage,
    Present,
    ProvenAux,
    ProvenKey,
)
from ktlog.client.build import (
    Built,
    Receipt,
    add_aux_data,
    add_key,
    build_envelope,
    build_message,
    build_plain_envelope,
    burn_down,
    check_receipt,
    checkpoint_message,
    enrol,
    fireproof,
    move_identity,
    revoke_aux_data,
    revoke_by_token,
    revoke_key,
    rotate,
    seal,
    undo_fireproof,
)
from ktlog.client.directory import Directory
from ktlog.client.keyfile import SigningKey, load_http_key, load_key, save_key
from ktlog.client.proof import export_proof, verify_bundle
from ktlog.pkd.state import Aux, Key
from ktlog.tlog.policy import Policy, parse_policy

__all__ = [
    "NOT_PROVEN", "Answer", "Aux", "Built", "Directory", "Erased", "Key", "MapBasis", "NeverEnrolled",
    "PendingMessage", "Policy", "Present", "ProvenAux", "ProvenKey", "Receipt", "SigningKey", "add_aux_data",
    "add_key", "build_envelope", "build_message", "build_plain_envelope", "burn_down", "check_receipt",
    "checkpoint_message", "enrol", "export_proof", "fireproof", "load_http_key", "load_key", "move_identity",
    "parse_policy", "revoke_aux_data", "revoke_by_token", "revoke_key", "rotate", "save_key", "seal",
    "undo_fireproof", "verify_bundle",
]
