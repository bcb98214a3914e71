"""The demo's people: each has a messenger that makes keys and messages, and an instance that sends them."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

from ktlog.client import Built, SigningKey, build_envelope, check_receipt, enrol, rotate, seal
from ktlog.client.terms import Terms, fetch_terms
from ktlog.demo.instance import read_token
from ktlog.demo.topology import Instance, Topology
from ktlog.operator.instance import read_answer
from ktlog.pkd.keys import encode_public_key
from ktlog.wire.fetch import Fetcher


class Person:
    """An actor, and the messenger on their phone. The secret key never leaves this object."""

    def __init__(self, fetcher: Fetcher, topology: Topology, instance: Instance, user: str) -> None:
        self._fetcher = fetcher
        self._token = read_token(topology.instance_directory(instance), user)
        self.instance = instance
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
        terms = fetch_terms(self._fetcher, self.instance.log_url)
        self._send(terms, enrol(self.actor_id, self._key, recent_root=terms.recent_root, now=int(time.time())))

    def rotate(self) -> None:
        """Publish a new key, signed by the old one, then revoke the old one. Raises as enrol."""
        new = SigningKey.generate()
        terms = fetch_terms(self._fetcher, self.instance.log_url)
        for built in rotate(self.actor_id, self._key, new, recent_root=terms.recent_root, now=int(time.time())):
            self._send(terms, built)
        self._key = new

    def _send(self, terms: Terms, built: Built) -> None:
        """Encrypt to the log, hand over to the instance, and check the log's receipt."""
        content = build_envelope(self.actor_id, seal(built, terms.encapsulation_key))
        body = json.dumps({"directory": self.instance.log_url, "content": content}).encode()
        url = f"https://{self.instance.domain}/users/{quote(self._user)}/outbox"
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        receipt = read_answer(self._fetcher.post(url, body, headers))
        check_receipt(receipt, built.preimage, built.dialect, terms.leaf_keys)
