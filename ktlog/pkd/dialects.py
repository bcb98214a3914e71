"""Three readings of PKD v0.8, as data.

The specification's text, its own published vectors and the PHP server disagree on bytes. Each
dialect says what it does; the other modules ask it and never compare names.

=====================  ==================  =====================  ==================
what                   ``spec``            ``vector``             ``php``
=====================  ==================  =====================  ==================
attribute cipher       AES-256-CTR         XSalsa20               AES-256-CTR
salt and tag           last bytes          first bytes            last bytes
hashed message         spec's five fields  and symmetric-keys     and padding
log entry              raw, 2484 bytes     base64url, 3312 bytes  PAE, 2516 bytes
JSON beyond ASCII      as it is            ``\\uXXXX``              as it is
BurnDown attributes    encrypted           encrypted              plain
``message.time``       Unix seconds        Unix seconds           ISO 8601
=====================  ==================  =====================  ==================

A log chooses its dialect when it is made and never changes it; a verifier reads all three, and
sees from an entry's length which it is. ``vector`` exists for conformance runs: it logs the
symmetric keys, so nothing in such a log can be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ktlog.errors import EncodingError
from ktlog.pkd.canonical import canonical as canonical_json

ENTRY_BODY_BYTES = 32 + 2420 + 32
"""Message hash, ML-DSA-44 signature, leaf key hash, before a dialect dresses them up."""

SIGNED_FIELDS = ("!pkd-context", "action", "message", "recent-merkle-root", "signature")
TOKEN_FIELDS = ("action", "revocation-token")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one dialect does with bytes.

    Attributes:
        name: stable; what a log states and a command line takes.
        cipher: of attributes, ``aes-256-ctr`` or ``xsalsa20``.
        nonce_bytes: how many the cipher takes; they follow the 32 key bytes out of HKDF.
        keeps_first: a shortened SHA-512 keeps its first bytes rather than its last.
        hashed_fields: top-level members of a message, other than a token, that the log commits to.
        entry_form: ``raw``, ``base64url`` or ``pae``.
        entry_bytes: length of every entry of such a log.
        escape_unicode: canonical JSON spells characters beyond ASCII as escapes.
        plain_actions: actions whose attributes travel unencrypted.
        iso_time: ``message.time`` is written as ISO 8601 rather than as Unix seconds.
    """

    name: str
    cipher: str
    nonce_bytes: int
    keeps_first: bool
    hashed_fields: tuple[str, ...]
    entry_form: str
    entry_bytes: int
    escape_unicode: bool = False
    plain_actions: frozenset[str] = frozenset()
    iso_time: bool = False

    def shorten(self, digest: bytes, size: int) -> bytes:
        """*size* bytes of *digest*, from the end that this dialect keeps."""
        return digest[:size] if self.keeps_first else digest[-size:]

    def canonical(self, obj: Any) -> bytes:
        """Canonical JSON as this dialect spells it. Raises EncodingError(``BadJson``)."""
        return canonical_json(obj, escape_unicode=self.escape_unicode)


SPEC = Dialect(
    name="spec",
    cipher="aes-256-ctr",
    nonce_bytes=16,
    keeps_first=False,
    hashed_fields=SIGNED_FIELDS,
    entry_form="raw",
    entry_bytes=ENTRY_BODY_BYTES,
)

VECTOR = Dialect(
    name="vector",
    cipher="xsalsa20",
    nonce_bytes=24,
    keeps_first=True,
    hashed_fields=(*SIGNED_FIELDS, "symmetric-keys"),
    entry_form="base64url",
    entry_bytes=ENTRY_BODY_BYTES // 3 * 4,
    escape_unicode=True,
)

PHP = Dialect(
    name="php",
    cipher="aes-256-ctr",
    nonce_bytes=16,
    keeps_first=False,
    hashed_fields=(*SIGNED_FIELDS, "padding"),
    entry_form="pae",
    entry_bytes=8 + 3 * 8 + ENTRY_BODY_BYTES,
    plain_actions=frozenset({"BurnDown"}),
    iso_time=True,
)

DIALECTS: Mapping[str, Dialect] = MappingProxyType({d.name: d for d in (SPEC, VECTOR, PHP)})


def dialect_of_entry(entry: bytes) -> Dialect:
    """The dialect in which a log entry of this length is written.

    Raises:
        EncodingError: ``BadEntry`` when no dialect writes entries of this length.
    """
    for dialect in DIALECTS.values():
        if len(entry) == dialect.entry_bytes:
            return dialect
    raise EncodingError("BadEntry", f"no dialect writes entries of {len(entry)} bytes")
