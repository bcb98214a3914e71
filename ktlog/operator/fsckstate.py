"""The directory's tables, the map and the map's output log against what the entries lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace

from ktlog.errors import EncodingError, Invalid, KtlogError, StoreError
from ktlog.keymap.evidence import leaves_contradict
from ktlog.keymap.output import OutputLeaf, parse_leaf
from ktlog.keymap.prefix import MISSING, PrefixLeaf, verify
from ktlog.operator.findings import Findings
from ktlog.operator.fscktree import FileCheck, Grown, TileStream
from ktlog.operator.mapcheck import stream_root
from ktlog.operator.mapderive import MapDerivation
from ktlog.pkd.actors import Actor
from ktlog.pkd.keys import key_hash
from ktlog.pkd.replay import Directory
from ktlog.store.contracts import LogStore
from ktlog.store.mapcontract import Dead, Live, MapState, MapStore
from ktlog.store.maptree import prefix
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Vkey, open_note
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import Frontier, hash_leaf
from ktlog.words import count_entries

IDS_AT_A_TIME = 1000


def check_directory(
    store: LogStore, directory: Directory, salts: Mapping[str, bytes], tokens: Sequence[bytes],
    operators: Sequence[tuple[int, str]], findings: Findings,
) -> None:
    """Compare the tables of *store* with *directory*, replayed to its newest entry."""
    for actor in directory.actors.values():
        try:
            _check_actor(store, directory, actor, salts, findings)
        except StoreError as error:
            findings.add("ActorDamaged", _of(actor), error.message)
        findings.checked["actors"] += 1
    try:
        for actor_id in _ids(store):
            if actor_id not in directory.actors:
                findings.add("ActorDamaged", f"log.db directory_actors {actor_id!a}", "no entry leads to this actor")
    except StoreError as error:
        findings.add("ActorDamaged", "log.db directory_actors", error.message)
    for key in tokens:
        there = _read(lambda one=key: store.token_revoked(one))
        if there is not True:
            what = there.message if isinstance(there, StoreError) else "it is not there"
            findings.add("TokenDamaged", "log.db token_revoked", f"a token revoked {key.hex()}: {what}")
    for leaf_index, move in directory.moves.items():
        if _read(lambda at=leaf_index: store.carried(at)) != move:
            findings.add("MoveDamaged", f"log.db directory_moves {leaf_index}", "it is not what the entry moved")
    for leaf_index, operator in operators:
        if operator in directory.actors and leaf_index not in {m.leaf_index for m in store.mentions(operator)}:
            where = f"log.db directory_operated {leaf_index}"
            findings.add("OperatedDamaged", where, "the operator of this entry is not noted")
    _check_tombstones(store, directory, findings)


def _check_actor(
    store: LogStore, directory: Directory, actor: Actor, salts: Mapping[str, bytes], findings: Findings
) -> None:
    stored = store.actor(actor.actor_id)
    if stored is None:
        findings.add("ActorDamaged", _of(actor), "the entries lead to it, and it is not there")
        return
    if directory.tombstones and actor.revoked <= stored.revoked:
        # What somebody revoked before an erased one's keys moved in, nobody can tell: more may be stored, and not less.
        stored = replace(stored, revoked=actor.revoked)
    wrong = [part.name for part in fields(actor) if getattr(stored, part.name) != getattr(actor, part.name)]
    if wrong:
        findings.add("ActorDamaged", _of(actor), f"its {', '.join(wrong)} is not what the entries lead to")
    history = tuple((at, int(role)) for at, role in directory.histories.get(actor.actor_id, ()))
    if store.history(actor.actor_id) != history:
        findings.add("HistoryDamaged", _of(actor), "directory_history has other entries of it")
    if store.salt(actor.actor_id) != salts.get(actor.actor_id):
        findings.add("SaltDamaged", _of(actor), "its salt is not the one in the record of its first entry")
    for key in actor.keys:
        if actor.actor_id not in store.holders(key_hash(key.public_key)):
            findings.add("ActorDamaged", _of(actor), f"its key of entry {key.leaf_index} is not found by its hash")


def _check_tombstones(store: LogStore, directory: Directory, findings: Findings) -> None:
    listed: Callable[[], Sequence[tuple[bytes, int, int, int]]] | None = getattr(store, "tombstones", None)
    if listed is None:
        findings.skip("The tombstones of the log's store: this kind of store does not list them.")
        return
    stored = {row[0]: row[1:] for row in listed()}
    wanted = {index: (one.version, one.generation, one.erasures) for index, one in directory.tombstones.items()}
    for index in stored.keys() | wanted.keys():
        if stored.get(index) != wanted.get(index):
            findings.add("TombstoneDamaged", f"log.db tombstones {index.hex()}", "it is not what the erasure log says")


def _ids(store: LogStore) -> Iterator[str]:
    after = ""
    while ids := store.actor_ids(after, IDS_AT_A_TIME):
        yield from ids
        after = ids[-1]


def _of(actor: Actor) -> str:
    return f"log.db directory_actors {actor.actor_id!a}"


def _read(read: Callable[[], object]) -> object:
    """What is stored, or the error that says that it cannot be read."""
    try:
        return read()
    except StoreError as error:
        return error


class MapCheck:
    """The stored map against *derivation*, the map of the same size and erasures.

    Args:
        waiting: indexes of whom an erasure took that the map has not followed yet: it cannot be derived any more.
    """

    def __init__(
        self, map_store: MapStore, derivation: MapDerivation, waiting: frozenset[bytes], findings: Findings
    ) -> None:
        self._map = map_store
        self._derivation = derivation
        self._waiting = waiting
        self._findings = findings

    def check(self, state: MapState) -> None:
        """Every leaf, value and node."""
        count, last_bucket = 0, -1
        seen: list[bytes] = []

        def expected() -> Iterator[PrefixLeaf]:
            nonlocal count, last_bucket
            for leaf in self._map.leaves():
                count += 1
                yield self._leaf(leaf)
                bucket = prefix(leaf.index, state.depth)
                if bucket != last_bucket:
                    last_bucket = bucket
                    seen.append(leaf.index)
                    self._check_nodes(leaf, state)

        root = stream_root(expected())
        self._findings.checked["map leaves"] += count
        if count != state.leaves or root != state.root:
            what = f"its {count} leaves make up another root than the published one"
            self._findings.add("MapRootDamaged", "map.db map_state", what)
            self._look_for_missing()
        for where in self._map.damaged_rows():
            self._findings.add("MapNodesDamaged", f"map.db {where}", "it is not what was written")

    def _leaf(self, leaf: PrefixLeaf) -> PrefixLeaf:
        """One stored leaf; returns it as it must be."""
        where = leaf.index.hex()
        if leaf.index in self._waiting:
            return leaf
        try:
            wanted = self._derivation.change(leaf.index)
        except Invalid as error:
            self._findings.add("SaltDamaged", f"log.db records, of {where}", error.message)
            return leaf
        if wanted is None:
            self._findings.add("MapLeafDamaged", f"map.db map_buckets {where}", "the entries lead to nobody there")
            return leaf
        if wanted.commitment != leaf.commitment:
            self._findings.add("MapLeafDamaged", f"map.db map_buckets {where}", "its commitment is not the value's")
        live, dead = _read(lambda: self._map.live(leaf.index)), _read(lambda: self._map.dead(leaf.index))
        if isinstance(wanted, Dead):
            stored = None if not isinstance(dead, Dead) else replace(dead, commitment=wanted.commitment)
            if stored != wanted or live is not None:
                what = "it is not the erasure record's"
                self._findings.add("MapValueDamaged", f"map.db map_tombstones {where}", what)
        else:
            self._check_live(wanted, live, dead, where)
        return PrefixLeaf(leaf.index, wanted.commitment)

    def _check_live(self, wanted: Live, live: object, dead: object, where: str) -> None:
        row = None
        if isinstance(live, Live):
            news = self._map.history(wanted.index, len(wanted.news) + 1)
            row = replace(live, commitment=wanted.commitment, news=news, afresh=True)
        if row != wanted or dead is not None:
            parts = [part.name for part in fields(Live)]
            wrong = [name for name in parts if row is None or getattr(row, name) != getattr(wanted, name)]
            what = f"not what the entries lead to: {', '.join(wrong) or 'a tombstone too'}"
            self._findings.add("MapValueDamaged", f"map.db map_values {where}", what)

    def _check_nodes(self, leaf: PrefixLeaf, state: MapState) -> None:
        try:
            verify(self._map.prove(leaf.index), [leaf.index], state.root, [leaf.commitment])
        except (Invalid, EncodingError, StoreError) as error:
            self._findings.add("MapNodesDamaged", f"map.db map_nodes, above {leaf.index.hex()}", error.message)

    def _look_for_missing(self) -> None:
        stored = {leaf.index for leaf in self._map.leaves()}
        for index in self._derivation.indexes():
            if index not in stored and index not in self._waiting:
                what = "there is no leaf, and the entries lead to one"
                self._findings.add("MapLeafDamaged", f"map.db map_buckets {index.hex()}", what)


class OutputCheck:
    """The output log, leaf by leaf: what each says of the log, its own tree, its files and its checkpoints.

    Args:
        config: leaf 0. root_at: the log's own root at a size; None when it is not known.
        erasure_roots: the erasure log's root after each number of records; None when they cannot be read.
        updates_since: time of the oldest leaf whose update of the map may still be there.
    """

    def __init__(
        self, origin: str, config: bytes | None, root_at: Callable[[int], bytes | None],
        erasure_roots: Sequence[bytes] | None, files: FileCheck, findings: Findings, updates_since: int = 0,
    ) -> None:
        self._origin = origin
        self._config = config
        self._root_at = root_at
        self._erasure_roots = erasure_roots
        self._files = files
        self._findings = findings
        self._updates_since = updates_since
        self._map_root: bytes | None = MISSING
        """Of the leaf before, unless that is damaged: what is wrong then is not its neighbour's update."""
        self._stream = TileStream()
        self._page: list[bytes] = []
        self.frontier = Frontier()
        self.newest: OutputLeaf | None = None

    def take(self, data: bytes, stored_hash: bytes | None) -> None:
        """The next leaf."""
        at = self.frontier.size
        own = hash_leaf(data)
        if stored_hash is not None and stored_hash != own:
            self._add(at, "its leaf hash is not that of the leaf")
        self.frontier = self.frontier.append(own)
        self._page.append(own)
        if at == 0:
            if self._config is not None and data != self._config:
                self._add(at, "it is not this log's configuration")
        else:
            self._check(at, data)
            self._check_update(at, sound=stored_hash == own)
        self._findings.checked["output leaves"] += 1
        for tile in self._stream.append(own):
            self._tile(tile)
        if len(self._page) == TILE_WIDTH:
            self._bundle()

    def finish(self) -> None:
        if self._page:
            self._bundle()
        for tile in self._stream.partial():
            self._tile(tile)

    def _check(self, at: int, data: bytes) -> None:
        try:
            leaf = parse_leaf(data)
        except EncodingError as error:
            self._add(at, error.message)
            return
        reason = None if self.newest is None else leaves_contradict(self.newest, leaf)
        self.newest = leaf
        if reason is not None:
            self._add(at, reason)
        root = self._root_at(leaf.input_size)
        if root is not None and root != leaf.input_root:
            self._add(at, f"it says another root of {count_entries(leaf.input_size)} than the log has")
        known = self._erasure_roots
        if known is not None and (leaf.erasures >= len(known) or known[leaf.erasures] != leaf.erasures_root):
            self._add(at, f"it commits to other {leaf.erasures} erasures than the log has")

    def _check_update(self, at: int, *, sound: bool) -> None:
        before, leaf = self._map_root, self.newest
        self._map_root = leaf.map_root if sound and leaf is not None else None
        if before is not None and self._map_root is not None and leaf is not None and leaf.time >= self._updates_since:
            self._files.update(at, before, self._map_root)

    def _tile(self, tile: Grown) -> None:
        self._files.tile(*tile)

    def _bundle(self) -> None:
        self._files.bundle((self.frontier.size - 1) // TILE_WIDTH, self._page)
        self._page = []

    def _add(self, at: int, what: str) -> None:
        self._findings.add("OutputLeafDamaged", f"map.db output_leaves {at}", what)


def check_note(note: bytes | None, wanted: Checkpoint, vkeys: Sequence[Vkey]) -> str | None:
    """Why *note* is not the checkpoint *wanted*, signed by one of *vkeys*; None if it is."""
    if note is None:
        return "it is not there"
    try:
        opened, checkpoint = parse_signed_checkpoint(note)
        if checkpoint != wanted:
            return "it is of another tree"
        # Of each kind of key one: which it is may have changed since.
        signed = {verified.vkey.algorithm for verified in open_note(opened, vkeys)}
        return None if signed == {vkey.algorithm for vkey in vkeys} else "a key of the log has not signed it"
    except KtlogError as error:
        return error.message
