"""A log that erases, in memory: what a store and its sequencer do, by the same pure functions.

``send`` logs real signed messages; ``erase`` plans an erasure and takes the text away; ``replayed``
is what a late joiner makes of what is left: entries, preimages, readable plaintext, erasure records.
"""

from __future__ import annotations

from dataclasses import replace

from ktlog.errors import MessageRejected
from ktlog.pkd.actors import Actor
from ktlog.pkd.dialects import SPEC, Dialect
from ktlog.pkd.entry import make_entry
from ktlog.pkd.erasure import (
    NAMING,
    ErasureRecord,
    Mention,
    encode_erasure_record,
    parse_erasure_record,
    plan_erasure,
)
from ktlog.pkd.messages import (
    Message,
    RevokeKeyThirdParty,
    format_wire,
    message_from_plain,
    open_message_attributes,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.replay import Directory
from ktlog.pkd.state import Change
from ktlog.pkd.withheld import read_fragment
from tests.pkd_samples import build, private, public

ORIGIN = "keys.example.com"


class ErasingLog:
    """The operator's side: ``live`` follows everything, the lists are what is published."""

    def __init__(self, dialect: Dialect = SPEC) -> None:
        self.dialect = dialect
        self.live = Directory(ORIGIN)
        self.followers = [self.live]
        """Who is told of every erasure when it happens."""
        self.entries: list[bytes] = []
        self.preimages: list[bytes] = []
        self.plains: list[dict[str, str | None]] = []
        self.actions: list[str] = []
        self.records: list[ErasureRecord] = []

    def send(self, message: Message, signer: str = "a") -> Change:
        """Log a message by the rules; a refusal changes nothing."""
        wire = parse_wire(self.dialect, format_wire(build(self.dialect, message, signer, self.live.root_text)))
        message = open_message_attributes(self.dialect, wire, commitments=False)
        entry = make_entry(self.dialect, wire.preimage, private("leaf"), public("leaf"))
        leaf_index = self.live.size
        change = self.live.accept(leaf_index, wire, message, self.live.check(wire, message), entry)
        self.entries.append(entry)
        self.preimages.append(wire.preimage)
        self.plains.append({} if isinstance(message, RevokeKeyThirdParty) else dict(plain_attributes(wire, message)))
        self.actions.append(wire.action)
        return change

    def mentions(self, actor_id: str) -> list[Mention]:
        return [
            Mention(index, self.actions[index], None, dict(plain), self.live.moves.get(index))
            for index, plain in enumerate(self.plains)
            if actor_id in {plain.get(name) for name in NAMING}
        ]

    def erase(self, actor_id: str) -> ErasureRecord:
        actor, mentions = self.live.actors[actor_id], self.mentions(actor_id)
        plan = plan_erasure(ORIGIN, self.live.size, actor, mentions, self.records, self.plains.__getitem__)
        # What is published has to survive its own encoding.
        record = parse_erasure_record(encode_erasure_record(plan.record))
        for follower in self.followers:
            follower.erase(record, mentions, self.plains.__getitem__)
        for index, names in plan.withhold.items():
            for name in names:
                assert self.plains[index][name] is not None, "an attribute is withheld once"
                self.plains[index][name] = None
        self.records.append(record)
        return record

    def replayed(
        self, records: list[ErasureRecord] | None = None, *, voids: list[int] | None = None
    ) -> Directory:
        """A fresh replay of what is published now. voids: takes the entries that break a rule; None raises."""
        directory = Directory(ORIGIN, self.records if records is None else records)
        for index, (preimage, plain) in enumerate(zip(self.preimages, self.plains, strict=True)):
            wire, message = message_from_plain(self.dialect, preimage, plain, commitments=False)
            directory.note_withheld(index, sum(text is None for text in plain.values()))
            try:
                if message is None:
                    directory.replay_fragment(wire, read_fragment(wire, plain), self.entries[index])
                else:
                    directory.replay(wire, message, self.entries[index])
            except MessageRejected:
                if voids is None:
                    raise
                voids.append(index)
                directory.append_void(index, self.entries[index])
        return directory

    def readable(self) -> set[str]:
        """Every text that is still published beside an entry."""
        return {text for plain in self.plains for text in plain.values() if text is not None}


def public_state(actor: Actor) -> Actor:
    """An actor less what the map does not commit to: which keys it revoked, an erasure may hide."""
    return replace(actor, revoked=frozenset())


def check_same(replayed: Directory, live: Directory) -> None:
    """A late joiner has the same live actors, histories, tombstones and roots, and no complaint."""
    assert replayed.erasure_faults() == ()
    assert {name: public_state(row) for name, row in replayed.actors.items()} == {
        name: public_state(row) for name, row in live.actors.items()
    }
    for name, row in replayed.actors.items():
        assert row.revoked <= live.actors[name].revoked
    assert {name: rows for name, rows in replayed.histories.items() if rows} == live.histories
    # Some of these were to actors erased since, which a late joiner cannot know.
    assert replayed.moves.items() <= live.moves.items()
    assert (replayed.roots, replayed.seen, replayed.greatest_time) == (live.roots, live.seen, live.greatest_time)
    assert replayed.tombstones == live.tombstones
    assert replayed.token_revoked == live.token_revoked
