"""How the web workers and the operator's commands talk to the sequencer: framed JSON over a Unix socket.

A frame is a 4-byte big-endian length and that many bytes of JSON. One request, one answer, in
turn, as often as the connection lasts. Only the log's own processes can reach the socket (it
lies in a 0700 directory), yet both sides bound every length.
"""

from __future__ import annotations

import shlex
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.store.contracts import Cosignature, TotpUse
from ktlog.tlog.encoding import decode_base64, encode_base64, parse_decimal
from ktlog.wire.prometheus import LATENCY_BOUNDS

FRAME_LIMIT_BYTES = 1 << 20
KEYS_DIFFER = "keys_differ"
"""A front end's ``public-keys.json`` is of another age than the sequencer's: nobody could check what it passes on."""
SHRED_SECONDS = 600.0
"""How long an erasure may take: the store is written anew."""

_Result = TypeVar("_Result")

TOGETHER = b'{"op":"together"}'
"""The first frame of a connection whose requests do not wait for each other: answered with ``{"ok":{}}``, and from then
on in the order in which they come, as many as are there."""

RefusedRow = tuple[str, str, bool, int]
"""A code, the instance, whether that is verified, and how often."""


@dataclass(frozen=True)
class Fetched:
    """Fetches of actors' documents.

    counts: by how long they took, between ``LATENCY_BOUNDS``. blocked: got no connection, for their address.
    """

    counts: tuple[int, ...]
    microseconds: int
    blocked: int


@dataclass(frozen=True)
class Submission:
    """A message that passed admission, on its way to a leaf index.

    ``preimage`` is the canonical text that the entry commits to, ``plain`` the text of its
    encrypted attributes and ``keys`` their 32-byte symmetric keys. ``totp`` is the one-time
    password that a BurnDown brought, once it was found good. ``unique_hash`` follows from the preimage and does
    not travel: who made the submission may know it already. ``leaf_key`` is the hash of the leaf key that the front
    end tells everybody is the present one; None from whoever tells nobody. ``sender`` is the host name of the instance
    that signed the request; None where nobody has to. ``more``: the front end is about to have another one.
    """

    preimage: bytes
    plain: Mapping[str, str]
    keys: Mapping[str, bytes]
    totp: TotpUse | None = None
    unique_hash: bytes | None = field(default=None, compare=False)
    leaf_key: bytes | None = None
    sender: str | None = None
    more: bool = False


@dataclass(frozen=True)
class Receipt:
    """Where an accepted message ended up: durable before anybody sees this."""

    leaf_index: int
    entry: bytes
    root: str
    duplicate: bool = False


Told = Callable[[Receipt | MessageRejected | StoreError], None]


@dataclass(frozen=True)
class TotpChange:
    """What ``LogStore.set_totp`` takes."""

    domain: str
    secret: bytes | None = field(repr=False)
    used_window: int
    expected_serial: int | None


@dataclass(frozen=True)
class ShredReport:
    """What an erasure did, or would do.

    number: the erasure's, from 0. map_index: base64, what the erasure log and the journal call the
    actor. input_size: entries that the log had. withheld: attributes taken away; entries: in how
    many entries. carried: leaf indexes of entries that stay readable for an actor who is not erased.
    tokens: leaf indexes of revocation tokens that hold a key of the actor in clear, for ever.
    done: False in a preview. scrubbed: nothing is left in the store's files; if not, the log
    goes on trying by itself. due: from when on it may be done, in Unix seconds; None while something was not published.
    """

    number: int
    map_index: str
    input_size: int
    withheld: int
    entries: int
    carried: tuple[int, ...]
    tokens: tuple[int, ...]
    done: bool
    scrubbed: bool
    due: int | None = None


def encode_submission(submission: Submission) -> bytes:
    members: dict[str, Any] = {
        "op": "append",
        "preimage": encode_base64(submission.preimage),
        "plain": dict(submission.plain),
        "keys": {name: encode_base64(key) for name, key in submission.keys.items()},
    }
    if submission.totp is not None:
        use = submission.totp
        members["totp"] = {"domain": use.domain, "serial": str(use.serial), "window": str(use.window)}
    if submission.leaf_key is not None:
        members["leaf-key"] = encode_base64(submission.leaf_key)
    if submission.sender is not None:
        members["sender"] = submission.sender
    if submission.more:
        members["more"] = _yes(True)
    return canonical(members)


