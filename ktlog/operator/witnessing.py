"""Ask the publish policy's witnesses to cosign a checkpoint (C2SP tlog-witness v1.1, the log's side).

Every witness is asked at once. One that has seen less is brought along by a consistency proof;
one that is slow, down or refuses costs nothing but its cosignature: whether enough cosigned is
the policy's decision, not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256

from ktlog.errors import EncodingError, Invalid, KtlogError, PolicyUnmet
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64, parse_decimal
from ktlog.tlog.note import (
    SignatureLine,
    Verified,
    Vkey,
    open_note,
    parse_signature_lines,
    verify_line,
)
from ktlog.tlog.policy import CLOCK_SKEW_SECONDS, VERIFIERS, WITNESSES, Policy
from ktlog.wire.fetch import Fetcher, Response
from ktlog.words import count_entries

WORDS_BYTES = 120
"""Of what a witness says instead of a cosignature."""
CONFLICT_TYPE = "text/x.tlog.size"
ProveConsistency = Callable[[int, int], Sequence[bytes]]


@dataclass
class WitnessPeer:
    """One witness: where it listens and which keys it may sign with.

    ``size`` is the tree size it cosigned last, as far as we know; a wrong guess costs one 409.
    ``later`` says that its last answer was "not yet": a verifier that is still deriving the map.
    """

    url: str
    vkeys: tuple[Vkey, ...]
    size: int = 0
    failure: str = ""
    later: bool = False


@dataclass(frozen=True)
class Cosigned:
    """What the witnesses gave: verified lines, in words why others gave nothing, and whether one said "not yet"."""

    verified: tuple[Verified, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)
    later: bool = False


def peers_of(policy: Policy) -> tuple[WitnessPeer, ...]:
    """Group a policy's witness lines by URL: one witness has a line for each of its keys."""
    by_url: dict[str, list[Vkey]] = {}
    for witness in policy.witnesses.values():
        if witness.url is not None:
            by_url.setdefault(witness.url, []).append(witness.vkey)
    return tuple(WitnessPeer(url, tuple(vkeys)) for url, vkeys in by_url.items())


def host_of(url: str) -> str:
    """How people call the witness at *url*."""
    return url.removeprefix("https://").partition("/")[0]


def input_policy(policy: Policy) -> Policy:
    """The part of a publish policy that is for the log itself: verifiers cosign the map's output log only.

    It is the group ``witnesses`` where there is a group ``verifiers`` too, and else the whole policy.
    """
    if not {WITNESSES, VERIFIERS} <= policy.groups.keys():
        return policy
    kept = {WITNESSES}
    for name in reversed(list(policy.groups)):  # members are defined before the groups that they are in
        if name in kept:
            kept |= set(policy.groups[name].members)
    return Policy(
        policy.logs, {name: witness for name, witness in policy.witnesses.items() if name in kept},
        {name: group for name, group in policy.groups.items() if name in kept}, WITNESSES,
    )


def format_request(old_size: int, proof: Sequence[bytes], checkpoint: bytes) -> bytes:
    """The body of add-checkpoint: ``old N``, the proof's hashes, an empty line, the checkpoint."""
    lines = [f"old {old_size}\n", *(f"{encode_base64(node)}\n" for node in proof), "\n"]
    return "".join(lines).encode() + checkpoint


def collect_cosignatures(
    fetcher: Fetcher, peers: Sequence[WitnessPeer], checkpoint: bytes, text: bytes, size: int,
    prove: ProveConsistency, pool: ThreadPoolExecutor, now: Callable[[], int],
) -> Cosigned:
    """Send *checkpoint* (a signed note over *text*, for tree size *size*) to every peer at once.

    ``prove(old_size, size)`` gives a consistency proof. Never raises: what a peer did wrong is
    in ``failures`` under its URL, and in the peer's own ``failure``.
    """
    def ask(peer: WitnessPeer) -> tuple[Verified, ...]:
        try:
            found = _check_times(peer, _ask(fetcher, peer, checkpoint, text, size, prove), now())
        except KtlogError as error:
            peer.failure = str(error)
            return ()
        peer.size, peer.failure = size, ""
        return found

    gathered = list(pool.map(ask, peers))
    return Cosigned(
        tuple(verified for found in gathered for verified in found),
        {peer.url: peer.failure for peer in peers if peer.failure},
        any(peer.later for peer in peers),
    )


def _ask(
    fetcher: Fetcher, peer: WitnessPeer, checkpoint: bytes, text: bytes, size: int, prove: ProveConsistency
) -> tuple[Verified, ...]:
    peer.later = False
    response = _post(fetcher, peer, checkpoint, size, prove)
    if response.status == 409:
        known = _conflict_size(response)
        if known > size:
            raise Invalid("WitnessAhead", f"the witness says it has cosigned size {known}, beyond this log's {size}")
        peer.size = known
        response = _post(fetcher, peer, checkpoint, size, prove)
    peer.later = response.status == 503
    if response.status != 200:
        raise _refused(peer, response)
    return _verify(peer, text, parse_signature_lines(response.body))


def _post(
    fetcher: Fetcher, peer: WitnessPeer, checkpoint: bytes, size: int, prove: ProveConsistency
) -> Response:
    proof = prove(peer.size, size) if 0 < peer.size < size else ()
    body = format_request(peer.size, proof, checkpoint)
    return fetcher.post(f"{peer.url.rstrip('/')}/add-checkpoint", body, {"Content-Type": "text/plain"})


