"""The questions that are asked most, answered without the framework around the views: an actor's keys, or what the
map says of them, as they are.

Routing, request and response objects take as long as reading what is asked, proving it and signing for it with Ed25519.
What is answered here is byte for byte what the view would say. Whatever is not that simple is the view's: parameters,
refusals, errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from ktlog.keymap.bundle import encode_bundle
from ktlog.operator.mapreader import Wanted
from ktlog.operator.reader import Tree
from ktlog.web.actors import keys_members, requested_actor
from ktlog.web.answers import Wsgi
from ktlog.web.api import CONTENT_TYPE, json_body
from ktlog.web.context import Context
from ktlog.web.files import FOR_ANY_PAGE
from ktlog.web.map import BUNDLE_TYPE, UNKEPT
from ktlog.web.signing import NO_STORE, asked_algorithms
from ktlog.wire.httpsig import target_uri
from ktlog.wire.httpsig_response import BOTH, Exchange

TARGET_LIMIT = 2_048
_NOT_KEPT = ("Cache-Control", NO_STORE)


class Quick:
    """WSGI middleware in front of the application *inner*. Safe to use from many threads.

    Args:
        hosts: the Host headers that are answered.
    """

    targets: re.Pattern[str]
    """What is answered here, of the request targets."""
    content_type: str
    headers: tuple[tuple[str, str], ...]
    """Beyond the body's own and the signature's."""

    def __init__(self, inner: Wsgi, context: Context, hosts: Collection[str]) -> None:
        self._inner = inner
        self._context = context
        self._hosts = hosts

    def body(self, asked: re.Match[str]) -> bytes | None:
        """What the view would say; None for what it should say itself."""
        raise NotImplementedError

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self._answer(environ)
        if answer is None:
            return self._inner(environ, start_response)
        headers, body = answer
        start_response("200 OK", headers)
        return (body,)

    def _answer(self, environ: dict[str, Any]) -> tuple[list[tuple[str, str]], bytes] | None:
        """Headers and body; None for what the view is to answer."""
        target, host = environ.get("RAW_URI"), environ.get("HTTP_HOST")
        if environ["REQUEST_METHOD"] != "GET" or host not in self._hosts or not isinstance(target, str):
            return None
        asked = self.targets.fullmatch(target) if len(target) <= TARGET_LIMIT else None
        with_body = environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ
        if asked is None or with_body or "HTTP_CONTENT_DIGEST" in environ:
            return None
        try:
            body = self.body(asked)
            if body is None:
                return None
            # What a cache may keep is signed for everybody alike.
            signed = self._context.signer.headers(
                Exchange("GET", target_uri(host, target), 200, {"content-type": self.content_type}, body),
                asked_algorithms(environ.get("HTTP_ACCEPT_SIGNATURE")) if _NOT_KEPT in self.headers else BOTH,
            )
        except Exception:  # noqa: BLE001 - whatever it is happens to the view as well, which says what it is and logs it
            return None
        return [
            ("Content-Type", self.content_type), ("Content-Length", str(len(body))), *self.headers, *signed.items(),
        ], body


class QuickKeys(Quick):
    """An actor's keys, as they are."""

    targets = re.compile(r"/api/actor/([A-Za-z0-9._~%-]+)/keys")
    content_type = CONTENT_TYPE
    headers = (_NOT_KEPT, *FOR_ANY_PAGE)

    def body(self, asked: re.Match[str]) -> bytes | None:
        view = self._context.view
        published = view.published()
        if published is None:
            return None
        size = published.checkpoint.size
        members = keys_members(view.reader, requested_actor(asked[1]), Tree(size, size), with_history=False)
        return None if members is None else json_body("actor/get-keys", members, view)


class QuickBundles(Quick):
    """A light lookup bundle."""

    targets = re.compile(r"/map/bundle/([A-Za-z0-9._~%-]+)(\?aux=true)?")
    content_type = BUNDLE_TYPE
    headers = (("Cache-Control", UNKEPT), *FOR_ANY_PAGE)

    def body(self, asked: re.Match[str]) -> bytes | None:
        reader = self._context.map_reader()
        if reader is None:
            return None
        found = reader.bundle(requested_actor(asked[1]), Wanted(aux=asked[2] is not None), published_size=0)
        return encode_bundle(found)
