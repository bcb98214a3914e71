"""Enrolling, rotating and removing an instance's TOTP secret.

An instance has one secret, whoever of its actors brought it: the log cannot know who runs an instance. A
request needs three things at once: an HTTP signature by the actor's server, an ML-DSA-44 signature by a key
that the actor has in this log, and one-time passwords. None of it becomes a log entry.

Where the specification contradicts itself or is silent:

* Removing a secret where there is none "MUST fail" in one place and succeeds in another. It fails.
* Passwords that came with a new secret are used up, and so is everything older than now.
* A secret may be encrypted as its 32 bytes or as their base32.

Spec: PKD "TOTP", "POST api/totp/...".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.operator.authenticate import Authenticator
from ktlog.operator.hpkekeys import HpkeKeys, open_hpke
from ktlog.operator.request import Request
from ktlog.operator.rules import Anybody, RulesReader
from ktlog.pkd.hpke import DecapsulationKey
from ktlog.pkd.identity import actor_domain
from ktlog.pkd.keys import verify_mldsa44
from ktlog.pkd.messages import check_time
from ktlog.pkd.rejections import reject
from ktlog.pkd.totp import decode_secret, verify_new_codes, verify_totp
from ktlog.pkd.totp_requests import Operation, TotpRequest, parse_totp_request
from ktlog.store.contracts import LogStore


class TotpLink(Protocol):
    """What is needed of the link to the sequencer."""

    def totp_set(self, domain: str, secret: bytes | None, window: int, expected_serial: int | None) -> None: ...


class TotpDesk:
    """Takes the three requests. Safe to use from many threads.

    Args:
        hpke_key: the log's, that protocol messages are encrypted to.
        time_window_seconds: how far ``current-time`` may be from *now*.
        actor_domains: the domains that this log serves; none means every domain.
        rules: whom of them the operator takes.
    """

    def __init__(
        self, *, store: LogStore, link: TotpLink, authenticator: Authenticator, hpke_key: HpkeKeys | DecapsulationKey,
        time_window_seconds: int, now: Callable[[], int], actor_domains: frozenset[str] = frozenset(),
        rules: RulesReader | None = None,
    ) -> None:
        self._store = store
        self._link = link
        self._authenticator = authenticator
        self._hpke_key = hpke_key
        self._time_window_seconds = time_window_seconds
        self._now = now
        self._actor_domains = actor_domains
        self._rules = Anybody() if rules is None else rules

    def enroll(self, request: Request) -> None:
        """Store the instance's first secret.

        Raises:
            MessageRejected: ``totp_exists``, ``bad_totp_secret``, ``bad_new_otp``, and what concerns the
                request and its signatures.
        """
        asked, domain = self._authenticated(Operation.ENROLL, request)
        if self._store.totp(domain) is not None:
            raise MessageRejected("totp_exists", f"{domain} has a TOTP secret already; rotate it")
        secret, window = self._new_secret(asked, "totp-secret", "otp-current", "otp-previous")
        self._link.totp_set(domain, secret, window, None)

    def rotate(self, request: Request) -> None:
        """Replace the instance's secret.

        Raises:
            MessageRejected: ``totp_not_enrolled``, ``bad_otp``, ``otp_reused``, ``bad_totp_secret``,
                ``bad_new_otp``, and what concerns the request and its signatures.
        """
        asked, domain = self._authenticated(Operation.ROTATE, request)
        stored = self._store.totp(domain)
        if stored is None:
            raise MessageRejected("totp_not_enrolled", f"{domain} has no TOTP secret; enroll one")
        # The old password first: without it nobody learns anything about a new secret.
        verify_totp(stored.secret, asked.fields["old-otp"], self._now(), stored.last_window)
        secret, window = self._new_secret(asked, "new-totp-secret", "new-otp-current", "new-otp-previous")
        self._link.totp_set(domain, secret, window, stored.serial)

    def disenroll(self, request: Request) -> None:
        """Forget the instance's secret: from now on its BurnDowns need no password.

        Raises:
            MessageRejected: ``totp_absent``, ``bad_otp``, ``otp_reused``, and what concerns the request and
                its signatures.
        """
        asked, domain = self._authenticated(Operation.DISENROLL, request)
        stored = self._store.totp(domain)
        if stored is None:
            raise MessageRejected("totp_absent", f"{domain} has no TOTP secret that could be removed")
        window = verify_totp(stored.secret, asked.fields["otp"], self._now(), stored.last_window)
        self._link.totp_set(domain, None, window, stored.serial)

    def _authenticated(self, operation: Operation, request: Request) -> tuple[TotpRequest, str]:
        """The request, and the domain that it may speak for: that of the actor who signed it twice."""
        asked = parse_totp_request(operation, request.body)
        domain = actor_domain(asked.actor_id)
        self._rules.rules().check(domain)
        if self._actor_domains and domain not in self._actor_domains:
            raise MessageRejected("domain_not_served", f"this log does not serve {domain}")
        check_time(asked.time, self._now(), self._time_window_seconds)
        self._authenticator.authenticate(request, asked.actor_id)
        self._check_signature(asked)
        return asked, domain

    def _check_signature(self, asked: TotpRequest) -> None:
        actor = self._store.actor(asked.actor_id)
        if actor is None or not actor.keys:
            raise reject("actor_not_enrolled")
        key = next((key for key in actor.keys if key.key_id == asked.key_id), None)
        if key is None:
            raise reject("unknown_key_id")
        try:
            verify_mldsa44(key.public_key, asked.signature, asked.signed_bytes)
        except Invalid:
            raise reject("bad_signature") from None

    def _new_secret(self, asked: TotpRequest, secret: str, current: str, previous: str) -> tuple[bytes, int]:
        """The secret that a request brings, and the window up to which its passwords are used up."""
        try:
            opened = decode_secret(open_hpke(self._hpke_key, asked.fields[secret]))
        except (EncodingError, Invalid):
            raise reject("bad_totp_secret") from None
        return opened, verify_new_codes(opened, asked.fields[current], asked.fields[previous], self._now())
