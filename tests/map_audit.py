"""Audits the map of a :class:`tests.map_world.MapPress` as a stranger would, from its published files and records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from auditor.mapaudit import MapAudit, salts_of
from auditor.mapfold import MapLeaves
from auditor.mapposition import MapPosition, parse_map_position
from auditor.report import Coverage, Report
from ktlog.client.publicfiles import PublicFiles, PublicRecord
from ktlog.client.verify import Log
from ktlog.errors import MessageRejected
from ktlog.operator.keys import load_map_signers
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.messages import message_from_plain
from ktlog.pkd.replay import Directory
from ktlog.pkd.withheld import read_fragment
from ktlog.wire.fetch import Response
from tests.map_world import MAP, MapPress
from tests.operator_world import ORIGIN


@dataclass
class MapFiles:
    """A fetcher over what a press publishes below /map; ``lies`` by path."""

    press: MapPress
    lies: dict[str, bytes | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        path = url.removeprefix(f"https://{MAP}/")
        self.asked.append(path)
        if path in self.lies:
            found = self.lies[path]
        elif path.startswith("checkpoint/"):
            found = self.press.map.checkpoint(int(path.removeprefix("checkpoint/")))
        else:
            file = self.press.settings.map_tiles / path
            found = file.read_bytes() if file.is_file() else None
        return Response(404 if found is None else 200, {}, found or b"", url)


@dataclass
class Auditor:
    """Keeps between two audits what a command keeps in its directory."""

    press: MapPress
    evidence_to: Path
    semantic: bool = True
    lies: dict[str, bytes | None] = field(default_factory=dict)
    saved: bytes = b""
    salts: dict[bytes, bytes] = field(default_factory=dict)
    leaves: dict[bytes, bytes] = field(default_factory=dict)
    root: Callable[[int, bytes], bytes] = lambda size, root: root
    now: int | None = None

    def __post_init__(self) -> None:
        self.directory: Directory | None = None

    def audit(self, **finish: object) -> Report:
        """From where the last one without findings ended. A directory is replayed from what is readable now."""
        press = self.press
        store, report = press.store, Report(ORIGIN, Coverage("all"), Coverage("none"))
        saved: MapPosition | None = parse_map_position(self.saved) if self.saved else None
        files = MapFiles(press, self.lies)
        vkeys = tuple(signer.vkey for signer in load_map_signers(press.settings.keys, ORIGIN))
        self.run = run = MapAudit(
            Log(MAP, vkeys, f"https://{MAP}"), PublicFiles(files, f"https://{MAP}"), report,
            press.clock() if self.now is None else self.now, saved=saved, save=self._save, policy=press.policy,
        )
        run.begin()
        records = store.erasures(0, store.erasure_count())
        directory = self.directory if self.directory is not None and saved else Directory(ORIGIN, records)
        fresh = directory is not self.directory
        if fresh:
            self.salts, self.leaves = {}, {}
        run.records = records
        leaves = MapLeaves(directory, records, salts=self.salts, leaves=self.leaves)
        run.leaves = leaves if self.semantic else None
        run.reached(directory.size, self._root(directory))
        for record in store.records(directory.size, store.state().size):
            self._entry(directory, leaves, PublicRecord(
                record.leaf_index, record.preimage, record.plain, record.salts
            ), record.entry)
            run.reached(directory.size, self._root(directory))
        position = run.finish(**finish)
        if report.ok and position is not None:
            self.saved, self.directory = position.encode(), directory
        return report

    def _root(self, directory: Directory) -> bytes:
        root = directory.roots[-1] if directory.roots else sha256().digest()
        return self.root(directory.size, root)

    def _entry(self, directory: Directory, leaves: MapLeaves, record: PublicRecord, entry: bytes) -> None:
        wire, message = message_from_plain(SPEC, record.preimage, record.plain, commitments=False)
        try:
            if message is None:
                change = directory.replay_fragment(wire, read_fragment(wire, record.plain), entry).change
            else:
                change = directory.replay(wire, message, entry)
        except MessageRejected:
            directory.append_void(directory.size, entry)
            return
        leaves.touch((leaf.actor_id for leaf in change.history), salts_of(record))

    def _save(self, evidence: bytes, kind: str) -> Path:
        path = self.evidence_to / f"{kind}.json"
        path.write_bytes(evidence)
        return path


def names(report: Report) -> list[str]:
    return sorted({finding.name for finding in report.findings})
