"""The client library: look up keys and believe only what is proven; build messages for a log.

Looking up::

    from ktlog.client import Directory

    directory = Directory.from_policy_file("trust.policy", state="~/.local/share/ktlog")
    answer = directory.lookup("@alice@example.social")     # Present | Erased | NeverEnrolled, or a named error
    for key in answer.usable_keys:
        print(key.key_id, key.public_key.hex())

What was answered can be proven again later, offline, to anybody who has the policy::

    answer = verify_bundle(stored_bundle, None, policy, actor_id, now)

Publishing. A key is made once; a token that revokes it is kept elsewhere, offline. ``enrol``, ``add_key``, ``rotate``,
``revoke_key``, ``fireproof``, ``move_identity``, ``add_aux_data`` and the others build a signed message; ``seal``
encrypts it to the log, and ``build_envelope`` makes the text that the actor's instance delivers:

>>> import tempfile
>>> key = SigningKey.generate()
>>> home = tempfile.TemporaryDirectory()
>>> save_key(f"{home.name}/alice.key", key)
>>> save_token(f"{home.name}/alice.token", key)
>>> root, now = "pkd-mr-v1:" + "A" * 43, 1_700_000_000      # fetch_terms(Fetcher(), "https://keys...") has the root
>>> built = enrol("https://example.social/users/alice", key, recent_root=root, now=now)
>>> built.message.action, built.sender
('AddKey', 'https://example.social/users/alice')
>>> new = SigningKey.generate()
>>> [step.message.action for step in rotate(built.sender, key, new, recent_root=root, now=now)]
['AddKey', 'RevokeKey']
>>> revoke_by_token(load_token(f"{home.name}/alice.token")).message.token.public_key == key.public_key
True
>>> home.cleanup()

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
from ktlog.client.keyfile import SigningKey, load_http_key, load_key, load_token, save_key, save_token
from ktlog.client.proof import export_proof, verify_bundle
from ktlog.client.terms import Terms, fetch_terms
from ktlog.pkd.state import Aux, Key
from ktlog.tlog.policy import Policy, parse_policy
from ktlog.wire.fetch import Fetcher

__all__ = [
    "NOT_PROVEN", "Answer", "Aux", "Built", "Directory", "Erased", "Fetcher", "Key", "MapBasis",
    "NeverEnrolled", "PendingMessage", "Policy", "Present", "ProvenAux", "ProvenKey", "Receipt", "SigningKey",
    "Terms", "add_aux_data", "add_key", "build_envelope", "build_message", "build_plain_envelope",
    "burn_down", "check_receipt", "checkpoint_message", "enrol", "export_proof", "fetch_terms", "fireproof",
    "load_http_key", "load_key", "load_token", "move_identity", "parse_policy", "revoke_aux_data",
    "revoke_by_token", "revoke_key", "rotate", "save_key", "save_token", "seal", "undo_fireproof",
    "verify_bundle",
]
