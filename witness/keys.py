"""The cosigning keys: one Ed25519 (0x04) and one ML-DSA-44 (0x06), and where each is kept.

Both are derived from one root seed, which is then forgotten. The name and the kind are in the
HKDF info, so a seed used for two witnesses, or for two kinds, still makes unrelated keys: an
Ed25519 cosignature does not commit to the cosigner's name, so two witnesses must never share
a key (Spec: tlog-cosignature, "Ed25519 signed message").

A key is in its own file in the directory, unless KeySources says otherwise: in a systemd credential,
or, for Ed25519, in an ssh-agent. Wherever it is, its vkey is in the record, and no other is signed with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ktlog import durable
from ktlog.credential import read_credential
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.tlog import note
from witness.agent import Agent, AgentKey, AgentSigner
from witness.config import SEED_BYTES, WitnessDir

#: Algorithm byte and key file of each cosigning key, in the order in which they sign.
KINDS: tuple[tuple[int, str], ...] = (
    (note.COSIGNATURE_ED25519, "ed25519"),
    (note.COSIGNATURE_MLDSA44, "mldsa44"),
)


#: Not a cosigning key: by it bastions know us.
BASTION = "bastion"
CREDENTIAL_KINDS = (*(kind for _, kind in KINDS), BASTION)
_CREDENTIAL = re.compile(r"(?!\.)[A-Za-z0-9_.@:-]{1,255}")


@dataclass(frozen=True)
class KeySources:
    """Where keys are that are not in the directory.

    credentials: by kind of key (``ed25519``, ``mldsa44``, ``bastion``), the name of a systemd credential that
    holds what the key's file would hold. agent: holds the Ed25519 key. agent_key: which one, by its fingerprint,
    when a witness is made and the agent has several.
    """

    credentials: Mapping[str, str] = field(default_factory=dict)
    agent: Agent | None = None
    agent_key: str | None = None


FILES = KeySources()


def parse_credentials(texts: Iterable[str], kinds: Sequence[str]) -> dict[str, str]:
    """``KIND=NAME`` each, one for a kind.

    Raises:
        UsageError: ``BadCredential``.
    """
    found: dict[str, str] = {}
    for text in texts:
        kind, _, name = text.partition("=")
        if kind not in kinds or _CREDENTIAL.fullmatch(name) is None:
            raise UsageError("BadCredential", f"{text!r} is not KIND=NAME; the kinds here are {', '.join(kinds)}")
        if kind in found:
            raise UsageError("BadCredential", f"two credentials for the {kind} key")
        found[kind] = name
    return found


def read_seed(directory: WitnessDir, kind: str, sources: KeySources = FILES) -> bytes:
    """The 32-byte seed of the *kind* key, from its credential if it has one, else from its file.

    Raises:
        StoreError: missing, of the wrong size, or readable by others.
    """
    if kind in sources.credentials:
        return read_credential(sources.credentials[kind], SEED_BYTES)
    try:
        return durable.read_secret(directory.key_file(kind), SEED_BYTES)
    except StoreError as error:
        if error.name == "MissingSecret":
            error.hint = (
                "If this key is in an ssh-agent (--ssh-agent) or a credential (--credential KIND=NAME), say so. Else"
                " restore it from where your secrets are kept: nothing makes it again."
            )
        raise


def derive_seed(root_seed: bytes, name: str, kind: str) -> bytes:
    """The 32-byte seed of the *kind* key of witness *name*: HKDF-SHA256, no salt.

    Spec: RFC 5869; the info is ``ktlog-witness/v1``, kind and name, joined by zero bytes
    (neither kind nor name can contain one).
    """
    if len(root_seed) != SEED_BYTES:
        raise AssertionError("a root seed is 32 bytes")
    info = b"\x00".join((b"ktlog-witness/v1", kind.encode("ascii"), name.encode("utf-8")))
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=info).derive(root_seed)


def derive_signers(
    root_seed: bytes, name: str, sources: KeySources = FILES, *, ed25519_only: bool = False
) -> tuple[note.Signer, ...]:
    """The signers of the new witness *name*, nothing written. What *sources* has is taken from there.

    Raises:
        UsageError: "BadName": *name* cannot stand on a signature line; "NoSuchAgentKey", "ManyAgentKeys".
        StoreError: a credential or the agent cannot be used.
    """
    if "://" in name:
        raise UsageError("BadName", f"{name!r} has a scheme; a witness is named by its URL without one")
    try:
        note.Vkey(name, note.COSIGNATURE_MLDSA44, bytes(note.MLDSA44_PUBLIC_KEY_BYTES))
    except EncodingError as error:
        raise UsageError(
            "BadName", f"{name!r} cannot name a witness: {error.message}",
            hint="Use a URL without its scheme, like example.com/w1: 1 to 255 bytes, no space, no +.",
        ) from error
    found = []
    for algorithm, kind in KINDS[:1] if ed25519_only else KINDS:
        if sources.agent is not None and algorithm == note.COSIGNATURE_ED25519:
            found.append(_agent_signer(name, sources.agent, _choose(sources.agent.list_keys(), sources.agent_key)))
            continue
        kept = kind in sources.credentials
        seed = read_credential(sources.credentials[kind], SEED_BYTES) if kept else derive_seed(root_seed, name, kind)
        found.append(note.signer_from_seed(name, algorithm, seed))
    return tuple(found)


def _choose(keys: Sequence[AgentKey], fingerprint: str | None) -> bytes:
    """The public key in an agent that a new witness is to sign with: the one named, or the only one."""
    told = "".join(f"\n  {key.fingerprint} {key.comment}" for key in keys) or " none"
    fitting = {key.public_key for key in keys if fingerprint in (None, key.fingerprint)}
    if not fitting:
        raise UsageError("NoSuchAgentKey", f"no such key is in the agent. Its Ed25519 keys:{told}")
    if len(fitting) > 1:
        raise UsageError(
            "ManyAgentKeys", f"the agent has {len(fitting)} Ed25519 keys:{told}", hint="Name one by --agent-key.",
        )
    return fitting.pop()


def _agent_signer(name: str, agent: Agent, public_key: bytes) -> note.Signer:
    try:
        vkey = note.Vkey(name, note.COSIGNATURE_ED25519, public_key)
    except EncodingError as error:
        raise UsageError("NoSuchAgentKey", f"the agent's key cannot be used: {error.message}") from None
    return note.Signer(vkey, AgentSigner(agent, public_key))


def write_keys(
    directory: WitnessDir, root_seed: bytes, name: str, sources: KeySources = FILES, *, ed25519_only: bool = False
) -> tuple[note.Signer, ...]:
    """Write the key files (0600) of a new witness and return its signers; no file for what *sources* has.

    Raises:
        UsageError: as derive_signers.
        StoreError: a key file exists, or cannot be written; as derive_signers.
    """
    signers = derive_signers(root_seed, name, sources, ed25519_only=ed25519_only)
    for (algorithm, kind), _ in zip(KINDS, signers, strict=False):
        in_agent = sources.agent is not None and algorithm == note.COSIGNATURE_ED25519
        if not in_agent and kind not in sources.credentials:
            durable.write_secret(directory.key_file(kind), derive_seed(root_seed, name, kind))
    return signers


def load_signers(
    directory: WitnessDir, name: str, sources: KeySources = FILES, vkeys: Sequence[str] = ()
) -> tuple[note.Signer, ...]:
    """The signers of an existing witness.

    Args:
        vkeys: of its record: which kinds of key it has, and which key of an agent. Without them it has both kinds,
            neither in an agent. Whether the keys are those, the caller compares.

    Raises:
        StoreError: a key file or credential is missing, of the wrong size, or readable by others; the agent cannot
            be used, or does not have the key ("AgentKeyMissing").
    """
    recorded = {vkey.algorithm: vkey.public_key for vkey in map(note.parse_vkey, vkeys)}
    found = []
    for algorithm, kind in KINDS:
        if recorded and algorithm not in recorded:
            continue
        if sources.agent is not None and algorithm in recorded and algorithm == note.COSIGNATURE_ED25519:
            public_key = recorded[algorithm]
            if public_key not in {key.public_key for key in sources.agent.list_keys()}:
                raise StoreError(
                    "AgentKeyMissing", f"the agent at {sources.agent.path} does not have the Ed25519 key of {name}",
                    hint="ssh-add it to that agent, and unlock the agent. Clients know this witness by that key alone.",
                )
            found.append(_agent_signer(name, sources.agent, public_key))
        else:
            found.append(note.signer_from_seed(name, algorithm, read_seed(directory, kind, sources)))
    return tuple(found)
