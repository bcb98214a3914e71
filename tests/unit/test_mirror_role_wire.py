"""What a mirror is sent and answers, and how it judges, without any server."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache

import pytest

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.subtree import prove_subtree
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.witness_log import NOW, Log
from witness.decide import Cosigned
from witness.mirrorwire import (
    MAX_EXCESS,
    MIRROR_INFO,
    Info,
    Mirrored,
    Package,
    Pending,
    Span,
    Upload,
    decide_upload,
    format_info,
    format_package,
    format_upload,
    hash_leaves,
    issue_ticket,
    open_ticket,
    parse_info,
    parse_upload,
    read_package,
    spans,
    verify_package,
)

KEY = bytes(range(32))
LOG = Log()


@cache  # ML-DSA signs each time anew
def pending(size: int) -> Pending:
    return Pending(Checkpoint(LOG.origin, size, LOG.root(size)), LOG.note(size))


def cosigned(size: int) -> Cosigned:
    return Cosigned(1, pending(size).checkpoint, NOW, pending(size).note)


def test_a_head_is_read_as_it_was_written_and_no_further() -> None:
    upload = Upload("example.com/lög", 1, 2**63 - 1, b"ticket")
    body = io.BytesIO(format_upload(upload) + b"rest")
    assert parse_upload(body.read) == upload
    assert body.read() == b"rest"


@pytest.mark.parametrize("body", [
    b"", b"\x00", format_upload(Upload("a", 0, 0, b"x"))[:-1], format_upload(Upload("a", 0, 0))[:-1],
    b"\x00\x01a" + (2).to_bytes(8, "big") + (1).to_bytes(8, "big") + b"\0\0",
    b"\x00\x01a" + bytes(8) + (2**63).to_bytes(8, "big") + b"\0\0",
])
def test_a_broken_head_is_refused(body: bytes) -> None:
    with pytest.raises(EncodingError) as caught:
        parse_upload(io.BytesIO(body).read)
    assert caught.value.name == "BadUpload"


def test_an_origin_that_is_no_text_is_nobodys() -> None:
    body = b"\x00\x01\xff" + bytes(18)
    assert parse_upload(io.BytesIO(body).read).origin == ""


@pytest.mark.parametrize(("start", "end", "found"), [
    (0, 0, []), (300, 300, []), (256, 256, []),
    (0, 256, [Span(0, 0, 256)]),
    (5, 600, [Span(0, 5, 256), Span(256, 256, 512), Span(512, 512, 600)]),
    (260, 270, [Span(256, 260, 270)]),
])
def test_packages_stay_within_a_bundle(start: int, end: int, found: list[Span]) -> None:
    assert list(spans(start, end)) == found


def test_a_package_is_read_as_it_was_written() -> None:
    package = Package((b"", b"x" * 65535), (bytes(32), b"\x01" * 32))
    body = io.BytesIO(format_package(package) + b"rest")
    assert read_package(body.read, 2) == package
    assert body.read() == b"rest"
    with pytest.raises(EncodingError):
        format_package(Package((b"x" * 65536,), ()))
    for cut in range(len(format_package(Package((b"ab",), (bytes(32),))))):
        with pytest.raises(EncodingError):
            read_package(io.BytesIO(format_package(Package((b"ab",), (bytes(32),)))[:cut]).read, 1)
    with pytest.raises(EncodingError):
        read_package(io.BytesIO(b"\x40" + bytes(64 * 32)).read, 0)  # 64 hashes


def test_mirror_info_is_three_lines() -> None:
    info = Info(20852163, 7, b"\xff\x00")
    assert format_info(info) == b"20852163\n7\n/wA=\n"
    assert parse_info(format_info(info)) == info
    assert parse_info(b"1\n0\n\n") == Info(1, 0, b"")
    for bad in (b"1\n0\n", b"1\n0\n\n\n", b"01\n0\n\n", b"1\n+0\n\n", b"1\n0\n/wB=\n", b"1\r\n0\n\n", "１\n0\n\n".encode()):
        with pytest.raises(EncodingError):
            parse_info(bad)


def test_a_ticket_is_believed_only_as_it_was_issued() -> None:
    ticket = issue_ticket(KEY, pending(5))
    assert open_ticket(KEY, ticket, LOG.origin, 5) == pending(5)
    assert open_ticket(KEY, ticket, LOG.origin, 6) is None
    assert open_ticket(KEY, ticket, "example.com/other", 5) is None
    assert open_ticket(bytes(32), ticket, LOG.origin, 5) is None
    assert open_ticket(KEY, b"", LOG.origin, 5) is None
    for at in range(0, len(ticket), 7):
        assert open_ticket(KEY, ticket[:at] + bytes((ticket[at] ^ 1,)) + ticket[at + 1 :], LOG.origin, 5) is None
    assert issue_ticket(KEY, replace(pending(5), note=bytes(65536))) == b""  # it would not fit into a request


@pytest.mark.parametrize(("start", "end", "log", "base", "status", "reason"), [
    (0, 5, None, None, 404, "UnknownOrigin"),
    (0, 5, Mirrored(LOG.origin, 1), None, 422, "NoPendingCheckpoint"),
    (0, 5, Mirrored(LOG.origin, 1, 0, cosigned(9)), None, 409, "UnknownSize"),
    (0, 5, Mirrored(LOG.origin, 1, 0, cosigned(9), 7, cosigned(7)), 5, 409, "SizeBehind"),
    (8, 9, Mirrored(LOG.origin, 1, 0, cosigned(9), 7), 9, 409, "StartAhead"),
    (0, 10_000, Mirrored(LOG.origin, 1, 0, cosigned(10_000), MAX_EXCESS + 1), 10_000, 409, "TooMuchAgain"),
])
def test_refusals_before_an_upload_is_read(start, end, log, base, status, reason) -> None:
    base = None if base is None else pending(base)
    refusal = decide_upload(Upload(LOG.origin, start, end), log, base, KEY)
    assert (refusal.status, refusal.reason) == (status, reason)
    if status == 409:
        assert refusal.content_type == MIRROR_INFO
        info = parse_info(refusal.body)
        size = base.checkpoint.size if reason in ("StartAhead", "TooMuchAgain") else log.pending.checkpoint.size
        assert (info.size, info.next_entry) == (size, log.next_entry)
        assert open_ticket(KEY, info.ticket, LOG.origin, size) == pending(size)


def test_what_may_be_uploaded() -> None:
    log = Mirrored(LOG.origin, 1, 0, cosigned(10_000), MAX_EXCESS, cosigned(7))
    for start, end in ((0, 10_000), (7, 10_000), (MAX_EXCESS, 10_000), (7, 7)):
        assert decide_upload(Upload(LOG.origin, start, end), log, pending(end), KEY) is None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 255, 256])
def test_the_hash_of_a_tile_is_the_trees(size: int) -> None:
    leaves = [hash_leaf(b"%d" % index) for index in range(size)]
    assert hash_leaves(leaves) == root_hash(size, leaf_reader(leaves))


@pytest.mark.parametrize(("first", "start", "end", "size"), [
    (0, 0, 256, 700), (256, 256, 512, 700), (256, 300, 512, 700), (512, 512, 700, 700), (512, 600, 700, 700), (0, 0, 3, 3),
])
def test_a_package_has_to_fit_its_place(first: int, start: int, end: int, size: int) -> None:
    entries = [b"entry %d" % index for index in range(size)]
    leaves = [hash_leaf(one) for one in entries]
    checkpoint = Checkpoint(LOG.origin, size, LOG.root(size))
    proof = tuple(prove_subtree(first, end, size, leaf_reader(leaves)))
    span, before, package = Span(first, start, end), entries[first:start], Package(tuple(entries[start:end]), proof)
    assert verify_package(span, before, package, checkpoint) == leaves[first:end]
    changed = (*package.entries[:-1], package.entries[-1] + b"!")
    wrong = [
        (span, before, replace(package, entries=changed), checkpoint),
        (span, before, replace(package, entries=package.entries[:-1]), checkpoint),
        (span, before, replace(package, proof=(*proof, bytes(32))), checkpoint),
        (span, before, package, replace(checkpoint, root=bytes(32))),
        (span, [*before, b"more"], package, checkpoint),
    ]
    if proof:
        wrong.append((span, before, replace(package, proof=(bytes(32), *proof[1:])), checkpoint))
        wrong.append((span, before, replace(package, proof=proof[:-1]), checkpoint))
    if before:
        wrong.append((span, [*before[:-1], b"another"], package, checkpoint))
    for arguments in wrong:
        with pytest.raises(Invalid) as caught:
            verify_package(*arguments)
        assert caught.value.name == "BadSubtreeProof"
