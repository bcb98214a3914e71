"""Taking PKD cosignatures from the witnesses that the operator has listed.

``DIR/cosigners`` names them, a line each: what the witness calls itself, and its ``mldsa44:`` key. Without
the file none are taken. Cosignatures are published beside the entry that completed the tree; they are no
part of this log's own publish policy, which counts C2SP cosignatures only.

Spec: PKD "Cosignatures", "POST api/history/cosign/:hash".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from ktlog.durable import read_file
from ktlog.errors import EncodingError, MessageRejected, UsageError
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.cosign import parse_cosignature, parse_cosigners, verify_cosignature
from ktlog.pkd.keys import decode_root
from ktlog.pkd.messages import check_time
from ktlog.pkd.rejections import reject
from ktlog.store.contracts import Cosignature, LogStore


class CosignLink(Protocol):
    """What is needed of the link to the sequencer."""

    def cosign(self, cosignature: Cosignature) -> None: ...


def load_cosigners(path: Path) -> Mapping[str, bytes]:
    """The public keys (1312 bytes) of the listed witnesses by id; none when there is no file.

    Raises:
        UsageError: ``BadCosigners``.
        StoreError: the file cannot be read.
    """
    data = read_file(path)
    try:
        return parse_cosigners(data or b"")
    except EncodingError as error:
        raise UsageError(error.name, f"{path}: {error.message}") from None


class CosignDesk:
    """Checks cosignatures and hands them on. Safe to use from many threads.

    Args:
        origin: this log's host name, which a cosignature must be for.
        cosigners: from :func:`load_cosigners`.
    """

    def __init__(
        self, *, store: LogStore, link: CosignLink, origin: str, cosigners: Mapping[str, bytes],
        time_window_seconds: int, now: Callable[[], int],
    ) -> None:
        self._store = store
        self._link = link
        self._origin = origin
        self._cosigners = cosigners
        self._time_window_seconds = time_window_seconds
        self._now = now

    def take(self, root: str, body: bytes) -> None:
        """Check a cosignature of *root* (``pkd-mr-v1:...``, from the request's path) and store it.

        A witness has one cosignature for a root: another of its by the same key changes nothing, and is
        answered like the first.

        Raises:
            MessageRejected: ``bad_json``, ``bad_request``, ``bad_root``, ``unknown_witness``,
                ``bad_cosignature``, ``stale_time``, ``unknown_root``.
        """
        witness, cosigned = _parse_body(body)
        try:
            root_hash = decode_root(root)
        except EncodingError as error:
            raise reject("bad_root", error.message) from None
        public_key = self._cosigners.get(witness)
        if public_key is None:
            raise MessageRejected("unknown_witness", "the witness is not on this log's list of cosigners")
        token = parse_cosignature(cosigned)
        check_time(token.time, self._now(), self._time_window_seconds)
        verify_cosignature(token, public_key, self._origin, root)
        tree_size = self._store.size_of_root(root_hash)
        # The empty tree completes no entry that a cosignature could stand beside.
        if not tree_size:
            raise MessageRejected("unknown_root", "this log never had that root")
        if all(known.witness != witness for known in self._store.cosignatures(tree_size)):
            self._link.cosign(Cosignature(tree_size, root, witness, cosigned, token.time))


def _parse_body(body: bytes) -> tuple[str, str]:
    try:
        members = parse_json(body)
    except EncodingError as error:
        code = "duplicate_json_key" if error.name == "DuplicateKey" else "bad_json"
        raise reject(code, error.message) from None
    if not isinstance(members, dict) or set(members) != {"witness", "cosigned"}:
        raise reject("bad_request", "want exactly witness and cosigned")
    witness, cosigned = members["witness"], members["cosigned"]
    if not isinstance(witness, str) or not isinstance(cosigned, str):
        raise reject("bad_request", "witness and cosigned are strings")
    return witness, cosigned
