"""A real log with something of everything that the explorer shows, for tests in a browser; ``python -m`` keeps it up."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.client import (
    Built,
    SigningKey,
    add_aux_data,
    add_key,
    build_envelope,
    enrol,
    fireproof,
    revoke_by_token,
    revoke_key,
    seal,
)
from ktlog.client.build import checkpoint_message
from ktlog.operator.directories import INFO_CONTEXT
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key
from ktlog.wire.actor import ED25519, ML_DSA_44, actor_key
from tests.running_log import EVIL, ORIGIN, RunningLog, actor, running_log
from tests.tls_server import answer

RENEWED, FIREPROOF, RESET = (actor(user) for user in ("a01", "a02", "a03"))
"""Has another key than at first, and auxiliary data; is Fireproof; began anew after a token."""
PEER = f"https://{EVIL}"
"""Also a directory, which commits its root to the log."""
SETTINGS = {"verifier": True, "directories": PEER}
"""Of the log that it happens to."""
DIFFERENT = f"{PEER}/users/eve"
"""Publishes a key and key packages of which the log has not heard."""
SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"


def live_through(log: RunningLog) -> None:
    """Eleven messages, published at the end."""
    now, second = int(time.time()), SigningKey.generate()

    def send(user: str, built: Built, key: Ed25519PrivateKey | None = None, who: str | None = None) -> None:
        message = log.activity(build_envelope(who or actor(user), seal(built, log.hpke())), user)
        if who is not None:
            message["actor"] = message["object"]["attributedTo"] = who
        options = {} if who is None else {"key": key, "key_id": f"{who}#main-key"}
        got = log.post(json.dumps(message).encode(), user, **options)
        assert got.status == 202, got.body

    def about() -> dict[str, object]:
        return {"recent_root": log.root(), "now": now}

    for user in ("a01", "a02", "a03"):
        send(user, log.build_enrolment(user))
    send("a01", add_key(RENEWED, second.public_key, log.keys["a01"], **about()))
    send("a01", revoke_key(RENEWED, log.keys["a01"].public_key, second, **about()))
    send("a01", add_aux_data(RENEWED, "ssh-v2", SSH, second, **about()))
    send("a02", fireproof(FIREPROOF, log.keys["a02"], **about()))
    send("a03", revoke_by_token(log.keys["a03"].revocation_token()))
    send("a03", enrol(RESET, SigningKey.generate(), **about()))
    http_key, eves = Ed25519PrivateKey.generate(), SigningKey.generate()
    log.evil_documents["/users/eve"] = {
        "id": DIFFERENT, "type": "Person", "inbox": f"{DIFFERENT}/inbox", "keyPackages": f"{DIFFERENT}/keyPackages",
        "assertionMethod": [
            actor_key(f"{DIFFERENT}#main-key", DIFFERENT, ED25519, http_key.public_key().public_bytes_raw()),
            actor_key(f"{DIFFERENT}#mine", DIFFERENT, ML_DSA_44, eves.public_key),
            actor_key(f"{DIFFERENT}#other", DIFFERENT, ML_DSA_44, SigningKey.generate().public_key),
        ],
    }
    log.evil_documents["/users/eve/keyPackages"] = {
        "id": f"{DIFFERENT}/keyPackages", "type": "Collection",
        "items": [{"id": f"{DIFFERENT}/kp/1", "type": "KeyPackage", "content": "AAEAAg=="}],
    }
    send("a01", enrol(DIFFERENT, eves, **about()), http_key, DIFFERENT)
    directory = SigningKey.generate()
    info = {"!pkd-context": INFO_CONTEXT, "public-key": encode_public_key(directory.public_key)}
    log.evil_documents["/api/info"] = answer(json.dumps(info).encode(), content_type="application/json")
    told = checkpoint_message(PEER, ZERO_ROOT, f"https://{ORIGIN}", log.root(), directory, **about())
    send("a01", told, http_key, DIFFERENT)
    log.wait_published(11)
    log.wait("the map", lambda: log.get("/witnesses?format=json").json()["verdict"]["state"] == "ok")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # through the ends of both below, which end the log's processes
    with tempfile.TemporaryDirectory() as directory, running_log(Path(directory) / "w", **SETTINGS) as log:
        live_through(log)
        print(f"https://{ORIGIN}/ at 127.0.0.1:{log.port}", flush=True)
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
