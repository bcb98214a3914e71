"""What one web worker needs to answer: settings, a reader's store, tiles, admission, the link."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Hashable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import current_app

from ktlog.config import Settings
from ktlog.errors import KtlogError, MessageRejected, StoreError
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.admission import Admission
from ktlog.operator.authenticate import Authenticator
from ktlog.operator.cosigning import CosignDesk, load_cosigners
from ktlog.operator.directories import Directories
from ktlog.operator.gate import Gate
from ktlog.operator.guard import Guard, parse_networks
from ktlog.operator.hpkekeys import load_hpke_keys
from ktlog.operator.keys import PublicKeys, load_fetch_key, load_seed
from ktlog.operator.link import KEYS_DIFFER, Receipt, Submission, Told
from ktlog.operator.mapreader import MapReader
from ktlog.operator.outbox import Outbox
from ktlog.operator.replyqueue import ReplyQueue
from ktlog.operator.roles import open_link
from ktlog.operator.rotate import check_web_keys
from ktlog.operator.sources import load_sources
from ktlog.operator.stores import (
    map_exists,
    open_log,
    open_map,
    open_map_tiles,
    open_tiles,
    rules_reader,
)
from ktlog.operator.totp import TotpDesk
from ktlog.pkd.actors import Status
from ktlog.pkd.dialects import DIALECTS, Dialect
from ktlog.pkd.entry import leaf_key_hash
from ktlog.pkd.extensions import choose
from ktlog.pkd.keys import private_key_from_seed
from ktlog.store.contracts import LogStore, TileStore
from ktlog.web.logview import LogView, Published, Replicas
from ktlog.web.refusals import RefusalReport
from ktlog.web.signing import AnswerSigner
from ktlog.wire.cavage import get_signer
from ktlog.wire.fetch import Fetcher

ACTOR_FETCH_SECONDS = 5.0

log = logging.getLogger("ktlog.web")


class Context:
    """One worker's view of the log. Safe to use from many threads."""

    def __init__(self, settings: Settings, public_keys: PublicKeys) -> None:
        self.settings = settings
        self.public_keys = public_keys
        self._leaf_key = leaf_key_hash(public_keys.leaf_keys[-1]) if public_keys.leaf_keys else None
        self.dialect: Dialect = DIALECTS[settings.dialect]
        self.store: LogStore = open_log(settings, read_only=True)
        self.tiles = open_tiles(settings, read_only=True)
        self._map_reader: MapReader | None = None
        self.link = open_link(settings)
        self.hpke_key = load_hpke_keys(settings.keys, self.now)
        self.http_ed25519 = Ed25519PrivateKey.from_private_bytes(load_seed(settings.keys, "http-ed25519"))
        self.http_mldsa44 = private_key_from_seed(load_seed(settings.keys, "http-mldsa44"))
        self.fetch_key = load_fetch_key(settings.keys)
        check_web_keys(settings)
        compat = settings.compat_names()
        self.view = LogView(self.store, self.tiles, self.dialect)
        self.signer = AnswerSigner(
            ((f"{settings.actor_id}#main-key", self.http_ed25519), (f"{settings.actor_id}#pq-key", self.http_mldsa44)),
            self.now,
        )
        self.guard = Guard(
            settings.guard, settings.rate_limit_base_ms, settings.rate_limit_maximum_seconds,
            parse_networks(settings.rate_limit_exempt), self.now_ms,
        )
        self.trusted_proxies = parse_networks(settings.trusted_proxies)
        self.refusals = RefusalReport(self.link.report_refused)
        self.actor_keys = ActorKeys(
            Fetcher.from_environment(
                timeout=ACTOR_FETCH_SECONDS,
                sign_get=get_signer(settings.fetch_key_id, self.fetch_key, self.now),
            ),
            self.now, max(1, settings.threads // 2), self.store.erasure_count, compat, self.is_erased,
            self.refusals.fetched,
        )
        self.authenticator = Authenticator(settings.origin, self.actor_keys, self.guard, self.now, compat)
        self.rules = rules_reader(settings)
        self.gate = Gate.for_threads(settings.threads, os.cpu_count() or 1)
        self.admission = Admission(
            store=self.store, dialect=self.dialect, inbox_actor=settings.actor_id, hpke_key=self.hpke_key,
            authenticator=self.authenticator, extensions=choose(settings.aux_type_names()),
            directories=Directories(
                Fetcher.from_environment(timeout=ACTOR_FETCH_SECONDS), settings.url, settings.directory_urls()
            ),
            actor_domains=settings.actor_domain_names(), burndown_enabled=settings.burndown_enabled,
            time_window_seconds=settings.time_window_seconds, now=self.now, gate=self.gate,
            without_argon2=settings.bench_without_argon2, rules=self.rules,
        )
        self.totp = TotpDesk(
            store=self.store, link=self.link, authenticator=self.authenticator, hpke_key=self.hpke_key,
            time_window_seconds=settings.time_window_seconds, now=self.now,
            actor_domains=settings.actor_domain_names(), rules=self.rules,
        )
        self.cosigning = CosignDesk(
            store=self.store, link=self.link, origin=settings.origin,
            cosigners=load_cosigners(settings.cosigners),
            time_window_seconds=settings.time_window_seconds, now=self.now,
        )
        self.replies = ReplyQueue(settings.replies)
        self.outbox = Outbox(self.replies, self.store, self.is_erased, self.now)
        self.replicas = Replicas(load_sources(settings), self.now)

    def append(self, submission: Submission, sender: str | None = None) -> Receipt:
        """Give a submission, which the instance *sender* signed, its leaf index; raises as ``Link.append``."""
        try:
            return self.link.append(self._addressed(submission, sender))
        except MessageRejected as refusal:
            self._heed(refusal)
            raise

    def append_later(self, submission: Submission, sender: str | None, told: Told) -> None:
        """As :meth:`append`, but *told* gets the receipt or the error: see ``Link.append_later``."""
        def heeded(result: Receipt | MessageRejected | StoreError) -> None:
            if isinstance(result, MessageRejected):
                self._heed(result)
            told(result)

        self.link.append_later(self._addressed(submission, sender), heeded)

    def _addressed(self, submission: Submission, sender: str | None) -> Submission:
        return replace(submission, leaf_key=self._leaf_key, sender=sender, more=self.gate.is_hashing())

    def _heed(self, refusal: MessageRejected) -> None:
        """What a refusal by the sequencer says of the log."""
        if refusal.code == "overloaded":
            self.gate.shut()
        if refusal.code == KEYS_DIFFER:
            log.error(
                "%s: the sequencer signs with another leaf key than %s/public-keys.json names. Copy that file and"
                " keys.jsonl from its machine and restart: until then no message gets through here",
                KEYS_DIFFER, self.settings.directory,
            )

    def is_erased(self, actor_id: str) -> bool:
        """Whether the actor was erased and did not enrol again: nothing is to name them."""
        if self.store.erased(actor_id) is None:
            return False
        actor = self.store.actor(actor_id)
        return actor is not None and actor.status == Status.ERASED

    def now(self) -> int:
        return int(time.time())

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    @functools.cached_property
    def map_tiles(self) -> TileStore:
        return open_map_tiles(self.settings, read_only=True)

    def map_reader(self) -> MapReader | None:
        """Reads the map; None while there is none. The sequencer makes that of a log which older code began."""
        if self._map_reader is None:
            if not map_exists(self.settings):
                return None
            opened = open_map(self.settings, read_only=True)
            self._map_reader = MapReader(self.store, opened, self.tiles.read, self.map_tiles.read)
        return self._map_reader

    def version(self) -> Hashable | None:
        """Changes whenever an answer about an actor could; None when that cannot be told, and nothing is to be kept."""
        try:
            reader, published = self.map_reader(), self.published()
            return (
                self.store.version(), None if reader is None else reader.version(),
                None if published is None else published.raw,
            )
        except KtlogError:  # the view says what is wrong, and under which code
            return None

    def published(self) -> Published | None:
        """The newest checkpoint of this server's own log."""
        return self.view.published()


def context() -> Context:
    """The context of the application that answers the request under way."""
    return current_app.extensions["ktlog"]
