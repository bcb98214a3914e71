"""What one web worker needs to answer: settings, a reader's store, tiles, admission, the link."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.config import Settings
from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.admission import Admission
from ktlog.operator.authenticate import Authenticator
from ktlog.operator.cosigning import CosignDesk, load_cosigners
from ktlog.operator.directories import Directories
from ktlog.operator.guard import Guard, parse_networks
from ktlog.operator.keys import PublicKeys, load_seed
from ktlog.operator.link import SequencerLink
from ktlog.operator.reader import ActorReader
from ktlog.operator.replyqueue import ReplyQueue
from ktlog.operator.totp import TotpDesk
from ktlog.pkd.dialects import DIALECTS, Dialect
from ktlog.pkd.extensions import choose
from ktlog.pkd.hpke import DecapsulationKey
from ktlog.pkd.keys import private_key_from_seed
from ktlog.store.contracts import LogStore
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.web.signing import AnswerSigner
from ktlog.wire.fetch import Fetcher

ACTOR_FETCH_SECONDS = 5.0


@dataclass(frozen=True)
class Published:
    """The checkpoint that everybody is shown now."""

    raw: bytes
    checkpoint: Checkpoint


class Context:
    """One worker's view of the log. Safe to use from many threads."""

    def __init__(self, settings: Settings, public_keys: PublicKeys) -> None:
        if settings.compat.split():
            # An operator who asked for less than the specification demands must not believe to have it.
            raise UsageError("BadSetting", f"compat is {settings.compat!a}; this version has no switches for it")
        self.settings = settings
        self.public_keys = public_keys
        self.dialect: Dialect = DIALECTS[settings.dialect]
        self.store: LogStore = SqliteStore.open(settings.database, origin=settings.origin, read_only=True)
        self.tiles = TileFiles(settings.tiles)
        self.link = SequencerLink(settings.socket_record)
        self.hpke_key = DecapsulationKey.from_seed(load_seed(settings.keys, "hpke"))
        self.http_ed25519 = Ed25519PrivateKey.from_private_bytes(load_seed(settings.keys, "http-ed25519"))
        self.http_mldsa44 = private_key_from_seed(load_seed(settings.keys, "http-mldsa44"))
        self.reader = ActorReader(self.store, self.tiles.read, self.dialect)
        self.signer = AnswerSigner(
            ((f"{settings.actor_id}#main-key", self.http_ed25519), (f"{settings.actor_id}#pq-key", self.http_mldsa44)),
            self.now,
        )
        self.guard = Guard(
            settings.guard, settings.rate_limit_base_ms, settings.rate_limit_maximum_seconds,
            parse_networks(settings.rate_limit_exempt), self.now_ms,
        )
        self.trusted_proxies = parse_networks(settings.trusted_proxies)
        self.authenticator = Authenticator(
            settings.origin,
            ActorKeys(
                Fetcher.from_environment(timeout=ACTOR_FETCH_SECONDS), self.now, max(1, settings.threads // 2),
                self.store.erasure_count,
            ),
            self.guard, self.now,
        )
        self.admission = Admission(
            store=self.store, dialect=self.dialect, inbox_actor=settings.actor_id, hpke_key=self.hpke_key,
            authenticator=self.authenticator, extensions=choose(settings.aux_type_names()),
            directories=Directories(
                Fetcher.from_environment(timeout=ACTOR_FETCH_SECONDS), settings.url, settings.directory_urls()
            ),
            actor_domains=settings.actor_domain_names(), burndown_enabled=settings.burndown_enabled,
            time_window_seconds=settings.time_window_seconds, now=self.now,
        )
        self.totp = TotpDesk(
            store=self.store, link=self.link, authenticator=self.authenticator, hpke_key=self.hpke_key,
            time_window_seconds=settings.time_window_seconds, now=self.now,
            actor_domains=settings.actor_domain_names(),
        )
        self.cosigning = CosignDesk(
            store=self.store, link=self.link, origin=settings.origin,
            cosigners=load_cosigners(settings.cosigners),
            time_window_seconds=settings.time_window_seconds, now=self.now,
        )
        self.replies = ReplyQueue(settings.replies)
        self._parsed: Published | None = None

    def now(self) -> int:
        return int(time.time())

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def published(self) -> Published | None:
        """The newest published checkpoint, parsed once for as long as its bytes stay the same."""
        raw = self.tiles.checkpoint()
        if raw is None:
            return None
        parsed = self._parsed
        if parsed is None or parsed.raw != raw:
            try:
                parsed = Published(raw, parse_signed_checkpoint(raw)[1])
            except EncodingError as error:
                raise StoreError("BadCheckpoint", f"the published checkpoint is damaged: {error}") from None
            self._parsed = parsed
        return parsed
