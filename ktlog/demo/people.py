"""The demo's people: each has a messenger that makes keys and messages, and an instance that sends them."""

from __future__ import annotations

import hashlib
import json
import time
from urllib.parse import quote

from ktlog.client import Built, SigningKey, build_envelope, check_receipt, enrol, rotate, seal
from ktlog.demo.instance import read_token
from ktlog.demo.topology import Instance, Topology
from ktlog.errors import Invalid
from ktlog.operator.instance import read_answer
from ktlog.pkd.keys import decode_public_key, encode_public_key
from ktlog.tlog.encoding import decode_base64url
from ktlog.wire.fetch import Fetcher


class Person:
    """An actor, and the messenger on their phone. The secret key never leaves this object."""

    def __init__(self, fetcher: Fetcher, topology: Topology, instance: Instance, user: str) -> None:
        self._fetcher = fetcher
        self._token = read_token(topology.instance_directory(instance), user)
        self._instance = instance
        self._user = user
        self._key = SigningKey.generate()
        self.actor_id = instance.actor_id(user)
        self.handle = instance.handle(user)

    @property
    def public_key_text(self) -> str:
        return encode_public_key(self._key.public_key)

    def enrol(self) -> None:
        """Publish the first key.

        Raises:
            MessageRejected, Unreachable: the instance or the log did not take it.
            Invalid: the log's receipt does not hold.
        """
        self._send(enrol(self.actor_id, self._key, recent_root=self._recent_root(), now=int(time.time())))

    def rotate(self) -> None:
        """Publish a new key, signed by the old one, then revoke the old one. Raises as enrol."""
        new = SigningKey.generate()
        add, revoke = rotate(
            self.actor_id, self._key, new, recent_root=self._recent_root(), now=int(time.time())
        )
        self._send(add)
        self._send(revoke)
        self._key = new

    def _send(self, built: Built) -> None:
        """Encrypt to the log, hand over to the instance, and check the log's receipt."""
        server_key = self._json("/api/server-public-key")["hpke-public-key"]
        content = build_envelope(self.actor_id, seal(built, decode_base64url(server_key)))
        body = json.dumps({"directory": self._instance.log_url, "content": content}).encode()
        url = f"https://{self._instance.domain}/users/{quote(self._user)}/outbox"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        receipt = read_answer(self._fetcher.post(url, body, headers))
        keys = [decode_public_key(text) for text in self._json("/leaf-keys")["leaf-keys"]]
        check_receipt(receipt, built.preimage, built.dialect, {hashlib.sha256(key).digest(): key for key in keys})

    def _recent_root(self) -> str:
        return self._json("/api/history")["merkle-root"]

    def _json(self, path: str) -> dict:
        found = self._fetcher.fetch_json(self._instance.log_url + path)
        if not isinstance(found, dict):
            raise Invalid("BadAnswer", f"{self._instance.log_url}{path} is no JSON object")
        return found
