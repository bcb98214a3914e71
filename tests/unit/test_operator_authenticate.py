"""Who signed a request: a key that the actor lists, once, by a server that has not to wait."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.errors import MessageRejected, RateLimited
from ktlog.operator.actor_keys import REFRESH_SECONDS, ActorKeys
from ktlog.operator.authenticate import Authenticator, signature_digest
from ktlog.operator.guard import Guard, parse_networks
from ktlog.operator.request import Request, Source
from ktlog.wire.actor import ED25519, ML_DSA_44, actor_key
from ktlog.wire.fetch import Response
from ktlog.wire.httpsig import MAX_SKEW_SECONDS, sign_request

NOW = 1_790_000_000
ORIGIN = "keys.alpha.example"
INBOX = f"https://{ORIGIN}/users/pubkeydir/inbox"
ALICE = "https://alpha.example/users/alice"
MALLORY = "https://evil.example/users/mallory"
IP = "192.0.2.7"
ED = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PQ = MLDSA44PrivateKey.from_seed_bytes(bytes(range(32)))


class World:
    """A log's authenticator, and instances whose documents list one key of each algorithm for any actor."""

    def __init__(self, directory):
        self.now = NOW
        self.ed = ED
        self.fetched = []
        self.guard = Guard(directory / "guard.db", 100, 3600, (), lambda: self.now * 1000)
        self.authenticator = Authenticator(ORIGIN, ActorKeys(self, lambda: self.now), self.guard, lambda: self.now)

    def get(self, url, *, accept, max_bytes):
        self.fetched.append(url)
        keys = [
            actor_key(f"{url}#main-key", url, ED25519, self.ed.public_key().public_bytes_raw()),
            actor_key(f"{url}#pq-key", url, ML_DSA_44, PQ.public_key().public_bytes_raw()),
        ]
        body = json.dumps({"id": url, "inbox": f"{url}/inbox", "assertionMethod": keys}).encode()
        return Response(200, {"content-type": "application/activity+json"}, body, url)

    def request(self, actor=ALICE, keys=("ed",), body=b"{}", url=INBOX, created=None, target=INBOX):
        """A request signed with each of *keys*, as labels sig1 and sig2."""
        inputs, signatures, headers = [], [], {}
        for number, name in enumerate(keys, 1):
            key, fragment = (self.ed, "main-key") if name == "ed" else (PQ, "pq-key")
            headers = sign_request("POST", url, {}, body, f"{actor}#{fragment}", key, created or self.now)
            inputs.append(headers["Signature-Input"].replace("sig1=", f"sig{number}=", 1))
            signatures.append(headers["Signature"].replace("sig1=", f"sig{number}=", 1))
        headers |= {"Signature-Input": ", ".join(inputs), "Signature": ", ".join(signatures)}
        return Request("POST", target, list(headers.items()), body, Source(IP))

    def code(self, request, actor=ALICE):
        with pytest.raises(MessageRejected) as caught:
            self.authenticator.authenticate(request, actor)
        return caught.value.code


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.guard.close()


def with_header(request, name, change):
    lines = [(key, change(value) if key.lower() == name else value) for key, value in request.headers]
    return Request(request.method, request.target_url, lines, request.body, Source(IP))


@pytest.mark.parametrize("keys", [("ed",), ("pq",), ("ed", "pq")])
def test_a_signed_request_has_a_known_server(world, keys):
    request = world.request(keys=keys)
    assert request.source.domain is None
    verified = world.authenticator.authenticate(request, ALICE)
    assert set(verified.algorithms) == {ED25519 if key == "ed" else ML_DSA_44 for key in keys}
    assert request.source == Source(IP, "alpha.example")


def test_a_refused_request_has_none(world):
    request = with_header(world.request(), "signature", lambda value: value.replace(value[8:10], "AB"))
    assert world.code(request) == "unauthorized" and request.source.domain is None


def test_replays_are_refused_whatever_their_spelling(world):
    request = world.request()
    world.authenticator.authenticate(request, ALICE)
    again = with_header(request, "host", str)
    assert world.code(again) == "replayed_request" and again.source.domain is None
    renamed = with_header(request, "signature", lambda value: value.replace("sig1", "other"))
    renamed = with_header(renamed, "signature-input", lambda value: value.replace("sig1", "other"))
    assert world.code(renamed) == "replayed_request"
    longer = Request("POST", INBOX, [*request.headers, ("X-Other", "1")], request.body, Source(IP))
    assert world.code(longer) == "replayed_request"


