"""HTTP signatures of the old kind, on GETs that this log sends, and nowhere else.

GoToSocial, and Mastodon in its secure mode, show an actor's document to nobody who does not sign the request
for it, and know no other signature than this one. It authenticates a log to strangers' servers and protects
nothing of the log's, so nothing here verifies such signatures and no other message is signed with its key.

Source: draft-cavage-http-signatures-12.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from email.utils import formatdate

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from ktlog.wire.actor_id import HttpsUrl, parse_https_url

_COVERED = "(request-target) host date"


def sign_get(url: HttpsUrl, key_id: str, private_key: RSAPrivateKey, now: int) -> dict[str, str]:
    """The headers ``Date`` and ``Signature`` for a GET of *url*, whose ``Host`` header is its host.

    Args:
        key_id: absolute https URL of the key. now: Unix seconds.

    Raises:
        EncodingError: ``BadUrl``: *key_id* is no URL.

    Source: draft-cavage-http-signatures-12 §2.3 and §3.1.
    """
    parse_https_url(key_id.partition("#")[0])
    date = formatdate(now, usegmt=True)
    text = f"(request-target): get {url.target}\nhost: {url.host}\ndate: {date}"
    signature = base64.b64encode(private_key.sign(text.encode("ascii"), PKCS1v15(), SHA256())).decode()
    fields = (("keyId", key_id), ("algorithm", "rsa-sha256"), ("headers", _COVERED), ("signature", signature))
    return {"Date": date, "Signature": ",".join(f'{name}="{value}"' for name, value in fields)}


def get_signer(
    key_id: str, private_key: RSAPrivateKey | None, now: Callable[[], int]
) -> Callable[[HttpsUrl], dict[str, str]] | None:
    """What a Fetcher signs its GETs with; None, which signs nothing, for a log without such a key."""
    if private_key is None:
        return None
    key = private_key
    return lambda url: sign_get(url, key_id, key, now())
