"""The operator's journal: what was done to the log by hand, a JSON object a line, in ``DIR/journal.jsonl``.

An erasure is journaled by its number, its record and the actor's map index, never by the actor's id.
The store is what counts; the journal follows it. When the journal knows of an erasure that the store has
not, the store is an older copy, and the erasure has to be done again before anything is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ktlog.durable import append_line, reach, read_file
from ktlog.errors import EncodingError, StoreError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.erasure import ErasureRecord, encode_erasure_record, parse_erasure_record
from ktlog.store.contracts import LogStore
from ktlog.tlog.encoding import decode_base64, encode_base64, parse_decimal

HOOKS = ("journal.written",)


@dataclass(frozen=True)
class JournaledErasure:
    """One line. number: from 0. time: of journaling, Unix seconds."""

    number: int
    time: int
    record: ErasureRecord


def format_line(erasure: JournaledErasure) -> bytes:
    record = erasure.record
    return canonical({
        "act": "shred", "time": str(erasure.time), "number": str(erasure.number),
        "map-index": encode_base64(record.index), "input-size": str(record.input_size),
        "withheld": str(record.newly_withheld), "record": encode_base64(encode_erasure_record(record)),
    })


def parse_line(line: bytes) -> JournaledErasure:
    """The inverse of :func:`format_line`. Raises EncodingError ``BadJournal`` for anything else."""
    try:
        found = parse_json(line)
        erasure = JournaledErasure(
            parse_decimal(found["number"]), parse_decimal(found["time"]),
            parse_erasure_record(decode_base64(found["record"])),
        )
        if format_line(erasure) != line:
            raise EncodingError("BadJournal", "its members do not belong together")
    except (EncodingError, KeyError, TypeError, AttributeError) as error:
        raise EncodingError("BadJournal", f"not a line of the journal: {error}") from None
    return erasure


def read_journal(path: Path) -> tuple[JournaledErasure, ...]:
    """Every erasure journaled; none without the file. A last line without its end was never written.

    Raises:
        StoreError: ``BadJournal``, a line is damaged, or one is missing.
    """
    data = read_file(path) or b""
    try:
        found = tuple(map(parse_line, data.split(b"\n")[:-1]))
    except EncodingError as error:
        raise StoreError(
            "BadJournal", f"{path} is damaged: {error.message}",
            hint="Restore it from a backup: it says what must stay erased when an older store is restored.",
        ) from None
    if [erasure.number for erasure in found] != list(range(len(found))):
        raise StoreError("BadJournal", f"{path} is damaged: its erasures are not numbered without gaps")
    return found


def journal_erasures(path: Path, store: LogStore, now: Callable[[], int]) -> None:
    """Write down every erasure of the store that the journal lacks.

    Raises:
        StoreError: ``BadJournal``; ``ErasureUndone``, the journal has erasures that the store has not, or
            other ones.
    """
    journaled = [erasure.record for erasure in read_journal(path)]
    records = store.erasures(0, store.erasure_count())
    if tuple(journaled) != records[: len(journaled)]:
        raise StoreError(
            "ErasureUndone", f"{path} has {len(journaled)} erasures, the store has {len(records)}, or other ones",
            hint="The store looks restored from a copy made before an erasure. Take a newer copy.",
        )
    for number, record in list(enumerate(records))[len(journaled):]:
        append_line(path, format_line(JournaledErasure(number, now(), record)))
        reach("journal.written")
