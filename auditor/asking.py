"""Asks the API about actors, several at once, and has each answer judged (:mod:`auditor.answers`)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

from auditor.answers import Replayed, check_answer
from auditor.fetch import ActorAnswer, LogReader
from auditor.report import Report, finding_from
from auditor.request import NEW, Selection
from auditor.saved import SavedDirectory
from auditor.tilecheck import FETCHERS
from ktlog.client.page import MAX_ANSWER_BYTES, MAX_HISTORY_PAGES
from ktlog.client.verify import Head
from ktlog.errors import Invalid, Unreachable
from ktlog.pkd.replay import Directory

SHOWN_ACTORS = 10

@dataclass(frozen=True)
class Asker:
    """Asks the API of one log.

    Attributes:
        network: threads that ask. chance: draws samples. progress: called with (done, total).
    """

    reader: LogReader
    network: Executor
    chance: random.Random
    progress: Callable[[int, int], None]

    def ask(
        self, selection: Selection, report: Report, directory: Directory, enrolments: Mapping[int, bytes], head: Head
    ) -> None:
        """Compare the answers about the actors that *selection* chooses with what all entries of *head* say."""
        if selection.mode == NEW.mode and isinstance(directory, SavedDirectory):
            actor_ids = directory.actors.unasked()
            if len(actor_ids) < len(directory.actors):
                report.skip(
                    f"The API's answers about {len(directory.actors) - len(actor_ids)} actors whom no entry touched"
                    " since they were asked about last: --answers all asks about everybody."
                )
        else:
            actor_ids = list(directory.actors)
        report.answers.total = len(actor_ids)
        if selection.count is not None:
            actor_ids = self.chance.sample(actor_ids, min(selection.count, len(actor_ids)))
        actor_ids.sort()
        judge_answers(
            self.reader, self.network, report, actor_ids,
            lambda actor_id: Replayed(
                directory.actors[actor_id], directory.histories.get(actor_id, ()), head.size, head.root, enrolments
            ),
            head.size, lambda done: self.progress(done, len(actor_ids)),
        )
        if isinstance(directory, SavedDirectory) and selection.count is None:
            directory.actors.asked()


_Reply = ActorAnswer | Invalid | Unreachable


def judge_answers(
    reader: LogReader, network: Executor, report: Report, actor_ids: Iterable[str],
    replayed: Callable[[str], Replayed], tree_size: int, progress: Callable[[int], None],
) -> None:
    """Compare the answers about *actor_ids* with the entries.

    Args:
        replayed: what the entries say about one of them.
        progress: called with the number of answers judged.
    """
    asked: deque[tuple[str, Future[_Reply]]] = deque()
    upcoming = iter(actor_ids)
    too_large: list[str] = []
    done, unreachable = 0, False
    while True:
        while len(asked) < 2 * FETCHERS and (actor_id := next(upcoming, None)) is not None:
            asked.append((actor_id, network.submit(_ask, reader, actor_id, tree_size)))
        if not asked:
            break
        actor_id, future = asked.popleft()
        answer = future.result()
        done += 1
        if isinstance(answer, Invalid) and answer.name in ("TooLarge", "HistoryTooLong"):
            # A long history is no lie. What was not read is said, and the rest of the audit counts.
            too_large.append(actor_id)
            continue
        if isinstance(answer, Unreachable):
            report.findings.add(finding_from(answer))
            unreachable = True
            break
        for finding in check_answer(answer, replayed(actor_id)):
            report.findings.add(replace(finding, about=actor_id))
        report.answers.checked += 1
        progress(done)
    _tell(report, too_large, unreachable)


def _tell(report: Report, too_large: list[str], unreachable: bool) -> None:
    """Say which answers were not judged."""
    if report.answers.checked:
        report.skip(
            "The plaintext that the API shows beside an actor's history: it is checked where the log publishes it"
            " in its records."
        )
    if too_large:
        shown = ", ".join(too_large[:SHOWN_ACTORS])
        more = len(too_large) - SHOWN_ACTORS
        report.skip(
            f"The API's answers about {len(too_large)} of {report.answers.total} actors: each is larger than the"
            f" {MAX_ANSWER_BYTES} bytes or {MAX_HISTORY_PAGES} pages that are read. They are"
            f" {shown}{f' and {more} more' if more > 0 else ''}."
        )
    left = report.answers.total - report.answers.checked - len(too_large)
    if left:
        why = "the API stopped answering" if unreachable else f"--answers was {report.answers.mode}"
        report.skip(f"The API's answers about {left} of {report.answers.total} actors: {why}.")


def _ask(reader: LogReader, actor_id: str, tree_size: int) -> _Reply:
    try:
        return reader.actor_keys(actor_id, tree_size)
    except (Invalid, Unreachable) as error:
        return error
