"""What a mirror checks of every entry before it keeps it: all that a replayer checks.

The entry is of the log's one dialect and commits to the published message; one of the log's leaf keys
signed it; the message is in canonical form, was never logged before, names a recent root, is signed by
whoever the rules demand, and is allowed by the state; withheld text is explained by the erasure log.
The Argon2id commitments of the plaintext, 50 ms each, are checked where the caller says so. Pure.

Unlike an auditor, who reports an entry that breaks a rule and reads on, a mirror stops before it.

Spec: directory map §3 to §5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ktlog.client.publicfiles import PublicRecord
from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import parse_entry, verify_entry
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.messages import message_from_plain
from ktlog.pkd.replay import Directory, Tombstone
from ktlog.pkd.state import Change, created_time
from ktlog.pkd.withheld import read_fragment
from ktlog.store.contracts import LogState, Record
from ktlog.tlog.tree import hash_leaf


class Follower:
    """A log's directory as far as it was followed. After an error it must be thrown away.

    Args:
        dialect: of every entry.
        erasures: the whole erasure log.
        leaf_keys: every leaf key that the log ever used, by SHA-256 of the raw key.

    Raises:
        Invalid: ``BadErasure``, the records contradict each other.
    """

    def __init__(
        self, origin: str, dialect: Dialect, erasures: Sequence[ErasureRecord], leaf_keys: Mapping[bytes, bytes]
    ) -> None:
        self.directory = Directory(origin, erasures)
        self.dialect = dialect
        self.erasures = tuple(erasures)
        self._leaf_keys = leaf_keys

    @property
    def size(self) -> int:
        return self.directory.size

    def take(
        self, entry: bytes, shown: PublicRecord, *, commitments: bool, signed: bool = True
    ) -> tuple[Record, Change]:
        """Check the next entry and let it take effect.

        Args:
            commitments: check the commitment of every text that is not withheld.
            signed: check the leaf signature; not again for what was checked before it was stored.

        Returns:
            The record, accepted at time 0, and what it changed.

        Raises:
            Invalid: ``BadEntry``, ``BadLeafSignature``, ``PlaintextMismatch``, ``RecordWithheld``,
                ``BadErasure``, ``BadRecord``; ``BadTransition``, the rules forbid the message.
        """
        at = f"entry {self.size}"
        try:
            return self._take(entry, shown, commitments, signed)
        except MessageRejected as error:
            raise Invalid("BadTransition", f"{at}: {error.message} ({error.code})") from error
        except EncodingError as error:
            raise Invalid("BadEntry", f"{at}: {error.message}") from error
        except Invalid as error:
            raise Invalid(error.name, f"{at}: {error.message}") from error

    def _take(self, entry: bytes, shown: PublicRecord, commitments: bool, signed: bool) -> tuple[Record, Change]:
        directory, leaf_index = self.directory, self.size
        dialect, _ = parse_entry(entry)
        if dialect is not self.dialect:
            raise Invalid("BadEntry", f"it is written in dialect {dialect.name}, the log's is {self.dialect.name}")
        if signed:
            verify_entry(entry, shown.preimage, self._leaf_keys)
        wire, message = message_from_plain(dialect, shown.preimage, shown.plain, commitments=commitments)
        if message is not None:
            created = created_time(message, directory.greatest_time)
            change = directory.replay(wire, message, entry)
        else:
            if not directory.may_be_withheld(leaf_index):
                raise Invalid("RecordWithheld", "its text is withheld, and no erasure explains it")
            directory.note_withheld(leaf_index, sum(text is None for text in shown.plain.values()))
            fragment = read_fragment(wire, shown.plain)
            created = fragment.time
            change = directory.replay_fragment(wire, fragment, entry).change
        if set(shown.salts) != {name for name, text in shown.plain.items() if text in change.needs_salt}:
            raise Invalid("BadRecord", "its salts are not those of the actors that it gave a first value")
        record = Record(
            leaf_index=leaf_index, entry=entry, leaf_hash=hash_leaf(entry), root=directory.roots[-1],
            preimage=shown.preimage, plain=dict(shown.plain), keys={}, salts=dict(shown.salts),
            unique_hash=wire.unique_hash, action=wire.action, created=created, accepted=0, withheld=shown.withheld,
        )
        return record, change

    def check_erasures(self) -> None:
        """Check that the erasure log explains what the entries so far withhold.

        Raises:
            Invalid: ``RecordWithheld``, ``NotErased``, ``BadErasure``.
        """
        for fault in self.directory.erasure_faults():
            raise fault

    def state(self, epoch: int) -> LogState:
        """Where the log stands, for a store whose writer is *epoch*."""
        directory = self.directory
        frontier = directory.frontier
        return LogState(directory.size, frontier.root(), frontier, epoch, directory.greatest_time)

    def tombstones(self, after: int) -> dict[bytes, Tombstone]:
        """What is left of whom the log erased after its entry *after* and so far, both sizes of its tree."""
        return {
            record.index: self.directory.tombstones[record.index] for record in self.erasures
            if after < record.input_size <= self.size
        }
