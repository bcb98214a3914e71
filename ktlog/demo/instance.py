"""The demo's ActivityPub instance: WebFinger, actor documents with their keys, and inboxes.

It publishes the HTTP signing keys of its actors, which is all that a log and its clients need of an instance, and
it is an instance client: what an actor posts to its outbox, it signs for the actor and delivers to a log. What a log
answers comes back as a direct message, which counts when the log's actor signed it.

    python -m ktlog.demo.instance --dir D --listen 127.0.0.1:8003
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask, Response, abort, request

from ktlog.client import load_http_key
from ktlog.durable import file_errors, read_secret, write_atomic, write_secret
from ktlog.errors import EncodingError, KtlogError, MessageRejected, Unreachable, UsageError
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.instance import ERROR_CONTEXT, deliver
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.wire.actor import ED25519, actor_key
from ktlog.wire.actor_id import parse_host
from ktlog.wire.environ import header_lines, raw_target
from ktlog.wire.fetch import Fetcher
from ktlog.wire.httpd import serve
from ktlog.wire.httpsig import target_uri, verify_request
from ktlog.wire.media import parse_foreign_json
from ktlog.wire.webfinger import ACTIVITY_JSON, ACTIVITYSTREAMS, JRD_TYPES, is_activity_type

SETTINGS_FILE = "instance.json"
KEYS_DIRECTORY = "keys"
TOKENS_DIRECTORY = "tokens"
MESSAGES_DIRECTORY = "messages"
MAX_INBOX_BYTES = 1 << 20
TOKEN_BYTES = 32
LOG_SECONDS = 30.0

_USER = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True)
class InstanceSettings:
    """A domain and its users. users: name to raw Ed25519 public key (32 bytes)."""

    domain: str
    users: dict[str, bytes]

    def actor_id(self, user: str) -> str:
        return f"https://{self.domain}/users/{user}"


def http_key_id(actor_id: str) -> str:
    """The id under which the instance lists an actor's HTTP signing key."""
    return f"{actor_id}#main-key"


def prepare_instance(directory: Path, domain: str, usernames: Sequence[str]) -> dict[str, Path]:
    """Make an instance in *directory*, with one new Ed25519 HTTP signing key for each user.

    Returns:
        User name to key file: the 32-byte seed in hex, mode 0600 (ktlog.client.keyfile.load_http_key reads it).

    Raises:
        UsageError: ``BadUser``. EncodingError: ``BadHost``. StoreError: ``SecretExists``, or it cannot be written.
    """
    parse_host(domain)
    if not all(_USER.fullmatch(user) for user in usernames):
        raise UsageError("BadUser", "a user name is 1 to 64 of a-z, 0-9 and _")
    keys = directory / KEYS_DIRECTORY
    tokens = directory / TOKENS_DIRECTORY
    with file_errors(keys):
        keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        tokens.mkdir(mode=0o700, exist_ok=True)
    paths: dict[str, Path] = {}
    public: dict[str, str] = {}
    for user in usernames:
        private = Ed25519PrivateKey.generate()
        paths[user] = keys / f"{user}.key"
        write_secret(paths[user], private.private_bytes_raw().hex().encode("ascii") + b"\n")
        write_secret(tokens / user, os.urandom(TOKEN_BYTES))
        public[user] = encode_base64(private.public_key().public_bytes_raw())
    write_atomic(directory / SETTINGS_FILE, canonical({"domain": domain, "users": public}))
    return paths


def read_token(directory: Path, user: str) -> str:
    """What *user*'s messenger shows the outbox: the instance's log-in, as short as it can be.

    Raises:
        StoreError: as ktlog.durable.read_secret.
    """
    return read_secret(directory / TOKENS_DIRECTORY / user, TOKEN_BYTES).hex()


def load_instance(directory: Path) -> InstanceSettings:
    """What prepare_instance wrote. Raises StoreError: unreadable; UsageError: ``BadInstance``."""
    path = directory / SETTINGS_FILE
    with file_errors(path):
        data = path.read_bytes()
    try:
        settings = parse_json(data)
        users = {user: decode_base64(key, 32) for user, key in settings["users"].items()}
        return InstanceSettings(parse_host(settings["domain"]), users)
    except (EncodingError, KeyError, TypeError, AttributeError):
        raise UsageError("BadInstance", f"{path} was not written by prepare_instance") from None


def actor_document(settings: InstanceSettings, user: str) -> dict[str, Any]:
    """The actor document of *user*, with its key as a Multikey. Spec: ActivityPub §4.1; FEP-521a."""
    actor_id = settings.actor_id(user)
    return {
        "@context": [ACTIVITYSTREAMS, "https://w3id.org/security/multikey/v1"],
        "id": actor_id,
        "type": "Person",
        "preferredUsername": user,
        "inbox": f"{actor_id}/inbox",
        "outbox": f"{actor_id}/outbox",
        "assertionMethod": [actor_key(http_key_id(actor_id), actor_id, ED25519, settings.users[user])],
    }


def webfinger_document(settings: InstanceSettings, resource: str) -> dict[str, Any] | None:
    """The answer for ``acct:user@domain`` of this instance; None for everybody else."""
    for user in settings.users:
        if resource in (f"acct:{user}@{settings.domain}", settings.actor_id(user)):
            link = {"rel": "self", "type": ACTIVITY_JSON, "href": settings.actor_id(user)}
            return {"subject": f"acct:{user}@{settings.domain}", "links": [link]}
    return None


