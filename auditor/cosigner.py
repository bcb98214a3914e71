"""The duty of a witness of the PKD specification: cosign a root of which every entry was replayed.

PKD's cosignature is a JSON token over host name and root (:mod:`ktlog.pkd.cosign`), posted to the directory, which
publishes it beside the entry that completed that root. It names no tree size and says nothing about consistency; what
gives it weight is that this auditor made it after it had read and judged everything, by the rule of
:attr:`auditor.report.Report.complete`: every entry, leaf signature, message, rule, and every commitment that can still
be opened, without a finding. On anything less nothing is signed, and there is no option to sign all the same.

The operator lists the auditor in ``DIR/cosigners``, a line with its id and its key.

Spec: PKD "Cosigning A Merkle Root", "POST api/history/cosign/:hash".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from auditor.report import Report
from ktlog.client.keyfile import SigningKey, load_key
from ktlog.errors import EncodingError, Invalid, Unreachable, UsageError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.cosign import MAX_WITNESS_LENGTH, make_cosignature, parse_cosigners
from ktlog.pkd.keys import pkd_root
from ktlog.wire.fetch import Response

ANSWER_CONTEXT = "fedi-e2ee:v1/api/history/cosign"
MAX_ANSWER_BYTES = 1 << 16


class Poster(Protocol):
    """What is needed of a fetcher."""

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str] | None = None, *, max_bytes: int | None = None
    ) -> Response: ...


@dataclass(frozen=True)
class Cosigner:
    """Who cosigns: the id that the operator has listed, and its key."""

    witness: str
    key: SigningKey

    @property
    def line(self) -> str:
        """For the operator's file ``cosigners``."""
        return f"{self.witness} {self.key.public_text}"


@dataclass(frozen=True)
class Cosigned:
    """A cosignature that the log took. time: Unix seconds, as signed."""

    root: str
    tree_size: int
    time: int

    def as_dict(self) -> dict[str, Any]:
        return {"root": self.root, "tree_size": self.tree_size, "time": self.time}


def load_cosigner(path: Path, witness: str) -> Cosigner:
    """Read a key file, as ``ktlog key`` writes one, for the cosigner *witness*.

    Raises:
        StoreError: it cannot be read, or others can read it too. UsageError: ``BadWitnessId``.
    """
    cosigner = Cosigner(witness, load_key(path))
    try:
        listed = parse_cosigners(cosigner.line.encode("ascii"))
    except (EncodingError, UnicodeEncodeError):
        listed = {}
    if witness not in listed:
        raise UsageError(
            "BadWitnessId", f"{witness!a} cannot stand in a list of cosigners",
            hint=f"It is one word of at most {MAX_WITNESS_LENGTH} ASCII characters, such as https://auditor.example.",
        )
    return cosigner


def check_complete(report: Report) -> None:
    """Raise unless everything was checked and nothing was found.

    Raises:
        UsageError: ``NotCosigned``.
    """
    if report.complete and report.tree_size:
        return
    if not report.ok:
        why = "the audit has findings"
    elif not report.tree_size:
        why = "there is no entry"
    else:
        why = "not everything was checked"
    raise UsageError(
        "NotCosigned", f"nothing was cosigned for {report.origin}: {why}",
        hint="A cosignature says that all was replayed. Audit with --tier semantic, --commitments all and"
             " --leaf-signatures all, from the start if an earlier audit checked less (--from-start).",
    )


def cosign(report: Report, cosigner: Cosigner, poster: Poster, now: int) -> Cosigned:
    """Sign the root of a complete audit and hand it to the log.

    Args:
        now: Unix seconds.

    Raises:
        UsageError: ``NotCosigned``: there is something to be found, or less than all was checked.
        Invalid: ``CosignatureRefused``, ``BadAnswer``.
        Unreachable: no answer; whether the log has the cosignature is not known. It may be sent again.
    """
    check_complete(report)
    if report.tree_size is None or report.root is None:
        raise AssertionError("a complete audit has a tree")
    root = pkd_root(report.tree_size, report.root)
    token = make_cosignature(cosigner.key.private, now, report.origin, root)
    url = f"{report.url or f'https://{report.origin}'}/api/history/cosign/{quote(root, safe='')}"
    body = canonical({"witness": cosigner.witness, "cosigned": token})
    response = poster.post(url, body, {"Content-Type": "application/json"}, max_bytes=MAX_ANSWER_BYTES)
    answer = _read(response, url)
    if response.status != 200:
        _refused(response, answer, cosigner, url)
    if answer.get("!pkd-context") != ANSWER_CONTEXT or answer.get("success") is not True:
        raise Invalid("BadAnswer", f"{url} answers 200 and does not say that it took the cosignature")
    return Cosigned(root, report.tree_size, now)


def _read(response: Response, url: str) -> Mapping[str, Any]:
    try:
        answer = parse_json(response.body)
    except EncodingError:
        answer = None
    if isinstance(answer, dict):
        return answer
    if response.status == 200:
        raise Invalid("BadAnswer", f"{url} answers something that is no JSON object")
    return {}


def _refused(response: Response, answer: Mapping[str, Any], cosigner: Cosigner, url: str) -> None:
    if response.status >= 500 or response.status == 429:
        raise Unreachable("BadStatus", f"{url} answers {response.status}", hint="Try again later.")
    code = answer.get("code") if isinstance(answer.get("code"), str) else answer.get("error")
    hint = f"Ask the operator for the line in DIR/cosigners: {cosigner.line}" if code == "unknown_witness" else (
        "The log does not take this cosignature. Compare clocks, and that LOG is the host that the key is listed at."
    )
    raise Invalid("CosignatureRefused", f"{url} answers {response.status} ({code})", hint=hint)
