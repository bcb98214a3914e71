"""Where published files lie when they do not lie in a directory: ``s3://bucket/prefix``, and at whose door.

Apart from the store itself, so that the configuration can be read without the ``s3`` extra.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ktlog.errors import UsageError

_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}){0,8})", re.ASCII)
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class Place:
    """A part of a bucket.

    prefix: what every key begins with: empty, or ends with a slash. endpoint: the store's URL; empty for AWS.
    region: empty for what the credentials' own configuration says.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def below(self, name: str) -> Place:
        """The part of it whose keys go on with *name* and a slash."""
        return Place(self.bucket, f"{self.prefix}{name}/", self.endpoint, self.region)


def parse_place(url: str, endpoint: str = "", region: str = "") -> Place:
    """Read ``s3://bucket`` or ``s3://bucket/prefix``.

    >>> str(parse_place("s3://keys.example.com/log"))
    's3://keys.example.com/log/'

    Raises:
        UsageError: ``BadSetting``; what is refused is not repeated, since somebody may have put a password there.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise UsageError("BadSetting", "objects is no s3://bucket/prefix, of letters, digits and . _ - only")
    if region and not _REGION.fullmatch(region):
        raise UsageError("BadSetting", "objects_region is no region's name, such as eu-central-1")
    if endpoint:
        _check_endpoint(endpoint)
    prefix = match[2].removeprefix("/")
    return Place(match[1], f"{prefix}/" if prefix else "", endpoint, region)


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        raise UsageError("BadSetting", "objects_endpoint is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right:
        raise UsageError("BadSetting", "objects_endpoint is no https://host or https://host:port")
    if parts.username is not None or parts.password is not None or parts.path or parts.query or parts.fragment:
        raise UsageError(
            "BadSetting", "objects_endpoint holds more than https://host:port",
            hint="Credentials go where boto3 looks for them: the environment, ~/.aws, or the machine's role.",
        )
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        # Whoever answers in the store's place could say "stored", or show the log an older checkpoint.
        raise UsageError("BadSetting", "objects_endpoint is http://, which is for loopback only; use https://")
