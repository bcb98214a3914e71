"""Runs the audit against an ``auditor_world``: shared by the tests of the auditor's zoo."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from auditor_world import NOW, ORIGIN, World, checkpoint_message, honest_world, log_under_audit, policy

from auditor.audit import AuditRequest, Selection, audit
from auditor.fetch import LogReader
from auditor.heads import open_given_head
from auditor.report import Report

Mutation = Callable[[World], object]
NONE = Selection("none", 0)


def run(world: World, *known: bytes, **options) -> Report:
    """Audit *world*, knowing the signed heads *known*; evidence lands in ``report.saved``."""
    saved: list[bytes] = []

    def save(evidence: bytes, kind: str) -> str:
        saved.append(evidence)
        return f"evidence/{kind}-{len(saved)}.json"

    request = AuditRequest(
        **{
            "log": log_under_audit(), "policy": policy(), "commitments": NONE,
            "known": tuple(open_given_head(note, log_under_audit(), f"head {i}") for i, note in enumerate(known)),
            **options,
        }
    )
    reader = LogReader(world, f"https://{ORIGIN}", attempts=3, pause=lambda seconds: None)
    report = audit(request, reader, NOW, save, chance=random.Random(1))
    report.saved = saved
    return report


def names(report: Report) -> set[str]:
    return {finding.name for finding in report.findings}


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def other_tree(size: int) -> bytes:
    """A head of *size* entries that the log signed with its real keys, of another tree."""
    return honest_world().checkpoint(size, bytes([size]) * 32, witnesses=0)


@cache
def long_world() -> World:
    """600 entries on three pages: tiles of two levels, full and partial. Never changed."""
    world = World()
    for _ in range(600):
        world.say(checkpoint_message(world), "beta")
    return world.publish()
