"""What a log lets pass against the specification, because its operator said so: the setting ``compat``.

``rsa``: HTTP signatures with ``rsa-v1_5-sha256``, by the key in an actor's ``publicKey``, at the ActivityPub inbox and
nowhere else. PKD v0.8 forbids them; the Fediverse's stock servers sign with nothing else.

``pkd-php``: what the PHP implementation of PKD writes otherwise than the standards do: Multikeys in base64url, with
0x1210 as two raw bytes in place of its varint, and ``mldsa44`` or ``mldsa-44`` for ``ml-dsa-44``.
"""

from __future__ import annotations

from ktlog.errors import UsageError

RSA = "rsa"
PKD_PHP = "pkd-php"
NAMES = frozenset({RSA, PKD_PHP})


def parse_compat(text: str) -> frozenset[str]:
    """The names in *text*, separated by spaces.

    Raises:
        UsageError: ``BadSetting``: one that is unknown. Nobody must believe to have what they do not have.
    """
    names = frozenset(text.split())
    if unknown := sorted(names - NAMES):
        raise UsageError("BadSetting", f"compat names {unknown[0]!a}, which is none of {', '.join(sorted(NAMES))}")
    return names