@pytest.mark.parametrize("kept", [0, 1])
def test_one_of_two_signatures_alone_is_a_replay(world, kept):
    request = world.request(keys=("ed", "pq"))
    world.authenticator.authenticate(request, ALICE)
    def alone(value):
        return value.split(", sig2=")[0] if kept == 0 else "sig2=" + value.split(", sig2=")[1]
    stripped = with_header(with_header(request, "signature", alone), "signature-input", alone)
    assert world.code(stripped) == "replayed_request"


def test_a_replay_is_refused_for_as_long_as_its_signature_is_fresh(world):
    request = world.request(created=NOW + MAX_SKEW_SECONDS)
    world.authenticator.authenticate(request, ALICE)
    world.now += 2 * MAX_SKEW_SECONDS
    assert world.code(request) == "replayed_request"
    world.now += 1
    assert world.code(request) == "unauthorized"


def test_the_same_message_signed_anew_is_no_replay(world):
    world.authenticator.authenticate(world.request(), ALICE)
    world.now += 1
    world.authenticator.authenticate(world.request(), ALICE)


def test_a_request_that_failed_is_not_remembered(world):
    """Or a stranger could spoil a request on its way by sending a bent copy first."""
    request = world.request()
    bent = Request("POST", INBOX, request.headers, b"other", Source(IP))
    assert world.code(bent) == "unauthorized"
    world.authenticator.authenticate(request, ALICE)


def test_keys_of_others_count_for_nothing(world):
    assert world.code(world.request(actor=MALLORY)) == "unknown_http_key"
    assert world.fetched == [], "nothing is fetched for a key that cannot be the actor's"


def test_the_log_itself_sends_it_nothing(world):
    """A request that seems to come from this log would have it fetch from itself, thread after thread."""
    own = f"https://{ORIGIN}/users/pubkeydir"
    assert world.code(world.request(actor=own), own) == "unknown_http_key"
    assert world.fetched == []
    assert world.code(world.request(), "https://127.0.0.1/users/alice") == "bad_actor_id"


def test_another_url_or_method_or_body(world):
    assert world.code(world.request(url=INBOX + "?x")) == "unauthorized"
    assert world.code(world.request(target=INBOX + "/")) == "unauthorized"
    request = world.request()
    assert world.code(Request("PUT", INBOX, request.headers, request.body, Source(IP))) == "unauthorized"


def test_a_new_key_is_looked_for_once(world):
    world.authenticator.authenticate(world.request(), ALICE)
    world.ed = Ed25519PrivateKey.from_private_bytes(bytes(32))
    assert world.code(world.request()) == "unauthorized"
    world.now += REFRESH_SECONDS
    world.authenticator.authenticate(world.request(), ALICE)
    assert world.fetched == [ALICE, ALICE]


def test_a_server_that_must_wait_is_refused_once_it_is_known(world):
    world.guard.penalize(Source("198.51.100.1", "alpha.example"), 6)
    request = world.request()
    with pytest.raises(RateLimited):
        world.authenticator.authenticate(request, ALICE)
    assert request.source.domain == "alpha.example"


def test_digests_tell_keys_and_signatures_apart():
    digests = [signature_digest(*pair) for pair in (("ab", b"c"), ("a", b"bc"), ("ab", b"d"), ("abc", b""))]
    assert len(set(digests)) == 4 and all(len(digest) == 32 for digest in digests)


@pytest.mark.parametrize(("exempt", "lookups"), [((), 1), (parse_networks("192.0.2.0/24 198.51.100.0/24 2001:db8::/32"), 0)])
def test_the_address_that_asks_is_known_to_the_look_up(world, exempt, lookups):
    """That it waits, and that it has one at a time. Whoever the operator exempts from limits has none here either."""
    world.guard._exempt = exempt
    request = world.request()
    world.authenticator.authenticate(request, ALICE)
    assert request.source.lookups == lookups
