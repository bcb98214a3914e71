"""Asks everybody who may have seen a log which head they know: the log, by each address, its witnesses, its mirrors.

A witness's monitoring endpoint and a mirror have the log under the hex SHA-256 of its origin; so whoever watches needs
to know of them nothing but an address. All that is read is bounded, in bytes and in time, and nothing of it is
believed: a head counts by the log's own signature, whoever hands it out.

Spec: C2SP tlog-witness ("Monitoring"), tlog-mirror.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from ktlog.client.publicfiles import FileGetter, PublicFiles
from ktlog.client.verify import Head, Log, open_head
from ktlog.errors import EncodingError, Invalid, KtlogError, Unreachable
from ktlog.pkd.canonical import parse_json
from ktlog.tlog.evidence import MAXIMUM_EVIDENCE_BYTES, parse_evidence, verify_evidence
from ktlog.tlog.note import MAXIMUM_NOTE_BYTES
from ktlog.wire.fetch import Response

THE_LOG, ADDRESS, WITNESS, MIRROR = "log", "address", "witness", "mirror"
MAX_EVIDENCE_ANSWER_BYTES = 2 * MAXIMUM_EVIDENCE_BYTES
MAX_CONVICTIONS = 8
"""Of what one witness says convicts the log, at most so many are checked."""
BUDGET_SPENT = "BudgetSpent"


@dataclass(frozen=True)
class Source:
    """Who may have seen the log. url: where /checkpoint of this log is found below, without a slash at the end."""

    kind: str
    name: str
    url: str

    @property
    def key(self) -> str:
        """What it is called in findings; "" for the log itself."""
        return "" if self.kind == THE_LOG else f"{self.kind} {self.name}"

    @property
    def words(self) -> str:
        return {
            THE_LOG: "the log", ADDRESS: f"the log at {self.name}", WITNESS: f"the witness {self.name}",
            MIRROR: f"the mirror {self.name}",
        }[self.kind]


def monitoring_url(url: str, origin: str) -> str:
    """Where a witness or a mirror at *url* shows the log *origin*."""
    return f"{url.rstrip('/')}/{hashlib.sha256(origin.encode('utf-8')).hexdigest()}"


@dataclass(frozen=True)
class View:
    """What one source showed: a head, or why there is none. ``nothing``: it knows no such log, and says so."""

    source: Source
    head: Head | None = None
    error: KtlogError | None = None
    nothing: bool = False
    convictions: tuple[bytes, ...] = field(default=(), repr=False)
    """Evidence files that it keeps about the log, each checked under a key of the log."""

    @property
    def silent(self) -> bool:
        """Nothing was learnt."""
        return isinstance(self.error, Unreachable)


class Budget:
    """A fetcher that gives up for good when a round's time or bytes are spent. Used by several threads.

    Args:
        seconds, max_bytes: of the round. clock: steady seconds.
        stopped: whether to give up at once, because the watch is to end.

    Raises (``get``):
        Unreachable: ``BudgetSpent``; whatever *fetcher* raises.
    """

    def __init__(
        self, fetcher: FileGetter, seconds: float, max_bytes: int, clock: Callable[[], float],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fetcher = fetcher
        self._until = clock() + seconds
        self._left = max_bytes
        self._clock = clock
        self._stopped = stopped
        self.spent = False

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        if self._stopped() or self._clock() >= self._until or self._left <= 0:
            self.spent = True
            raise Unreachable(BUDGET_SPENT, f"the time for one round was over before {url} was read")
        response = self._fetcher.get(url, max_bytes=max_bytes)
        # Only about exact, with several threads: that is enough against a log without end.
        self._left -= len(response.body)
        return response


def sources_of(
    log: Log, addresses: Sequence[str], witnesses: Sequence[str], mirrors: Sequence[str], suffix: str = ""
) -> tuple[Source, ...]:
    """Everybody to be asked about *log*. suffix: below an address, where this log is ("/map")."""
    found = [Source(THE_LOG, log.origin, log.url)]
    found += [Source(ADDRESS, _name(url), url.rstrip("/") + suffix) for url in addresses]
    for kind, urls in ((WITNESS, witnesses), (MIRROR, mirrors)):
        found += [Source(kind, _name(url), monitoring_url(url, log.origin)) for url in urls]
    return tuple(found)


def _name(url: str) -> str:
    return url.partition("://")[2].rstrip("/")


def look(log: Log, sources: Sequence[Source], getter: FileGetter, pool: Executor) -> list[View]:
    """One look at everybody, the log itself twice: at the beginning, and after all the others have answered."""
    first = _view(log, sources[0], getter)
    others: list[Future[View]] = [pool.submit(_view, log, source, getter) for source in sources[1:]]
    found = [first, *(future.result() for future in others)]
    if len(sources) > 1 or first.error is None:
        found.append(_view(log, sources[0], getter))
    return found


def _view(log: Log, source: Source, getter: FileGetter) -> View:
    files = PublicFiles(getter, source.url)
    try:
        convictions = _convictions(log, files) if source.kind == WITNESS else ()
        try:
            data = files.file("checkpoint", "NoCheckpoint", MAXIMUM_NOTE_BYTES)
        except Invalid as error:
            if error.name != "NoCheckpoint":
                raise
            if source.kind == THE_LOG:
                return View(source, error=Unreachable("NoCheckpoint", error.message))
            return View(source, nothing=True, convictions=convictions)
        return View(source, open_head(data, log), convictions=convictions)
    except KtlogError as error:
        return View(source, error=error)


def _convictions(log: Log, files: PublicFiles) -> tuple[bytes, ...]:
    """What a witness keeps against the log, as far as it really convicts one of the log's keys."""
    try:
        document = parse_json(files.file("evidence", "NoEvidence", MAX_EVIDENCE_ANSWER_BYTES))
    except (Invalid, EncodingError, Unreachable):
        return ()  # it has none; whether it can be reached at all, its checkpoint tells
    listed = document.get("evidence") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        return ()
    return tuple(
        data for text in listed[:MAX_CONVICTIONS] if isinstance(text, str)
        if (data := text.encode("utf-8", "replace")) and _convicts(log, data)
    )


def _convicts(log: Log, data: bytes) -> bool:
    for vkey in (*log.vkeys, *log.retired):
        try:
            verify_evidence(parse_evidence(data), vkey, origin=log.origin)
            return True
        except KtlogError:
            continue
    return False
