"""What was acknowledged must be in the log: every answer of a run is compared with what the store has at its index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from hashlib import sha256

from ktlog.bench.load import Answer
from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.operator.stores import open_log
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.keys import pkd_root


def check_acks(settings: Settings, answers: Iterable[tuple[Answer, bytes]]) -> int:
    """Compare every acceptance with the log in *settings*, read afresh; gives the number of entries.

    Args:
        answers: each with the SHA-256 of the text of the message that was sent.

    Raises:
        StoreError: ``AckLost``: the entry is not there, is another one, or is of another message; or its root is not
            the one that was promised; or two messages have one entry.
    """
    found: dict[int, bytes] = {}
    with closing(open_log(settings, read_only=True)) as store:
        size = store.state().size
        for answer, digest in answers:
            if answer.status != 202:
                continue
            if answer.index >= size:
                raise _lost(answer, f"the log has {size} entries")
            entry = store.entries(answer.index, answer.index + 1)[0]
            if sha256(entry).hexdigest() != answer.entry:
                raise _lost(answer, "the log has another entry there")
            if parse_entry(entry)[1].message_hash != digest:
                raise _lost(answer, "the entry is of another message")
            if pkd_root(answer.index + 1, store.root_after(answer.index + 1)) != answer.root:
                raise _lost(answer, "the log has another root there")
            if found.setdefault(answer.index, digest) != digest:
                raise _lost(answer, "it was promised to another message too")
    return len(found)


def _lost(answer: Answer, what: str) -> StoreError:
    return StoreError("AckLost", f"entry {answer.index} was acknowledged, and {what}")


def refusals(answers: Iterable[Answer]) -> Mapping[str, int]:
    """How often each refusal came: by status and code."""
    counts: dict[str, int] = {}
    for answer in answers:
        if answer.status != 202:
            name = f"{answer.status} {answer.code}".strip() if answer.status else "no answer"
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