def decode_submission(request: Mapping[str, Any]) -> Submission:
    try:
        plain = request["plain"]
        if not isinstance(plain, dict) or not all(isinstance(text, str) for text in plain.values()):
            raise EncodingError("BadRequest", "the attributes are not a table of texts")
        keys = {name: decode_base64(key, 32) for name, key in request["keys"].items()}
        totp = None
        if "totp" in request:
            use = request["totp"]
            totp = TotpUse(_text(use["domain"]), parse_decimal(use["serial"]), parse_decimal(use["window"]))
        leaf_key = decode_base64(request["leaf-key"], 32) if "leaf-key" in request else None
        sender = _text(request["sender"]) if "sender" in request else None
        more = "more" in request and _is_yes(request["more"])
        preimage = decode_base64(request["preimage"])
        return Submission(preimage, plain, keys, totp, leaf_key=leaf_key, sender=sender, more=more)
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadRequest", "not a submission") from None


def encode_receipt(receipt: Receipt) -> bytes:
    return canonical({
        "ok": {
            "leaf-index": str(receipt.leaf_index),
            "entry": encode_base64(receipt.entry),
            "root": receipt.root,
            "duplicate": "yes" if receipt.duplicate else "no",
        }
    })


def decode_receipt(answer: Any) -> Receipt:
    """Read what encode_receipt or encode_refusal made.

    Raises:
        MessageRejected: it is a refusal.
        EncodingError: it is neither.
    """
    found = decode_ok(answer)
    try:
        duplicate = _is_yes(found["duplicate"])
        return Receipt(
            parse_decimal(found["leaf-index"]), decode_base64(found["entry"]), _text(found["root"]), duplicate
        )
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadAnswer", "the sequencer's answer is neither a receipt nor a refusal") from None


def encode_totp_change(change: TotpChange) -> bytes:
    return canonical({
        "op": "totp", "domain": change.domain, "used-window": str(change.used_window),
        "secret": "" if change.secret is None else encode_base64(change.secret),
        "expected-serial": "" if change.expected_serial is None else str(change.expected_serial),
    })


def decode_totp_change(request: Mapping[str, Any]) -> TotpChange:
    try:
        secret, serial = request["secret"], request["expected-serial"]
        return TotpChange(
            _text(request["domain"]), None if secret == "" else decode_base64(secret, 32),
            parse_decimal(request["used-window"]), None if serial == "" else parse_decimal(serial),
        )
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadRequest", "not a change of a one-time password secret") from None


def encode_cosign(cosignature: Cosignature) -> bytes:
    return canonical({
        "op": "cosign", "tree-size": str(cosignature.tree_size), "merkle-root": cosignature.merkle_root,
        "witness": cosignature.witness, "cosigned": cosignature.cosigned, "time": str(cosignature.time),
    })


def decode_cosign(request: Mapping[str, Any]) -> Cosignature:
    try:
        return Cosignature(
            parse_decimal(request["tree-size"]), _text(request["merkle-root"]), _text(request["witness"]),
            _text(request["cosigned"]), parse_decimal(request["time"]),
        )
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadRequest", "not a cosignature") from None


def encode_shred(actor_id: str, preview: bool) -> bytes:
    return canonical({"op": "shred", "actor": actor_id, "preview": _yes(preview)})


def decode_shred(request: Mapping[str, Any]) -> tuple[str, bool]:
    try:
        return _text(request["actor"]), _is_yes(request["preview"])
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadRequest", "not an erasure") from None


def encode_shred_report(report: ShredReport) -> bytes:
    return canonical({
        "ok": {
            "number": str(report.number), "map-index": report.map_index, "input-size": str(report.input_size),
            "withheld": str(report.withheld), "entries": str(report.entries),
            "carried": [str(leaf) for leaf in report.carried], "tokens": [str(leaf) for leaf in report.tokens],
            "done": _yes(report.done), "scrubbed": _yes(report.scrubbed),
            "due": "" if report.due is None else str(report.due),
        }
    })


