"""What a liar does to a log, and to what is shown of it: each returns the log, so that a lie is a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ktlog.keymap.prefix import PrefixLeaf
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import decode_public_key
from ktlog.tlog.encoding import encode_base64url
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response
from ktlog.wire.receipts import LOG_ACTOR_PATH, RECEIPT_CONTEXT, format_receipt
from tests.liars.names import ORIGIN, URL, WITNESSES, witness_path
from tests.pkd_samples import private

if TYPE_CHECKING:
    from tests.liars.log import SimLog


class Tricks:
    """The dishonest half of a :class:`tests.liars.log.SimLog`."""

    # -- rewriting what was logged, in everything that is shown from now on
    def put(self, index: int, entry: bytes) -> SimLog:
        """Another entry in the place of *index*."""
        index %= self.size
        self.entries[index] = self.pages[index].entry = entry
        self._hashes = []
        return self

    def rewrite(self, index: int) -> SimLog:
        """Another leaf signature, which makes it another entry, for the same message."""
        return self.put(index, self.make_entry(self.preimages[index]))

    def swap(self, first: int, second: int) -> SimLog:
        for of in (self.entries, self.pages, self.preimages, self.plains, self.actions):
            of[first], of[second] = of[second], of[first]
        self._hashes = []
        return self

    def retell(self, index: int, name: str, text: str | None) -> SimLog:
        """Another plaintext beside an entry; where it is a key, the API's answers and the map have it too."""
        old = self.plains[index][name]
        self.plains[index][name] = text
        if name == "public-key" and old is not None and text is not None:
            swapped = decode_public_key(text)
            for rows in (self.live.actors, *(one.actors for one in self.standings.values())):
                for actor_id, actor in rows.items():
                    keys = tuple(
                        replace(key, public_key=swapped) if key.leaf_index == index else key for key in actor.keys
                    )
                    rows[actor_id] = replace(actor, keys=keys)
        return self

    def withhold(self, index: int) -> SimLog:
        self.plains[index].update(dict.fromkeys(self.plains[index]))
        return self

    def vanish(self, actor_id: str) -> SimLog:
        """An actor is gone from what the log answers and from its map, as if never enrolled."""
        for standing in (self.live.actors, *(one.actors for one in self.standings.values())):
            standing.pop(actor_id, None)
        return self

    def erased(self, actor_id: str) -> SimLog:
        self.erase(actor_id)
        return self

    def bury(self, actor_id: str, **changes: Any) -> SimLog:
        """Erase somebody, and say so in an output leaf before anything else is logged. changes: of the leaf."""
        return self.erased(actor_id).grow(**changes)

    def forge_erasure(self, number: int, **changes: Any) -> SimLog:
        self.records[number] = replace(self.records[number], **changes)
        return self

    def forget_erasure(self, number: int) -> SimLog:
        del self.records[number]
        return self

    def deny(self, actor_id: str) -> SimLog:
        """The API knows no such actor."""
        self.denied.add(actor_id)
        return self

    def hold_back(self, size: int) -> SimLog:
        """Time passes, and new output leaves go on to speak of *size* entries."""
        before = self.true_leaf()
        self.tick(400)
        return self.add_leaf(
            self.old_leaves, input_size=size, input_root=self.root(size), erasures=before.erasures,
            erasures_root=before.erasures_root,
        )

    def next(self, happens: Callable[[], Any]) -> SimLog:
        """What happens between two looks of who watches."""
        self.then = happens
        return self

    def promise(self, log: SimLog) -> SimLog:
        """Somebody holds the signed answer to the last message that *log*, a twin, took."""
        index = log.size - 1
        body = json.dumps({
            "!pkd-context": RECEIPT_CONTEXT, "leaf-index": index, "tree-size": index + 1,
            "merkle-leaf": encode_base64url(log.entries[index]), "merkle-root": log.root_text(index + 1),
        }).encode()
        bare = Exchange(
            "POST", f"{URL}{LOG_ACTOR_PATH}/inbox", 202, {"content-type": "application/json"}, body,
            content_digest(b"the message"),
        )
        key = f"{URL}{LOG_ACTOR_PATH}#pq-key", private("answers")
        made = {name.lower(): value for name, value in sign_response(bare, [key], self.now).items()}
        self.receipts[f"{index}.json"] = format_receipt(replace(bare, headers=bare.headers | made))
        return self

    def map_with(self, actor_id: str, **changes: Any) -> list[PrefixLeaf]:
        """The map's leaves if an actor were another. changes: of the actor."""
        true = self.live.actors[actor_id]
        self.live.actors[actor_id] = replace(true, **changes)
        try:
            return self.map_leaves()
        finally:
            self.live.actors[actor_id] = true

    def map_without(self, actor_id: str) -> list[PrefixLeaf]:
        index = map_index(ORIGIN, actor_id)
        return [leaf for leaf in self.map_leaves() if leaf.index != index]

    def map_as_before(self, actor_id: str) -> list[PrefixLeaf]:
        """The map's leaves, but that of an actor is the one of the last map."""
        index = map_index(ORIGIN, actor_id)
        old = [leaf for leaf in self.old_leaves if leaf.index == index]
        return sorted([*self.map_without(actor_id), *old])

    def with_config(self, **changes: Any) -> SimLog:
        """From now on, output leaves name another configuration."""
        self.config = replace(self.config, **changes)
        return self

    def show_witness(self, other: SimLog, name: str = WITNESSES[0]) -> SimLog:
        """A witness has the head of *other*."""
        path = witness_path(name, ORIGIN)
        self.seen_by[path] = other.seen_by[path]
        return self

    def rewrite_record(self, index: int, **changes: Any) -> SimLog:
        """Publish another record beside an entry than was published."""
        lines = [self.line(at, **(changes if at == index else {})) + b"\n" for at in range(self.published_size)]
        self.lies[self.records_path()] = b"".join(lines)
        return self
