"""Every parser that reads what others wrote, with something good for it to read.

The table of tests/property/test_fuzz_parsers.py. A parser takes bytes (and, where its input is a value, what
strict or foreign JSON makes of them) and either returns or raises an error of ktlog.errors.

Fuzzed elsewhere already: the C2SP texts (notes, checkpoints, vkeys, tile paths, bundles, policies, proofs,
evidence) in test_tlog_roundtrips; canonical JSON, attributes, HPKE ciphertexts, tokens and entries in
test_pkd_crypto; protocol messages, preimages and actor ids in test_pkd_messages_fuzz; X-Forwarded-For and
claims of a domain in test_http_headers_fuzz.
"""

from __future__ import annotations

import functools
import http.client
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auditor.audit import parse_selection
from ktlog.client import page
from ktlog.client import totp as client_totp
from ktlog.client.erasures import ErasureHead, parse_erasure_head, read_erasures
from ktlog.client.publicfiles import parse_public_record
from ktlog.operator import activity, federation, instance, link
from ktlog.pkd import cosign, erasure, totp, totp_requests
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.extensions import EXTENSIONS
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key
from ktlog.pkd.totp_requests import Operation
from ktlog.store.contracts import Cosignature
from ktlog.tlog.encoding import encode_base64, encode_base64url, parse_decimal
from ktlog.tlog.tiles import format_bundle, parse_number_path
from ktlog.tlog.tree import Frontier, hash_leaf
from ktlog.vectors import parse_vectors
from ktlog.wire import actor, actor_id, dial, media, webfinger
from ktlog.wire.fetch import Response
from ktlog.wire.head import StrictResponse
from tests.auditor_world import ALICE as AUDITED
from tests.auditor_world import honest_world
from tests.pkd_samples import ALICE, BOB, bytes_of, private, public, token
from witness.decide import parse_request

LOG_ACTOR = "https://keys.example.com/users/pubkeydir"
HOST = "alpha.example"
AGE = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


ED25519_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SSH_BLOB = b"".join(len(part).to_bytes(4, "big") + part for part in (b"ssh-ed25519", ED25519_KEY))
SSH = f"ssh-ed25519 {encode_base64(SSH_BLOB)}"


@dataclass(frozen=True)
class Target:
    """One parser. good: bytes that it reads, or, for a refusal that is passed on, refuses as the bytes say.

    refused: names of the error classes that it may raise.
    """

    name: str
    parse: Callable[[bytes], Any]
    good: bytes
    refused: tuple[str, ...] = ("EncodingError", "Invalid", "MessageRejected")

    @property
    def is_json(self) -> bool:
        return self.good[:1] in (b"{", b"[")


def text_of(data: bytes) -> str:
    """Text as a careless layer below might make it: with lone surrogates and all."""
    return data.decode("utf-8", "surrogateescape")