def decode_shred_report(answer: Any) -> ShredReport:
    """Read what encode_shred_report or encode_refusal made; raises as decode_receipt does."""
    found = decode_ok(answer)
    try:
        return ShredReport(
            parse_decimal(found["number"]), _text(found["map-index"]), parse_decimal(found["input-size"]),
            parse_decimal(found["withheld"]), parse_decimal(found["entries"]),
            tuple(parse_decimal(leaf) for leaf in found["carried"]),
            tuple(parse_decimal(leaf) for leaf in found["tokens"]), _is_yes(found["done"]),
            _is_yes(found["scrubbed"]), None if found["due"] == "" else parse_decimal(found["due"]),
        )
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadAnswer", "the sequencer's answer is no report of an erasure") from None


def encode_refused(
    counts: Mapping[str, int], rows: Sequence[RefusedRow] = (), fetched: Fetched | None = None
) -> bytes:
    members: dict[str, Any] = {
        "op": "refused", "codes": {code: str(count) for code, count in counts.items()},
        "rows": [[code, instance, _yes(verified), str(count)] for code, instance, verified, count in rows],
    }
    if fetched is not None:
        members["fetched"] = {
            "counts": [str(count) for count in fetched.counts], "blocked": str(fetched.blocked),
            "microseconds": str(fetched.microseconds),
        }
    return canonical(members)


def decode_fetched(request: Mapping[str, Any]) -> Fetched | None:
    if "fetched" not in request:
        return None
    try:
        found = request["fetched"]
        counts = tuple(parse_decimal(_text(count)) for count in found["counts"])
        if len(counts) != len(LATENCY_BOUNDS) + 1:
            raise EncodingError("BadRequest", "not as many counts as there are bounds")
        return Fetched(counts, parse_decimal(_text(found["microseconds"])), parse_decimal(_text(found["blocked"])))
    except (KeyError, TypeError):
        raise EncodingError("BadRequest", "no counts of fetches") from None


def decode_refused(request: Mapping[str, Any]) -> dict[str, int]:
    try:
        return {code: parse_decimal(_text(count)) for code, count in request["codes"].items()}
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadRequest", "not a table of counts") from None


def decode_refused_rows(request: Mapping[str, Any]) -> list[RefusedRow]:
    try:
        return [
            (_text(code), _text(instance), _is_yes(verified), parse_decimal(_text(count)))
            for code, instance, verified, count in request.get("rows", [])
        ]
    except (TypeError, ValueError):
        raise EncodingError("BadRequest", "not a list of refusals") from None


