"""A log's application over a real store, and what would be the network around it. No sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ktlog.config import Settings
from ktlog.errors import Unreachable
from ktlog.operator.create import create_log
from ktlog.operator.keys import load_leaf_key
from ktlog.operator.leaves import local_signer
from ktlog.operator.link import Receipt, Submission
from ktlog.operator.request import Request
from ktlog.operator.sequencer import Sequencer
from ktlog.pkd.messages import AddKey, Message
from ktlog.store.sqlite import SqliteStore
from ktlog.web.app import create_app
from ktlog.web.context import Context
from ktlog.wire.fetch import Response
from tests.admission_world import Inbox, Instances, Peers
from tests.operator_world import NOW, ORIGIN, Desk
from tests.pkd_samples import ALICE, BOB, public


def make_settings(directory: Path, **values: Any) -> Settings:
    """The settings of a new log in *directory*."""
    return Settings(create_log(directory, ORIGIN, "spec", bytes(32)).directory, ORIGIN, "spec", **values)


class OwnKeyDesk(Desk):
    """A sequencer with the leaf key that the log publishes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        super().__init__(SqliteStore.open(settings.database, origin=ORIGIN))

    def restart(self) -> None:
        self.sequencer = Sequencer(
            store=self.store, origin=ORIGIN, dialect=self.dialect,
            sign_entries=local_signer(self.dialect, load_leaf_key(self.settings.keys)),
            now=self.clock, random=lambda size: b"\x07" * size,
        )


class Link:
    """The sequencer, without a socket between."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def append(self, submission: Submission) -> Receipt:
        (result,) = self.desk.batch(submission)
        if not isinstance(result, Receipt):
            raise result
        return result


class Internet(Instances, Peers):
    """What every fetcher reaches: the instances, another directory, and the log itself once it is up."""

    def __init__(self) -> None:
        Instances.__init__(self)
        self.infos = Peers().infos
        self.site: Site | None = None

    def get(self, url: str, **options: Any) -> Response:
        if self.site is None or urlsplit(url).hostname != ORIGIN:
            return Instances.get(self, url, **options)
        return self.site.exchange("GET", url, {}, b"")

    def post(self, url: str, body: bytes, headers: dict[str, str] | None = None, **_: Any) -> Response:
        if self.site is None or urlsplit(url).hostname != ORIGIN:
            raise Unreachable("Refused", f"nothing answers at {url}")
        return self.site.exchange("POST", url, headers or {}, body)


class Site:
    """A log's application, where Alice has the key a and Bob c.

    What an instance sends is made by ``inbox``, which looks at the same store.
    """

    def __init__(self, settings: Settings, internet: Internet) -> None:
        self.desk = OwnKeyDesk(settings)
        self.app = create_app(settings)
        self.context: Context = self.app.extensions["ktlog"]
        self.context.link = Link(self.desk)
        internet.site = self
        self.inbox = Inbox()
        self.inbox.desk = self.desk
        for actor, name in ((ALICE, "a"), (BOB, "c")):
            self.desk.send(AddKey(actor, public(name), NOW), name)

    def close(self) -> None:
        self.context.guard.close()
        self.context.store.close()
        self.desk.store.close()

    def exchange(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Response:
        target = url.removeprefix(f"https://{ORIGIN}")
        answer = self._open(method, target, list(headers.items()), body, "192.0.2.1")
        return Response(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.data, url)

    def _open(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes, address: str):
        return self.app.test_client().open(
            target, method=method, data=body, headers=[("Host", ORIGIN), *headers],
            environ_overrides={"REMOTE_ADDR": address, "RAW_URI": target},
        )

    def post(self, request: Request, address: str = "192.0.2.1"):
        target = request.target_url.removeprefix(f"https://{ORIGIN}")
        return self._open("POST", target, list(request.headers), request.body, address)

    def burn(self, message: Message, signer: str = "c", operator: str = BOB, **options: Any):
        return self.post(self.inbox.burn_request(self.inbox.wire(message, signer, **options), operator))

    def revoke(self, body: Any, **options: Any):
        return self.post(self.inbox.revoke_request(body), **options)