def create_app(settings: InstanceSettings, directory: Path) -> Flask:
    """The instance in *directory* as a WSGI application."""
    app = Flask("ktlog-instance", static_folder=None)
    fetcher = Fetcher.from_environment(timeout=LOG_SECONDS)
    keys = ActorKeys(fetcher, lambda: int(time.time()))
    app.config["MAX_CONTENT_LENGTH"] = MAX_INBOX_BYTES

    @app.get("/.well-known/webfinger")
    def webfinger() -> Response:
        document = webfinger_document(settings, request.args.get("resource", ""))
        if document is None:
            abort(404)
        answer = Response(json.dumps(document), content_type=JRD_TYPES[0])
        answer.headers["Access-Control-Allow-Origin"] = "*"
        return answer

    @app.get("/users/<user>")
    def actor(user: str) -> Response:
        if user not in settings.users:
            abort(404)
        return Response(json.dumps(actor_document(settings, user)), content_type=ACTIVITY_JSON)

    @app.post("/users/<user>/inbox")
    def inbox(user: str) -> Response:
        if user not in settings.users:
            abort(404)
        if not is_activity_type(request.headers.get("Content-Type", "")):
            abort(415)
        body = request.get_data(cache=False)
        try:
            activity = parse_foreign_json(body)
        except EncodingError:
            abort(400)
        if not is_direct_message(activity, settings.actor_id(user)):
            abort(400)
        try:
            url = target_uri(settings.domain, raw_target(request.environ))
            verify_request(
                "POST", url, header_lines(request.environ), body,
                lambda key_id: keys.find(key_id, activity["actor"]), int(time.time()),
            )
        except MessageRejected:
            abort(401)
        _keep(directory, user, activity)
        return Response(status=202)

    @app.post("/users/<user>/outbox")
    def outbox(user: str) -> Response:
        """Deliver a protocol message for a user who is logged in; the log's receipt, or its refusal, comes back."""
        if user not in settings.users or not _is_logged_in(request.headers.get("Authorization", ""), directory, user):
            abort(401)
        try:
            posted = parse_json(request.get_data(cache=False))
            receipt = _deliver(fetcher, settings.actor_id(user), directory, user, posted)
        except MessageRejected as refusal:
            return _answer(400, {"!pkd-context": ERROR_CONTEXT, "code": refusal.code, "message": refusal.message})
        except Unreachable as error:
            return _answer(502, {"!pkd-context": ERROR_CONTEXT, "code": "log_unreachable", "message": str(error)})
        except (EncodingError, KeyError, TypeError, AttributeError):
            abort(400)
        return _answer(202, receipt)

    return app


def _keep(directory: Path, user: str, activity: dict[str, Any]) -> None:
    """Put a direct message where read_messages finds it."""
    path = directory / MESSAGES_DIRECTORY / f"{user}.jsonl"
    line = json.dumps(activity).encode("ascii") + b"\n"
    with file_errors(path):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with open(path, "ab") as file:
            file.write(line)


def read_messages(directory: Path, user: str) -> list[dict[str, Any]]:
    """The direct messages that *user* got so far, in their order, each as the activity that came.

    Raises:
        StoreError: they cannot be read.
    """
    path = directory / MESSAGES_DIRECTORY / f"{user}.jsonl"
    with file_errors(path):
        text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def _is_logged_in(authorization: str, directory: Path, user: str) -> bool:
    # As bytes: compare_digest takes no text beyond ASCII, and a header may hold some.
    expected = f"Bearer {read_token(directory, user)}"
    return hmac.compare_digest(authorization.encode("utf-8"), expected.encode("utf-8"))


def _deliver(fetcher: Fetcher, actor_id: str, directory: Path, user: str, posted: Any) -> dict[str, Any]:
    if not isinstance(posted["directory"], str) or not isinstance(posted["content"], str):
        raise EncodingError("BadPost", "directory and content are strings")
    key = load_http_key(directory / KEYS_DIRECTORY / f"{user}.key")
    return deliver(
        fetcher, posted["directory"], actor_id, key, http_key_id(actor_id), posted["content"], int(time.time()),
        os.urandom,
    )


def _answer(status: int, members: dict[str, Any]) -> Response:
    return Response(json.dumps(members), status, content_type="application/json")


def is_direct_message(activity: Any, actor_id: str) -> bool:
    """Whether *activity* is an actor's Create of a Note of their own with text, addressed to *actor_id*."""
    if not isinstance(activity, dict) or activity.get("type") != "Create":
        return False
    if not isinstance(activity.get("actor"), str):
        return False
    note = activity.get("object")
    if not isinstance(note, dict) or note.get("type") != "Note" or not isinstance(note.get("content"), str):
        return False
    if note.get("attributedTo") != activity["actor"]:
        return False
    to = note.get("to")
    return actor_id in (to if isinstance(to, list) else [to])


def main(arguments: list[str] | None = None) -> int:
    """Run an instance until SIGTERM or SIGINT. The exit code is the error's."""
    parser = argparse.ArgumentParser(prog="ktlog.demo.instance", description="The demo's ActivityPub instance.")
    parser.add_argument("--dir", required=True, type=Path, help="what prepare_instance made")
    parser.add_argument("--listen", required=True, help="ADDRESS:PORT or fd://N")
    options = parser.parse_args(arguments)
    try:
        settings = load_instance(options.dir)
        serve(lambda: create_app(settings, options.dir), options.listen, threads=4, name=f"instance {settings.domain}")
    except KtlogError as error:
        print(f"ktlog instance: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