def _conflict_size(response: Response) -> int:
    """Read a 409's body: the size that the witness says it cosigned last."""
    content_type = response.headers.get("content-type", "")
    if content_type != CONFLICT_TYPE or not response.body.endswith(b"\n"):
        raise Invalid("WitnessRefused", "the witness answered 409 without the size it knows")
    try:
        return parse_decimal(response.body[:-1].decode("ascii"))
    except (UnicodeDecodeError, EncodingError):
        raise Invalid("WitnessRefused", "the witness answered 409 without the size it knows") from None


def _verify(peer: WitnessPeer, text: bytes, lines: Sequence[SignatureLine]) -> tuple[Verified, ...]:
    """The lines by this witness's keys, every one of which must hold; lines of other keys mean nothing to us."""
    known = {(vkey.name, vkey.key_id): vkey for vkey in peer.vkeys}
    found = tuple(
        Verified(vkey, line, verify_line(vkey, text, line))
        for line in lines
        if (vkey := known.get((line.name, line.key_id))) is not None
    )
    if not found:
        names = ", ".join(sorted({line.name for line in lines}))
        raise Invalid("UnknownCosigner", f"{peer.url} signed as {names!a}, which is not a key of this witness")
    return found


def _check_times(peer: WitnessPeer, found: tuple[Verified, ...], now: int) -> tuple[Verified, ...]:
    """A cosignature that clients would not count, for its time, must not count towards publishing either."""
    for verified in found:
        if abs(verified.timestamp - now) > CLOCK_SKEW_SECONDS:
            raise Invalid(
                "WitnessClock", f"{peer.url} cosigned at {verified.timestamp}, which is not the time here ({now})"
            )
    return found


@dataclass(frozen=True)
class KnownHeads:
    """What a log has on disk about its own past, to compare with what witnesses remember.

    published: the published checkpoint with the log's own signatures alone, or None before the first.
    signed_size: of the greatest head that was ever signed, as far as this disk knows.
    """

    origin: str
    vkeys: tuple[Vkey, ...]
    published: bytes | None
    published_size: int
    signed_size: int


def confirm_heads(
    fetcher: Fetcher, peers: Sequence[WitnessPeer], heads: KnownHeads, pool: ThreadPoolExecutor
) -> tuple[tuple[Vkey, ...], dict[str, str]]:
    """Ask every witness whether it has seen more of this log than this disk knows was signed.

    A store restored from an older copy looks whole from inside; only somebody who saw the rest can
    tell. Nothing new is signed to ask: the published checkpoint is offered again.

    Returns:
        The vkeys of the witnesses that have seen no more, and by URL why others do not count.
    """
    def ask(peer: WitnessPeer) -> tuple[Vkey, ...]:
        try:
            seen = seen_size(fetcher, peer, heads)
            if seen > heads.signed_size:
                raise Invalid(
                    "WitnessAhead",
                    f"{peer.url} has cosigned {count_entries(seen)}; this disk knows of {heads.signed_size:,}",
                    hint="The log looks restored from an older copy. Signing on would fork it: restore the newest.",
                )
        except KtlogError as error:
            peer.failure = str(error)
            return ()
        peer.size, peer.failure = seen, ""
        return peer.vkeys

    gathered = list(pool.map(ask, peers))
    return (
        tuple(vkey for found in gathered for vkey in found),
        {peer.url: peer.failure for peer in peers if peer.failure},
    )


def seen_size(fetcher: Fetcher, peer: WitnessPeer, heads: KnownHeads) -> int:
    """The size of this log that the witness cosigned last; 0 when it never cosigned it."""
    url = peer.url.rstrip("/")
    if heads.published is None:
        response = fetcher.get(f"{url}/{sha256(heads.origin.encode()).hexdigest()}/checkpoint")
        if response.status == 404:
            return 0
        if response.status != 200:
            raise Invalid("WitnessRefused", f"{peer.url} answered {response.status} for what it has cosigned")
        note, checkpoint = parse_signed_checkpoint(response.body)
        # Without our own signature on it, it is somebody else's invention.
        return checkpoint.size if open_note(note, heads.vkeys) else 0
    body = format_request(heads.published_size, (), heads.published)
    response = fetcher.post(f"{url}/add-checkpoint", body, {"Content-Type": "text/plain"})
    if response.status == 200:
        return heads.published_size
    if response.status == 409:
        return _conflict_size(response)
    raise _refused(peer, response)


def _refused(peer: WitnessPeer, response: Response) -> Invalid:
    """With a witness's own words, if they are one; a page that its proxy makes up says no more than its status."""
    first = response.body[:WORDS_BYTES].decode("utf-8", "replace").strip().partition("\n")[0]
    words = "" if response.content_type == "text/html" or first.startswith("<") else first
    return Invalid("WitnessRefused", f"{host_of(peer.url)} answered {response.status}{words and ': '}{words}")


def check_confirmed(
    policy: Policy, confirmed: tuple[tuple[Vkey, ...], Mapping[str, str]], cosigners: str, what: str
) -> None:
    """That *confirmed*, as :func:`confirm_heads` gives it, is enough for the policy.

    Raises:
        PolicyUnmet: ``NotCompared``. It begins with who did not confirm and why, and says how many *cosigners* did.
    """
    vkeys, failures = confirmed
    if policy.satisfied(vkeys):
        return
    have, need = policy.shortfall(vkeys)
    hosts = {url: host_of(url) for url in failures}
    why = "; ".join(
        failure if hosts[url] in failure else f"{hosts[url]}: {failure}" for url, failure in failures.items()
    )
    raise PolicyUnmet(
        "NotCompared", f"{why or 'nobody else can be asked'}: {have} of the {need} {cosigners} needed confirmed that"
        f" this is no older copy of {what}", have=have, need=need,
    )
