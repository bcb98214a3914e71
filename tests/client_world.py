"""A client, its state, and the network it believes nothing of: what the lookup tests share."""

from __future__ import annotations

from functools import cache

import pytest
from client_log import DOMAIN, NOW, ORIGIN, Network, TinyLog, actor, key, make_policy

from ktlog.client import Directory
from ktlog.client.build import add_key, enrol, revoke_key
from ktlog.errors import KtlogError
from ktlog.pkd import attributes

remembering_argon2id = cache(attributes.argon2id)
"""The real function, once for each input: the tests look the same few messages up again and again."""

HEADS = (f"heads/{ORIGIN}.json",)
ABOUT_HEADS = frozenset({
    "MalformedCheckpoint", "WrongLog", "BadLogSignature", "BadCosignature", "TooFewWitnesses", "OldCosignatures",
    "RolledBack", "TwoRoots", "Inconsistent", "BadConsistencyProof", "Convicted", "Timeout", "UnknownDomain",
    "UnknownLog", "BadState", "HeadOfAnotherKey",
})
"""After these the head shown was not checked to the end, and must not be remembered."""

ALICE, BOB, ROOT = actor("alice"), actor("bob"), actor("root")


def say(log: TinyLog, build, *arguments):
    return log.accept(build(*arguments, recent_root=log.recent(), now=NOW + log.size))


@cache
def story() -> TinyLog:
    """Bob enrols; Alice enrols, adds two keys and revokes the first; Root enrols."""
    log = TinyLog()
    say(log, enrol, BOB, key(10))
    say(log, enrol, ALICE, key(1))
    say(log, add_key, ALICE, key(2).public_key, key(1))
    say(log, add_key, ALICE, key(3).public_key, key(2))
    say(log, revoke_key, ALICE, key(1).public_key, key(3))
    say(log, enrol, ROOT, key(20))
    return log.publish()


class World:
    """A log, the network to it, and one client with its state."""

    def __init__(self, tmp_path, log: TinyLog | None = None) -> None:
        self.log = (log or story()).fork()
        self.network = Network(self.log)
        self.network.handles[f"alice@{DOMAIN}"] = ALICE
        self.state = tmp_path / "state"
        self.now = NOW
        self.policy = make_policy([self.log])

    def directory(self, **options) -> Directory:
        settings = {"state": self.state, "domains": {DOMAIN: ORIGIN}, "fetcher": self.network, "now": lambda: self.now}
        return Directory(options.pop("policy", self.policy), **(settings | options))

    def lookup(self, name: str = ALICE, **options):
        return self.directory(**options).lookup(name)

    def refuses(self, kind: type[KtlogError], name: str, who: str = ALICE, **options) -> KtlogError:
        """The lookup fails under this class and name, and no actor, no handle and no bad head is remembered."""
        before = self.remembered()
        with pytest.raises(kind) as caught:
            self.lookup(who, **options)
        assert (type(caught.value), caught.value.name) == (kind, name), str(caught.value)
        after = self.remembered()
        assert {path: data for path, data in after.items() if not path.startswith(("heads/", "convicted/"))} == {
            path: data for path, data in before.items() if not path.startswith(("heads/", "convicted/"))
        }
        if name in ABOUT_HEADS:
            assert [after.get(path) for path in HEADS] == [before.get(path) for path in HEADS]
        assert caught.value.diagnostics()
        return caught.value

    def remembered(self) -> dict[str, bytes]:
        files = self.state.rglob("*.json") if self.state.exists() else []
        return {str(path.relative_to(self.state)): path.read_bytes() for path in files}

    def serve(self, log: TinyLog) -> None:
        self.log = log
        self.network.logs[log.origin] = log


