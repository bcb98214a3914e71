"""What the pages of one worker share: caches that end with what they are of, and the desk that looks actors up."""

from __future__ import annotations

import threading
from urllib.parse import quote

from flask import current_app

from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import Policy
from ktlog.web.context import ACTOR_FETCH_SECONDS, Context
from ktlog.web.explorer.live import LiveDesk
from ktlog.web.explorer.standing import Head, Vouchers, matrix, verdict
from ktlog.wire.cavage import get_signer
from ktlog.wire.fetch import Fetcher

DAY = 86_400
DAYS = 30


class Explorer:
    """Safe to use from many threads."""

    def __init__(self, context: Context) -> None:
        self.context = context
        settings = context.settings
        public = context.public_keys
        self.vkeys = tuple(parse_vkey(text) for text in (*public.vkeys, *public.retired_vkeys))
        """Every key that this log signs its checkpoints with, or ever did."""
        self.vouchers = Vouchers(settings, (*self.vkeys, *map(parse_vkey, public.map_vkeys)))
        self.live = LiveDesk(
            context.actor_keys,
            Fetcher.from_environment(
                timeout=ACTOR_FETCH_SECONDS,
                sign_get=get_signer(settings.fetch_key_id, context.fetch_key, context.now),
            ),
            context.store.erasure_count, context.now,
        )
        self._lock = threading.Lock()
        self._days: dict[int, int] = {}

    def heads(self) -> tuple[Policy, Head | None, Head | None]:
        """The publish policy, and the newest checkpoints of the log and of its map."""
        policy, published = self.vouchers.policy(), self.context.published()
        reader = self.context.map_reader()
        return (
            policy, self.vouchers.head("log", None if published is None else published.raw, policy),
            self.vouchers.head("map", None if reader is None else reader.checkpoint(), policy),
        )

    def standing(self) -> dict[str, object]:
        """Who vouches for what, and the sentence about it."""
        policy, log, directory = self.heads()
        now = self.context.now()
        return {
            "verdict": verdict(policy, log, directory, now), "cosigners": matrix(policy, log, directory, now),
            "signed": None if log is None else log.signed,
        }

    def growth(self) -> list[int]:
        """How large the log was at the last 30 midnights in UTC, and how large it is."""
        now, size = self.context.now(), self.context.store.state().size
        today = now - now % DAY
        wanted = [today - DAY * back for back in range(DAYS - 1, -1, -1)]
        with self._lock:
            known = dict(self._days)
        missing = [day for day in wanted if day not in known]
        if missing:  # a midnight that has passed keeps its size for ever
            known |= dict(zip(missing, self.context.store.sizes_at(missing), strict=True))
            with self._lock:
                self._days = {day: known[day] for day in wanted}
        return [*(known[day] for day in wanted), size]


def explorer() -> Explorer:
    """That of the application that answers the request under way."""
    return current_app.extensions["ktlog_explorer"]


def actor_url(actor_id: str) -> str:
    """The path of an actor's page. The id is one segment: its slashes are escaped."""
    return f"/a/{quote(actor_id, safe='')}"


