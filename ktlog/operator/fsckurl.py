"""``ktlog fsck`` of a log's published files: what they say of each other, and of the root that was signed.

Read with the one reader of published files, so that it sees what auditors and verifiers see. What only its operator
has (the directory's tables, symmetric keys, pending leaves, signed heads) cannot be seen from here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

from ktlog.client.publicfiles import FileGetter, PublicFiles, PublicRecord, parse_public_record
from ktlog.errors import EncodingError, Invalid, KtlogError, Unreachable
from ktlog.keymap.output import OutputLeaf, map_origin, parse_config, parse_leaf
from ktlog.keymap.prefix import PrefixLeaf
from ktlog.operator.findings import Findings
from ktlog.operator.fsck import Progress, Scope
from ktlog.operator.fsckreplay import Replay
from ktlog.operator.fsckstate import OutputCheck
from ktlog.operator.fscktree import FileCheck, Files, TreeCheck, erasure_roots
from ktlog.operator.mapcheck import stream_root
from ktlog.operator.mapderive import MapDerivation
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.erasure import ErasureRecord
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Vkey, open_note, parse_vkey
from ktlog.tlog.policy import Policy
from ktlog.tlog.tiles import TILE_WIDTH

AHEAD = 4
"""Pages asked for before they are needed."""
ATTEMPTS = 3
MAX_TILE_BYTES = TILE_WIDTH * 32
MAX_BUNDLE_BYTES = TILE_WIDTH * 65_537

NEVER_CHECKED = (
    "What only the log's operator has: its tables, its keys, what is not published yet (`ktlog fsck --dir`).",
    "Whether witnesses saw the same, and what the log answers: that is an auditor's work (`ktlog-auditor`).",
)


@dataclass(frozen=True)
class _Page:
    entries: list[bytes] | None
    lines: list[bytes] | None


def examine_url(
    url: str, fetcher: FileGetter, policy: Policy | None = None, scope: Scope = Scope(),  # noqa: B008 - frozen
    progress: Progress = lambda *_: None,
) -> Findings:
    """Check what is published at *url*. policy: whose ``log`` lines say which keys sign; None believes the log itself.

    Raises:
        Unreachable: it does not answer.
    """
    findings = Findings()
    with ThreadPoolExecutor(os.cpu_count() or 1, "fsck") as pool, ThreadPoolExecutor(AHEAD, "fetch") as network:
        _UrlExamination(url.rstrip("/"), fetcher, policy, scope, progress, pool, network, findings).run()
    for sentence in NEVER_CHECKED:
        findings.skip(sentence)
    return findings


class _UrlExamination:
    def __init__(
        self, url: str, fetcher: FileGetter, policy: Policy | None, scope: Scope, progress: Progress, pool: Executor,
        network: Executor, findings: Findings,
    ) -> None:
        self._url = url
        self._files = PublicFiles(fetcher, url, attempts=ATTEMPTS)
        self._map_files = PublicFiles(fetcher, f"{url}/map", attempts=ATTEMPTS)
        self._policy = policy
        self._scope = scope
        self._progress = progress
        self._pool = pool
        self._network = network
        self._findings = findings
        self._origin = ""

    def run(self) -> None:
        # The map first: what it is of is then in the log, which only grows.
        output, output_note = self._checkpoint(self._map_files, "map/checkpoint")
        head, note = self._checkpoint(self._files, "checkpoint")
        if head is None:
            return
        self._origin = head.origin
        vkeys = self._vkeys(head.origin)
        self._check_signed(note, "checkpoint", head.origin, vkeys)
        if output is not None:
            self._check_signed(output_note, "map/checkpoint", map_origin(head.origin), vkeys)
        leaves = self._output_leaves(output)
        sizes = frozenset(size for size in map(_input_size, leaves) if size is not None)
        tree, files = TreeCheck(self._findings, sizes | {head.size}), self._check_of(self._files, "", head.size)
        erasures = self._erasures()
        replay: Replay | None = None
        newest = next((leaf for leaf in map(_parsed, reversed(leaves)) if leaf is not None), None)
        for number, page in enumerate(self._pages(head.size)):
            start = number * TILE_WIDTH
            replay = self._page(start, page, tree, files, replay, erasures, newest)
            self._progress("entries", min(start + TILE_WIDTH, head.size), head.size)
            if page.entries is None:
                self._findings.skip(f"Everything from entry {start} on: the bundle cannot be read.")
                return
        for tile in tree.partial():
            files.tile(*tile)
        if tree.roots.get(head.size) != head.root:
            self._findings.add("TreeMismatch", "checkpoint", "the entries do not make up the root that was signed")
        if replay is not None:
            replay.finish()
        self._check_output(output, leaves, tree.roots, erasures)

    # Heads

    def _checkpoint(self, files: PublicFiles, where: str) -> tuple[Checkpoint | None, bytes]:
        try:
            data = files.checkpoint()
            return parse_signed_checkpoint(data)[1], data
        except Unreachable as error:
            if error.name == "NoCheckpoint" and where.startswith("map/"):
                self._findings.skip("The map: there is none at this address.")
                return None, b""
            raise
        except KtlogError as error:
            self._findings.add("CheckpointDamaged", where, error.message)
            return None, b""

    def _check_signed(self, data: bytes, where: str, origin: str, vkeys: list[Vkey]) -> None:
        own = [vkey for vkey in vkeys if vkey.name == origin]
        try:
            note, found = parse_signed_checkpoint(data)
            if found.origin != origin:
                raise Invalid("WrongLog", f"it is of {found.origin!a}")
            if own and not open_note(note, own):
                raise Invalid("BadLogSignature", "no key of the log has signed it")
            if not own:
                self._findings.skip(f"The signature of {where}: no key is known for it.")
            if self._policy is not None:
                self._policy.open_cosignatures(note)
        except KtlogError as error:
            self._findings.add("CheckpointDamaged", where, error.message)

    def _vkeys(self, origin: str) -> list[Vkey]:
        """The keys that a policy names, or else the log itself."""
        if self._policy is not None:
            return [line.vkey for line in self._policy.logs if line.vkey.name in (origin, map_origin(origin))]
        self._findings.skip("That the keys are the log's: it names them itself. Give a policy with --policy.")
        try:
            info = parse_json(self._files.file("api/info", "MissingInfo"))
            return [parse_vkey(text) for name in ("vkeys", "map-vkeys") for text in info.get(name, ())]
        except (KtlogError, AttributeError, TypeError):
            return []

    # The log

    def _check_of(self, files: PublicFiles, prefix: str, size: int) -> FileCheck:
        def read(path: str) -> bytes | None:
            try:
                return files.file(path, "MissingFile", MAX_BUNDLE_BYTES if "entries" in path else MAX_TILE_BYTES)
            except Invalid as error:
                if error.name == "MissingFile":
                    return None
                return b""

        return FileCheck(Files(read, prefix, size), self._findings)

    def _erasures(self) -> tuple[ErasureRecord, ...] | None:
        try:
            head = self._files.erasure_head()
            return () if head is None else self._files.erasures(head)
        except Invalid as error:
            self._findings.add("ErasureDamaged", "erasures", error.message)
            return None

    def _pages(self, size: int) -> Iterator[_Page]:
        def read(number: int) -> _Page:
            width = min(TILE_WIDTH, size - number * TILE_WIDTH)
            return _Page(
                self._read("BundleDamaged", "tile/entries", number, lambda: self._files.entries(number, width)),
                None if self._scope.quick else self._read(
                    "RecordDamaged", "records", number, lambda: self._files.records(number, width)
                ),
            )

        waiting: deque[Future[_Page]] = deque()
        count = -(-size // TILE_WIDTH)
        for number in range(count + AHEAD):
            if number < count:
                waiting.append(self._network.submit(read, number))
            if number >= AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _read(self, name: str, where: str, number: int, read: Callable[[], list[bytes]]) -> list[bytes] | None:
        try:
            return read()
        except Invalid as error:
            self._findings.add(name, f"{where}, page {number}", error.message)
            return None

    def _page(
        self, start: int, page: _Page, tree: TreeCheck, files: FileCheck, replay: Replay | None,
        erasures: tuple[ErasureRecord, ...] | None, newest: OutputLeaf | None,
    ) -> Replay | None:
        if page.entries is None:
            return replay
        for entry in page.entries:
            _leaf_hash, full = tree.take(entry, None, None)
            for tile in full:
                files.tile(*tile)
        if self._scope.quick or erasures is None:
            self._findings.skip("Records, signatures, the directory and the map.")
            return None
        if replay is None:
            if start:
                return None
            replay = self._begin(page.entries, erasures)
        for at, entry in enumerate(page.entries, start):
            if replay is None:
                return None
            self._replay(replay, at, entry, None if page.lines is None else page.lines[at - start])
            self._check_map(replay, erasures, newest)
        return replay

    def _begin(self, entries: list[bytes], erasures: tuple[ErasureRecord, ...]) -> Replay | None:
        leaf_keys: Mapping[bytes, bytes] | None = None
        try:
            leaf_keys = self._files.leaf_keys()
        except Invalid as error:
            self._findings.add("PublicKeysDamaged", "leaf-keys", error.message)
        try:
            dialect = parse_entry(entries[0])[0]
            return Replay(
                self._origin, dialect, erasures, leaf_keys, self._findings, self._pool,
                commitments=self._scope.commitments,
            )
        except (EncodingError, Invalid) as error:
            self._findings.add("EntryDamaged", "tile/entries, entry 0", error.message)
            return None

    def _replay(self, replay: Replay, at: int, entry: bytes, line: bytes | None) -> None:
        if line is None:
            replay.give_up(at)
            return
        try:
            shown: PublicRecord = parse_public_record(line, at)
        except Invalid as error:
            self._findings.add("RecordDamaged", f"records, entry {at}", error.message)
            replay.give_up(at)
            return
        replay.take(at, entry, shown, None)

    # The map

    def _output_leaves(self, output: Checkpoint | None) -> list[bytes]:
        if output is None:
            return []
        leaves: list[bytes] = []
        for number in range(-(-output.size // TILE_WIDTH)):
            width = min(TILE_WIDTH, output.size - number * TILE_WIDTH)
            found = self._read(
                "BundleDamaged", "map/tile/entries", number, lambda n=number, w=width: self._map_files.entries(n, w)
            )
            if found is None:
                break
            leaves += found
        return leaves

    def _check_map(self, replay: Replay, erasures: tuple[ErasureRecord, ...], newest: OutputLeaf | None) -> None:
        """The map root of the newest output leaf, once the directory is of its size."""
        if newest is None or replay.broken is not None or newest.input_size != replay.directory.size:
            return
        if newest.erasures != sum(record.input_size <= newest.input_size for record in erasures):
            self._findings.skip("The map: somebody was erased whom it does not say so of yet.")
            return
        numbers = {record.index: number for number, record in enumerate(erasures)}
        derivation = MapDerivation(replay.directory, replay.salts, numbers)
        try:
            changes = ((index, derivation.change(index)) for index in sorted(derivation.indexes()))
            root = stream_root(PrefixLeaf(index, change.commitment) for index, change in changes if change is not None)
        except Invalid as error:
            self._findings.add("SaltDamaged", "records", error.message)
            return
        if root != newest.map_root:
            self._findings.add("MapRootDamaged", "map", "the entries lead to another map root than its newest leaf")
        self._findings.checked["map leaves"] += len(replay.directory.actors)

    def _check_output(
        self, output: Checkpoint | None, leaves: list[bytes], roots: Mapping[int, bytes],
        erasures: tuple[ErasureRecord, ...] | None,
    ) -> None:
        if output is None:
            return
        files = self._check_of(self._map_files, "map/", output.size)
        known = None if erasures is None else erasure_roots(erasures)
        check = OutputCheck(output.origin, None, roots.get, known, files, self._findings)
        for leaf in leaves:
            check.take(leaf, None)
        check.finish()
        try:
            if leaves and map_origin(parse_config(leaves[0]).origin) != output.origin:
                raise EncodingError("BadMapConfig", "it is of another log")
        except EncodingError as error:
            self._findings.add("OutputLeafDamaged", "map leaf 0", error.message)
        if (check.frontier.size, check.frontier.root()) != (output.size, output.root):
            self._findings.add("TreeMismatch", "map/checkpoint", "the leaves do not make up the root that was signed")


def _parsed(leaf: bytes) -> OutputLeaf | None:
    try:
        return parse_leaf(leaf)
    except EncodingError:
        return None


def _input_size(leaf: bytes) -> int | None:
    parsed = _parsed(leaf)
    return None if parsed is None else parsed.input_size