def decode_ok(answer: Any) -> Mapping[str, Any]:
    """What an answer says went well.

    Raises:
        MessageRejected: it is a refusal.
        EncodingError: it is neither.
    """
    try:
        if "error" in answer:
            # What is refused only here was found good before, and lost a race: no guess, whatever its code.
            raise MessageRejected(_text(answer["error"]["code"]), _text(answer["error"]["message"]), weight=1)
        found = answer["ok"]
    except (KeyError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise EncodingError("BadAnswer", "the sequencer's answer is neither a result nor a refusal")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise EncodingError("BadRequest", "not a text")
    return value


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _is_yes(value: Any) -> bool:
    if value not in ("yes", "no"):
        raise EncodingError("BadRequest", "neither yes nor no")
    return value == "yes"


def encode_refusal(code: str, message: str) -> bytes:
    return canonical({"error": {"code": code, "message": message}})


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def send_frame(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(framed(payload))


def receive_frame(connection: socket.socket) -> bytes | None:
    """The next frame, or None when the other side closed between frames."""
    header = _receive_exactly(connection, 4)
    if header is None:
        return None
    payload = _receive_exactly(connection, _frame_length(header))
    if payload is None:
        raise EncodingError("BrokenFrame", "the connection closed inside a frame")
    return payload


def _frame_length(header: bytes) -> int:
    length = int.from_bytes(header, "big")
    if length > FRAME_LIMIT_BYTES:
        raise EncodingError("FrameTooLarge", f"a frame of {length} bytes; the limit is {FRAME_LIMIT_BYTES}")
    return length


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    parts: list[bytes] = []
    missing = count
    while missing:
        part = connection.recv(min(missing, 65_536))
        if not part:
            if parts:
                raise EncodingError("BrokenFrame", "the connection closed inside a frame")
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class Frames:
    """Reads frames that come one after the other, as many at a time as are there. From then on nobody else may read."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._come = bytearray()

    def receive(self) -> bytes | None:
        """The next frame, or None when the other side closed between frames.

        Raises:
            EncodingError: ``FrameTooLarge``, ``BrokenFrame``.
            OSError: with a timeout, too; what has come by then is kept.
        """
        come = self._come
        while len(come) < 4 or len(come) < 4 + self._length():
            part = self._connection.recv(65_536)
            if not part:
                if come:
                    raise EncodingError("BrokenFrame", "the connection closed inside a frame")
                return None
            come += part
        end = 4 + self._length()
        payload = bytes(come[4:end])
        del come[:end]
        return payload

    def _length(self) -> int:
        return _frame_length(bytes(self._come[:4]))


def no_answer(error: EncodingError) -> StoreError:
    return StoreError("SequencerUnreachable", f"the sequencer's answer does not parse: {error}")


def check_length(payload: bytes) -> None:
    """Raises MessageRejected: ``too_large``."""
    if len(payload) > FRAME_LIMIT_BYTES:
        raise MessageRejected("too_large", "the message is longer than this log takes")


class Link:
    """What a front end or a command asks the sequencer for, whichever way the frames go."""

    def append(self, submission: Submission) -> Receipt:
        """Hand a message to the sequencer and wait until it is durable.

        Raises:
            MessageRejected: refused; nothing changed. ``too_large`` never gets as far as the sequencer.
            StoreError: ``SequencerUnreachable`` (whether it was accepted is not known).
        """
        return self._call(encode_submission(submission), decode_receipt)

    def append_later(self, submission: Submission, told: Told) -> None:
        """As :meth:`append`, but *told* gets the receipt or what would be raised; once, now or later, in any thread."""
        result: Receipt | MessageRejected | StoreError
        try:
            result = self.append(submission)
        except (MessageRejected, StoreError) as error:
            result = error
        told(result)

    def totp_set(self, domain: str, secret: bytes | None, window: int, expected_serial: int | None) -> None:
        """Enrol, replace or (None) remove a domain's one-time password secret; see ``LogStore.set_totp``.

        Raises:
            MessageRejected: ``totp_moved``: it is another secret by now, or a code was used meanwhile.
            StoreError: ``SequencerUnreachable`` (whether it was stored is not known).
        """
        self._call(encode_totp_change(TotpChange(domain, secret, window, expected_serial)), decode_ok)

    def cosign(self, cosignature: Cosignature) -> bool:
        """Store a cosignature that was verified; False when this witness cosigned this root before.

        Raises:
            MessageRejected: ``unknown_root``.
            StoreError: ``SequencerUnreachable`` (whether it was stored is not known).
        """
        return _is_yes(self._call(encode_cosign(cosignature), decode_ok).get("added"))

    def shred(self, actor_id: str, *, preview: bool = False) -> ShredReport:
        """Erase an actor, or say what that would do; see ``ktlog.operator.shred``.

        Raises:
            MessageRejected: ``nothing_to_erase``, ``notice_period``, ``erasure_too_large``.
            StoreError: ``SequencerUnreachable`` (ask again: what is erased already is said to be).
        """
        return self._call(encode_shred(actor_id, preview), decode_shred_report)

    def report_refused(
        self, counts: Mapping[str, int], rows: Sequence[RefusedRow] = (), fetched: Fetched | None = None
    ) -> None:
        """Have these refusals, by code, counted for the whole log; *rows* say whose they were. And what was fetched.

        Raises:
            StoreError
        """
        self._call(encode_refused(counts, rows, fetched), decode_ok)

    def administer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have something done that only the operator may ask for; see ``ktlog.operator.administration``.

        Raises:
            MessageRejected: refused; nothing changed.
            StoreError: ``SequencerUnreachable`` (whether it was done is not known).
        """
        return self._call(canonical({"op": "admin", **request}), decode_ok)

    def status(self) -> Mapping[str, Any]:
        """How the log does; see ``ktlog.operator.numbers``. Raises StoreError."""
        return self._call(canonical({"op": "status"}), decode_ok)

    def _call(self, payload: bytes, decode: Callable[[Any], _Result]) -> _Result:
        check_length(payload)
        try:
            return decode(self._ask(payload))
        except EncodingError as error:
            self._drop()
            raise no_answer(error) from None

    def ping(self) -> None:
        """Raise StoreError unless the sequencer answers."""
        self._ask(canonical({"op": "ping"}))

    def _ask(self, payload: bytes) -> Any:
        """The answer's JSON; raises as :meth:`append`, and EncodingError for what is none."""
        raise NotImplementedError

    def _drop(self) -> None:
        """Forget a connection on which something came that does not parse."""


class SequencerLink(Link):
    """A web worker's side: one connection per thread, made anew after any failure.

    A connection that an earlier request left open may have died with a restarted sequencer, so
    a failure on one is tried once more on a new one. That is safe even when the sequencer had
    accepted: a message is unique by its hash, and the second try gets the first one's receipt.
    """

    def __init__(self, record: Path, timeout_seconds: float = 25.0) -> None:
        self._record = record
        self.timeout_seconds = timeout_seconds
        self._local = threading.local()

    def _ask(self, payload: bytes) -> Any:
        reused = getattr(self._local, "connection", None) is not None
        if reused:
            try:
                return self._exchange(payload)
            except (OSError, EncodingError):
                self._drop()
        try:
            self._local.connection = self.connect(self.timeout_seconds)
        except OSError as error:
            # What went over a connection that died may have been accepted.
            raise unanswered(error) if reused else self.absent(error) from None
        try:
            return self._exchange(payload)
        except (OSError, EncodingError) as error:
            self._drop()
            raise unanswered(error) from None

    def absent(self, error: Exception) -> StoreError:
        """Nobody listens, so nothing was asked."""
        directory = self._record.parent.absolute()
        if isinstance(error, PermissionError):
            return StoreError(
                "SequencerUnreachable", f"the log in {directory} may not be asked: {error.strerror}",
                hint="Run this as the log's own user: runuser -u USER -- ktlog …",
            )
        if _runs(directory / "sequencer.lock"):
            return StoreError(
                "SequencerUnreachable", f"the log in {directory} runs, but takes no requests now",
                hint="While it starts, it brings its store up to date and has witnesses confirm that this is no older"
                " copy of the log; its output says which. Nothing was done: try again in a moment.",
            )
        return StoreError(
            "SequencerUnreachable", f"the log in {directory} is not running",
            hint=f"Start it: ktlog serve --dir {shlex.quote(str(directory))} (or: systemctl start ktlog).",
        )

    def _exchange(self, payload: bytes) -> Any:
        connection: socket.socket = self._local.connection
        send_frame(connection, payload)
        answer = receive_frame(connection)
        if answer is None:
            raise EncodingError("BrokenFrame", "the sequencer closed the connection")
        return parse_json(answer)

    def connect(self, seconds: float) -> socket.socket:
        """A new connection, and its timeout. Raises OSError: then nothing was asked."""
        address = self._record.read_text(encoding="utf-8").strip()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(seconds)
        try:
            connection.connect(address)
        except OSError:
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()


def unanswered(error: Exception) -> StoreError:
    """The request went off; whether anything was done is not known."""
    return StoreError(
        "SequencerUnreachable", f"the sequencer did not answer ({error}); whether it accepted is not known",
        hint="The service restarts it by itself; send the message again in a moment.",
    )


def _runs(lock: Path) -> bool:
    """Whether the process that a lock file names is a log's. To try the lock could keep one from starting."""
    try:
        process = parse_decimal(lock.read_text(encoding="ascii").strip())
        return b"ktlog" in Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, UnicodeDecodeError, EncodingError):
        return False
