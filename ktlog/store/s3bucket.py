"""Requests to one S3-compatible bucket, and what is known after each.

One attempt for each request: whoever asks again has to look first what the attempt before did. No message quotes
what the driver or the store said beyond an error's code, because some quote what was sent to them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)
from urllib3.exceptions import HTTPError

from ktlog.errors import KtlogError, StoreError, Unreachable
from ktlog.store.place import Place

CONNECT_SECONDS = 3.0
READ_SECONDS = 5.0
CONNECTIONS = 16

# Botocore lets some of urllib3's through while an answer is read, and ValueError where a number or a time is none.
_DRIVER_ERRORS = (BotoCoreError, HTTPError, OSError, ValueError)
# Refused before anything was done. Of a 503 without such a code, a proxy's perhaps, nothing is known.
_TOO_FAST = frozenset({"SlowDown", "SlowDownRead", "SlowDownWrite", "TooManyRequests", "RequestLimitExceeded"})
_CODE = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)
_RIGHTS = "docs/objects.md lists the rights that the log needs, s3:ListBucket among them: without it a store" \
    " answers 403 for what is not there."


# A session is not made for several threads; its clients are.
_making = threading.Lock()


@functools.cache
def session() -> boto3.session.Session:
    """The process's own: it takes a fifth of a second to make one, and a few milliseconds to make a client of it."""
    return boto3.session.Session()


class Outcome(Enum):
    """What is known of the object after a PUT."""

    STORED = "stored"
    REFUSED = "the condition did not hold: not stored"
    BUSY = "not stored; the store has too many requests, for the same key perhaps"
    UNSENT = "not stored: nobody was reached"
    UNKNOWN = "stored or not, or stored later"