def as_json(parse: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    """A parser of values, fed what our strict reader makes of the bytes."""
    return lambda data: parse(parse_json(data))


def as_request(decode: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    """A decoder of the sequencer's requests, which are objects: anything else is refused before."""
    def parse(data: bytes) -> Any:
        value = parse_json(data)
        return decode(value) if isinstance(value, dict) else None

    return parse


def as_foreign_json(parse: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    return lambda data: parse(media.parse_foreign_json(data))


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def fields_of(operation: Operation) -> dict[str, str]:
    texts = {"actor-id": ALICE, "key-id": encode_base64url(bytes(32))}
    return {name: texts.get(name, "hpke:AAAA" if "secret" in name else "12345678") for name in sorted(operation.fields)}


def totp_targets() -> list[Target]:
    return [
        Target(
            f"totp {operation.value}",
            functools.partial(totp_requests.parse_totp_request, operation),
            dumped(totp_requests.build_totp_request(operation, fields_of(operation), private("a"), 1_800_000_000)),
            ("MessageRejected",),
        )
        for operation in Operation
    ]


def actor_document() -> dict[str, Any]:
    who = f"https://{HOST}/users/alice"
    keys = [
        actor.actor_key(f"{who}#main-key", who, actor.ED25519, ED25519_KEY),
        actor.actor_key(f"{who}#pq-key", who, actor.ML_DSA_44, public("a")),
    ]
    return {"id": who, "type": "Person", "inbox": f"{who}/inbox", "assertionMethod": keys, "manuallyApprovesFollowers": 1.5}


def jrd() -> dict[str, Any]:
    return {
        "subject": f"acct:alice@{HOST}",
        "links": [{"rel": "self", "type": "application/activity+json", "href": f"https://{HOST}/users/alice"}],
    }


def actor_page() -> bytes:
    """A real answer of a real log, with its history."""
    world = honest_world()
    return json.dumps(json.loads(world._answer(AUDITED).body)).encode()


def wire_targets() -> list[Target]:
    who = f"https://{HOST}/users/alice"
    return [
        Target("actor document", as_foreign_json(lambda value: actor.parse_actor(value, who)), dumped(actor_document())),
        Target("foreign JSON", media.parse_foreign_json, dumped(actor_document()), ("EncodingError",)),
        Target("WebFinger", as_foreign_json(lambda value: webfinger.actor_of_jrd(value, f"acct:alice@{HOST}")), dumped(jrd())),
        Target(
            "Multikey", lambda data: actor.decode_multikey(text_of(data)),
            actor_document()["assertionMethod"][0]["publicKeyMultibase"].encode(), ("EncodingError",),
        ),
        Target("media type", lambda data: media.media_type(text_of(data)), b'application/ld+json; profile="https://x"; q=1', ()),
        Target("URL", lambda data: actor_id.parse_https_url(text_of(data)), b"https://alpha.example:443/users/%C3%A9?x=1", ("EncodingError",)),
        Target("handle", lambda data: actor_id.parse_handle(text_of(data)), b"@alice@alpha.example", ("EncodingError",)),
        Target("host", lambda data: actor_id.parse_host(text_of(data)), b"xn--bcher-kva.example", ("EncodingError",)),
        Target(
            "dial table", lambda data: dial.parse_dial(data, Path("/tmp")),
            dumped({"ca_file": "ca.pem", "hosts": {HOST: "127.0.0.1:4433", "x.example": "[::1]:1"}}), ("UsageError",),
        ),
    ]


def operator_targets() -> list[Target]:
    envelope = {"!pkd-context": activity.ENCRYPTED_CONTEXT, "actor": ALICE, "encrypted-message": "hpke:AAAA"}
    plain = {"!pkd-context": activity.PLAINTEXT_CONTEXT, "actor": ALICE, "message": "{}"}
    message = instance.direct_message(LOG_ACTOR, ALICE, json.dumps(envelope), bytes)
    revocation = {"!pkd-context": activity.REVOKE_CONTEXT, "current-time": "1", "revocation-token": token("a").text}
    submission = link.Submission(b"{}", {"actor": ALICE}, {"actor": bytes(32)}, None)
    change = link.TotpChange("example.com", bytes(32), 7, 1)
    report = link.ShredReport(0, "AAAA", 9, 3, 2, (1, 2), (5,), True, True)
    receipt = {
        "!pkd-context": "fedi-e2ee:v1/api/inbox", "leaf-index": 0, "tree-size": 1, "merkle-root": ZERO_ROOT,
        "merkle-leaf": encode_base64url(bytes(2484)),
    }
    rejected = ("MessageRejected",)
    internal = ("EncodingError", "MessageRejected")
    return [
        Target("activity", lambda data: activity.parse_activity(data, LOG_ACTOR), dumped(message), ("EncodingError", *rejected)),
        Target("envelope", lambda data: activity.open_envelope(text_of(data)), dumped(envelope), ("EncodingError", *rejected)),
        Target("BurnDown's body", activity.parse_burndown, dumped(plain), ("EncodingError", *rejected)),
        Target("revocation's body", activity.parse_revocation, dumped(revocation), ("EncodingError", *rejected)),
        Target("question", lambda data: federation.parse_question(data, LOG_ACTOR), dumped(message), ()),
        Target("small talk", activity.is_small_talk, dumped(message), ()),
        Target("noise", federation.is_noise, dumped({"type": "Delete", "actor": BOB, "object": BOB}), ()),
        Target("submission", as_request(link.decode_submission), link.encode_submission(submission), internal),
        Target("receipt frame", as_json(link.decode_receipt), link.encode_receipt(link.Receipt(3, b"entry", ZERO_ROOT)), internal),
        Target("refusal frame", as_json(link.decode_receipt), link.encode_refusal("bad_time", "no"), internal),
        Target("TOTP frame", as_request(link.decode_totp_change), link.encode_totp_change(change), internal),
        Target(
            "cosign frame", as_request(link.decode_cosign),
            link.encode_cosign(Cosignature(1, ZERO_ROOT, "w", "{}", 5)), internal,
        ),
        Target("shred frame", as_request(link.decode_shred), link.encode_shred(ALICE, True), internal),
        Target("shred report", as_json(link.decode_shred_report), link.encode_shred_report(report), internal),
        Target("receipt of a log", answer_of(202), dumped(receipt), ("MessageRejected", "Unreachable")),
        Target(
            "refusal of a log", answer_of(400),
            dumped({"!pkd-context": "fedi-e2ee:v1/api/error", "error": "invalid_request", "message": "no", "code": "bad_time"}),
            ("MessageRejected", "Unreachable"),
        ),
    ]


def answer_of(status: int) -> Callable[[bytes], Any]:
    return lambda data: instance.read_answer(
        Response(status, {"content-type": "application/json"}, data, "https://keys.example.com/users/pubkeydir/inbox")
    )


def pkd_targets() -> list[Target]:
    cosigned = cosign.make_cosignature(private("a"), 1_800_000_000, "keys.example.com", ZERO_ROOT)
    record = erasure.ErasureRecord(9, bytes_of("index"), 3, 1, 4, (erasure.CarriedMove(7, True, (1, 5), 1, bytes_of("root")),))
    targets = [
        Target("cosignature", lambda data: cosign.parse_cosignature(text_of(data)), cosigned.encode(), ("MessageRejected",)),
        Target(
            "cosigners", cosign.parse_cosigners, f"# ours\nhttps://w.example {encode_public_key(public('a'))}\n".encode(),
            ("EncodingError",),
        ),
        Target("erasure record", erasure.parse_erasure_record, erasure.encode_erasure_record(record), ("EncodingError",)),
        Target("TOTP secret", totp.decode_secret, totp.encode_secret(bytes_of("totp")).encode(), ("EncodingError",)),
        Target(
            "one-time password", lambda data: totp.verify_totp(bytes(32), text_of(data), 90, -1),
            totp.totp_code(bytes(32), 3).encode(), ("MessageRejected",),
        ),
        Target("records path", lambda data: parse_number_path(text_of(data)), b"x001/234", ("EncodingError",)),
        Target("tree size", lambda data: parse_decimal(text_of(data)), b"1000", ("EncodingError",)),
        Target("vectors", parse_vectors, vectors(), ("EncodingError",)),
    ]
    samples = {"age-v1": AGE, "ssh-v2": SSH}
    targets += [
        Target(name, lambda data, extension=extension: extension.validate(text_of(data)), samples[name].encode(), ("MessageRejected",))
        for name, extension in EXTENSIONS.items()
    ]
    return targets + totp_targets()


def vectors() -> bytes:
    """A vectors file of one case, all of whose members are there. What they say is not the parser's business."""
    pair = {"secret-key": "s", "public-key": "p"}
    step = dict.fromkeys(
        ("merkle-root-before", "merkle-root-after", "protocol-message", "signed-message", "hpke-wrapped-message",
         "merkle-leaf", "expected-error"), "text",
    )
    held = {"fireproof": False, "public-keys": {"id": {"public-key": "p", "revoked": True}},
            "aux-data": [{"aux-type": "t", "aux-data": "d"}]}
    case = {
        "name": "one",
        "server-keys": dict.fromkeys(("hpke-decaps-key", "hpke-encaps-key", "sign-secret-key", "sign-public-key"), "k"),
        "identities": {ALICE: {"mldsa44": pair, "xwing": pair}},
        "steps": [step | {"expect-fail": False}],
        "final-mapping": {"actors": {ALICE: held}, "merkle-tree": {"root": ZERO_ROOT, "leaf-count": 0, "leaves": []}},
    }
    return dumped({"version": "0.9.0", "test-cases": [case]})


def erasures() -> tuple[ErasureHead, bytes]:
    """An erasure log of two records, as one entry bundle."""
    records = [
        erasure.encode_erasure_record(erasure.ErasureRecord(9 + n, bytes_of(f"index {n}"), 3, 1, 4, ())) for n in range(2)
    ]
    frontier = Frontier().extend(map(hash_leaf, records))
    return ErasureHead(2, frontier.root()), format_bundle(records)


def erasure_bundle(data: bytes) -> Any:
    return read_erasures(erasures()[0], lambda path: data)


class _Socket:
    """What http.client needs of a connection that has said all it will ever say."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def http_answer(data: bytes) -> Any:
    """The fetcher turns what this raises into Unreachable; anything else would escape it."""
    response = StrictResponse(_Socket(data), method="GET")
    try:
        response.begin()
        return response.read(1000)
    except (http.client.HTTPException, OSError):
        return None
    finally:
        response.close()


def client_targets() -> list[Target]:
    leaf_keys = dumped({"leaf-keys": [encode_public_key(public("leaf"))]})
    return [
        Target("actor's page", lambda data: page.parse_actor_page(data, AUDITED, honest_world().size), actor_page(), ("Invalid",)),
        Target("leaf keys", page.parse_leaf_keys, leaf_keys, ("Invalid",)),
        Target("recent root", page.parse_recent, dumped({"merkle-root": ZERO_ROOT, "tree-size": 0}), ("Invalid",)),
        Target(
            "encapsulation key", page.parse_encapsulation_key, dumped({"hpke-public-key": encode_base64url(bytes(1216))}),
            ("Invalid",),
        ),
        Target("erasure head", parse_erasure_head, dumped({"size": 3, "root": encode_base64(bytes(32))}), ("Invalid",)),
        Target("erasure bundle", erasure_bundle, erasures()[1], ("Invalid",)),
        Target("key id on a page", lambda data: client_totp.key_id_of(data, b"x" * 1312), actor_page(), ("Invalid", "NotLogged")),
        Target("HTTP head", http_answer, b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: a/b\r\n"
               b"Content-Length: 2\r\nX: 1\r\nX: 2\r\n\r\nhi", ()),
        Target("member", lambda data: page.parse_text(data, "dialect"), dumped({"dialect": "spec"}), ("Invalid",)),
    ]


def other_targets() -> list[Target]:
    """Of the witness and of the auditor."""
    world = honest_world()
    checkpoint = world.checkpoint(3)
    body = b"old 2\n" + b"A" * 43 + b"=\n\n" + checkpoint
    line = world.record_lines(0, 1).rstrip(b"\n")
    return [
        Target("add-checkpoint", parse_request, body, ("EncodingError",)),
        Target("record", lambda data: parse_public_record(data, 0), line, ("EncodingError", "Invalid")),
        Target("selection", lambda data: parse_selection(text_of(data)), b"sample:10", ("UsageError",)),
    ]


@functools.cache
def targets() -> dict[str, Target]:
    found = [*wire_targets(), *operator_targets(), *pkd_targets(), *client_targets(), *other_targets()]
    assert len({target.name for target in found}) == len(found)
    return {target.name: target for target in found}
