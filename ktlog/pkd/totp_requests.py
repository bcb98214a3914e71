"""The three requests about a TOTP secret: enroll, disenroll, rotate.

Each is a JSON object that holds an object, ``enrollment``, ``disenrollment`` or ``rotation``, and an ML-DSA-44
signature over it by an actor of the instance. They never become log entries. The time beside the object is
not signed by that key; the HTTP signature over the body covers it, and the one-time passwords inside date
the object themselves.

The specification names the action twice, ``TOTP-Enroll`` in the request and ``totp-enroll`` in the signature.
Here what is signed is what the request says, and either spelling is read; clients write the first.

Spec: PKD "TOTP Signatures", "POST api/totp/...".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.errors import EncodingError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.identity import check_actor_id
from ktlog.pkd.keys import SIGNATURE_BYTES, sign_mldsa44
from ktlog.pkd.pae import pae
from ktlog.pkd.rejections import reject
from ktlog.tlog.encoding import decode_base64url, encode_base64url, parse_decimal


class Operation(Enum):
    """What is asked for. The value is the last part of the endpoint's path."""

    ENROLL = "enroll"
    DISENROLL = "disenroll"
    ROTATE = "rotate"

    @property
    def context(self) -> str:
        return f"fedi-e2ee:v1/api/totp/{self.value}"

    @property
    def action(self) -> str:
        return f"TOTP-{self.value.capitalize()}"

    @property
    def member(self) -> str:
        """Where the signed object stands in the request, and what names it in the signature."""
        return {"enroll": "enrollment", "disenroll": "disenrollment", "rotate": "rotation"}[self.value]

    @property
    def fields(self) -> frozenset[str]:
        """The signed object's members."""
        more = {
            "enroll": ("otp-current", "otp-previous", "totp-secret"),
            "disenroll": ("otp",),
            "rotate": ("new-otp-current", "new-otp-previous", "new-totp-secret", "old-otp"),
        }[self.value]
        return frozenset({"actor-id", "key-id", *more})


@dataclass(frozen=True, slots=True)
class TotpRequest:
    """A request as received: well-formed, neither decrypted nor believed."""

    operation: Operation
    time: int
    """Unix seconds."""
    actor_id: str
    key_id: str
    fields: Mapping[str, str]
    """The signed object. Secrets in it are still encrypted; passwords are not."""
    signed_bytes: bytes
    signature: bytes
    """2420 bytes."""

    def __repr__(self) -> str:
        return f"TotpRequest({self.operation.value}, {self.actor_id})"


def signed_bytes(operation: Operation, action: str, fields: Mapping[str, str]) -> bytes:
    """What the signature of a request is over: a protocol message's, without a root.

    Spec: PKD "TOTP Signatures".
    """
    return pae([
        "!pkd-context", operation.context, "action", action, operation.member, canonical(dict(fields)),
    ])


def build_totp_request(
    operation: Operation, fields: Mapping[str, str], private_key: MLDSA44PrivateKey, time: int
) -> dict[str, Any]:
    """A signed request, as a JSON object.

    Args:
        fields: the members of ``operation.fields``. time: Unix seconds.

    Raises:
        EncodingError: ``BadJson`` for text without UTF-8 form.
    """
    if set(fields) != operation.fields:
        raise AssertionError(f"a request to {operation.value} has exactly {sorted(operation.fields)}")
    signature = sign_mldsa44(private_key, signed_bytes(operation, operation.action, fields))
    return {
        "!pkd-context": operation.context,
        "action": operation.action,
        "current-time": str(time),
        operation.member: dict(fields),
        "signature": encode_base64url(signature),
    }


def parse_totp_request(operation: Operation, data: bytes) -> TotpRequest:
    """Read the body of a request, strictly: known members only, strings only.

    Raises:
        MessageRejected: ``bad_json``, ``duplicate_json_key``, ``bad_request``, ``wrong_context``,
            ``unknown_action``, ``bad_time``, ``bad_actor_id``, ``bad_key_id``, ``bad_signature`` (its encoding).
    """
    try:
        members = parse_json(data)
    except EncodingError as error:
        code = "duplicate_json_key" if error.name == "DuplicateKey" else "bad_json"
        raise reject(code, error.message) from None
    names = {"!pkd-context", "action", "current-time", operation.member, "signature"}
    if not isinstance(members, dict) or set(members) != names:
        raise reject("bad_request", f"want exactly {', '.join(sorted(names))}")
    fields = members[operation.member]
    if not isinstance(fields, dict) or set(fields) != operation.fields:
        raise reject("bad_request", f"{operation.member}: want exactly {', '.join(sorted(operation.fields))}")
    texts = [members[name] for name in names - {operation.member}] + list(fields.values())
    if not all(isinstance(text, str) for text in texts):
        raise reject("bad_request", "a member is not a string")
    if members["!pkd-context"] != operation.context:
        raise reject("wrong_context")
    if members["action"] not in (operation.action, operation.action.lower()):
        raise reject("unknown_action")
    with _refusing("bad_time"):
        time = parse_decimal(members["current-time"])
    with _refusing("bad_key_id"):
        decode_base64url(fields["key-id"], 32)
    with _refusing("bad_signature"):
        signature = decode_base64url(members["signature"], SIGNATURE_BYTES)
    return TotpRequest(
        operation, time, check_actor_id(fields["actor-id"]), fields["key-id"], fields,
        signed_bytes(operation, members["action"], fields), signature,
    )


@contextmanager
def _refusing(code: str) -> Iterator[None]:
    """Give an EncodingError from within the *code* of what was being read."""
    try:
        yield
    except EncodingError as error:
        raise reject(code, error.message) from None