@dataclass(frozen=True)
class Stored:
    """An object: its bytes, and its ETag as the store spelled it."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Absent:
    """The condition that there is no such object yet."""


@dataclass(frozen=True)
class Still:
    """The condition that the object is the one with this ETag."""

    etag: str


class Bucket:
    """The objects below *place*. Safe to use from many threads. Credentials are found by boto3's own chain.

    connect_seconds, read_seconds: how long to wait for a connection, and for each piece of an answer.
    """

    def __init__(
        self, place: Place, *, connect_seconds: float = CONNECT_SECONDS, read_seconds: float = READ_SECONDS
    ) -> None:
        self.place = place
        config = Config(
            connect_timeout=connect_seconds, read_timeout=read_seconds, tcp_keepalive=True,
            max_pool_connections=CONNECTIONS, retries={"total_max_attempts": 1},
            # Content-MD5, which every store checks, in place of trailers, which older ones take for content.
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
            s3={"addressing_style": "path" if place.endpoint else "auto"},
        )
        try:
            with _making:
                self._client = session().client(
                    "s3", endpoint_url=place.endpoint or None, region_name=place.region or None, config=config
                )
        except (BotoCoreError, ValueError) as error:
            raise StoreError("BadObjectsSetting", f"{place}: boto3 cannot use this ({type(error).__name__})") from None

    def where(self, key: str) -> str:
        return f"{self.place}{key}"

    def get(self, key: str, limit: int) -> Stored | None:
        """The object, or None when there is none.

        Raises:
            Unreachable: ``ObjectsUnreachable``. StoreError: those of ``_failure``; ``Corrupt`` for one of more than
                *limit* bytes.
        """
        try:
            found = self._client.get_object(**self._named(key))
            with closing(found["Body"]) as body:
                data = body.read(limit + 1)
                if len(data) <= limit:
                    data += body.read()  # the length is checked only where the end is read
            etag = found.get("ETag", "")
        except ClientError as error:
            if _status(error) == 404 and _code(error) != "NoSuchBucket":
                return None
            raise self._failure(error, key) from None
        except _DRIVER_ERRORS as error:
            raise self._failure(error, key) from None
        if len(data) > limit:
            raise StoreError("Corrupt", f"{self.where(key)}: longer than the {limit} bytes that it may have")
        return Stored(data, etag)

    def put(self, key: str, data: bytes, condition: Absent | Still, *, content_type: str, cache: str) -> Outcome:
        """Store *data* under *key* if *condition* holds.

        Raises:
            StoreError: those of ``_failure``; nothing was stored.
        """
        conditions = {"IfMatch": condition.etag} if isinstance(condition, Still) else {"IfNoneMatch": "*"}
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        try:
            found = self._client.put_object(
                **self._named(key), Body=data, ContentMD5=digest, ContentType=content_type, CacheControl=cache,
                **conditions,
            )
        except (EndpointConnectionError, ConnectTimeoutError):
            return Outcome.UNSENT
        except ClientError as error:
            return self._refusal(error, key, condition)
        except _DRIVER_ERRORS as error:
            return self._unknown(error, key)
        # A store names what it stored. Whoever says 200 without that may be something that stands before it.
        return Outcome.STORED if found.get("ETag") else Outcome.UNKNOWN

    def _refusal(self, error: ClientError, key: str, condition: Absent | Still) -> Outcome:
        status = _status(error)
        # 304 is what a condition that does not hold means for a GET; one store said it of a PUT.
        if status in (304, 412):
            return Outcome.REFUSED
        if status == 404 and isinstance(condition, Still) and _code(error) != "NoSuchBucket":
            return Outcome.REFUSED
        if status == 409 or _code(error) in _TOO_FAST:
            return Outcome.BUSY
        return self._unknown(error, key)

    def _unknown(self, error: Exception, key: str) -> Outcome:
        """What is known after *error*, unless it is one that leaves no doubt."""
        failure = self._failure(error, key)
        if isinstance(failure, StoreError):
            raise failure from None
        return Outcome.UNKNOWN

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens without one. Raises as :meth:`get`."""
        with self._errors(key):
            self._client.delete_object(**self._named(key))

    def keys(self, prefix: str, limit: int) -> list[str]:
        """Up to *limit* (1000 at most) of the keys that begin with *prefix*. Raises as :meth:`get`."""
        with self._errors(prefix):
            found = self._client.list_objects_v2(
                Bucket=self.place.bucket, Prefix=self.place.prefix + prefix, MaxKeys=limit
            )
            return [item["Key"].removeprefix(self.place.prefix) for item in found.get("Contents", ())]

    def _named(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.place.bucket, "Key": self.place.prefix + key}

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, *_DRIVER_ERRORS) as error:
            raise self._failure(error, key) from None

    def _failure(self, error: Exception, key: str) -> KtlogError:
        """The coded error for *error*: ``StoreError`` where asking again cannot help, else ``Unreachable``.

        ``NoCredentials``, ``ObjectsForbidden``, ``NoSuchBucket``, ``ObjectsRefused``; ``ObjectsUnreachable``.
        """
        where, kind = self.where(key), type(error).__name__
        if isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)):
            return StoreError(
                "NoCredentials", f"{where}: boto3 finds no credentials ({kind})",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials.",
            )
        if not isinstance(error, ClientError):
            return Unreachable("ObjectsUnreachable", f"{where}: the object store gives no answer ({kind})")
        status, code = _status(error), _code(error)
        if code == "NoSuchBucket":
            return StoreError("NoSuchBucket", f"{where}: there is no such bucket", hint="Make it first.")
        if status in (401, 403):
            return StoreError("ObjectsForbidden", f"{where}: the object store says {status} {code}", hint=_RIGHTS)
        # 501: a header that it does not know; it did nothing.
        asked_again = status in (408, 429) or code == "RequestTimeout"  # S3 says that one with 400
        if (300 <= status < 500 and not asked_again) or status == 501:
            return StoreError("ObjectsRefused", f"{where}: the object store says {status} {code}")
        return Unreachable("ObjectsUnreachable", f"{where}: the object store says {status} {code}")


def _status(error: ClientError) -> int:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _code(error: ClientError) -> str:
    """The error's code as far as it looks like one."""
    code = error.response.get("Error", {}).get("Code")
    return code if isinstance(code, str) and _CODE.fullmatch(code) else "(no code)"
