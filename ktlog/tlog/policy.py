"""Trust policies: which logs, which cosigners, and how many of them are enough.

::

    log keys.example.com+…            one line per log key; any one listed log suffices
    witness w1-ed w1.example+…        one line per cosigner key, with a name of its own
    witness w1-pq w1.example+…
    group w1 all w1-ed w1-pq          all, any, or a number, of things defined above
    group witnesses 2 w1 w2 w3
    quorum witnesses                  exactly one; `none` asks for no cosigner

Spec: c2sp.org/tlog-policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ktlog.errors import EncodingError, Invalid, PolicyUnmet
from ktlog.tlog.checkpoint import Checkpoint, parse_checkpoint
from ktlog.tlog.encoding import naming, parse_decimal
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    Verified,
    Vkey,
    open_note,
    parse_note,
    parse_vkey,
)

MAXIMUM_POLICY_BYTES = 1 << 20
CLOCK_SKEW_SECONDS = 300
NO_QUORUM = "none"
WITNESSES = "witnesses"
VERIFIERS = "verifiers"

_LOG_ALGORITHMS = (ED25519, COSIGNATURE_MLDSA44)
_WITNESS_ALGORITHMS = (COSIGNATURE_ED25519, COSIGNATURE_MLDSA44)
_FORBIDDEN = frozenset((*range(0x20), 0x7F)) - {0x09, 0x0A}


@dataclass(frozen=True)
class LogKey:
    """A key of an acceptable log. The vkey's name is the log's origin."""

    vkey: Vkey
    url: str | None = None


@dataclass(frozen=True)
class Witness:
    """A cosigner's key. ``name`` means something inside the policy only; ``vkey.name`` is the cosigner's."""

    name: str
    vkey: Vkey
    url: str | None = None


@dataclass(frozen=True)
class Group:
    """At least ``threshold`` of ``members``, each a witness or an earlier group."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """A checkpoint that a policy accepts.

    ``log`` and ``cosignatures`` are the lines that verified; ``as_of`` is the time (Unix seconds) as
    of which the quorum stands behind it, None when the policy asks for no quorum.
    """

    note: Note
    checkpoint: Checkpoint
    log: tuple[Verified, ...]
    cosignatures: tuple[Verified, ...]
    as_of: int | None


@dataclass(frozen=True)
class Policy:
    """A parsed policy. Names are octets: those that are not UTF-8 appear as surrogate escapes.

    Raises:
        EncodingError: ``BadPolicy`` for a value that no policy file could state.
    """

    logs: tuple[LogKey, ...] = ()
    witnesses: Mapping[str, Witness] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    quorum: str = NO_QUORUM

    def __post_init__(self) -> None:
        _check_keys("log", [log.vkey for log in self.logs], _LOG_ALGORITHMS)
        _check_keys("witness", [item.vkey for item in self.witnesses.values()], _WITNESS_ALGORITHMS)
        defined: set[str] = set()
        used: set[str] = set()
        for name, witness in self.witnesses.items():
            _require(name == witness.name, "a witness is listed under another name")
            _define(name, defined)
        for name, group in self.groups.items():
            _require(name == group.name, "a group is listed under another name")
            _require(1 <= group.threshold <= len(group.members), f"group {name!a}: no such threshold")
            for member in group.members:
                _require(member in defined, f"group {name!a}: {member!a} is not defined above")
                _require(member not in used, f"{member!a} is listed as a member twice")
                used.add(member)
            _define(name, defined)
        _require(self.quorum == NO_QUORUM or self.quorum in defined, "the quorum is not defined above")

    def satisfied(self, vkeys: Collection[Vkey]) -> bool:
        """Whether cosignatures by *vkeys* make the quorum."""
        return self.quorum == NO_QUORUM or self._evaluate(vkeys)[self.quorum]

    def shortfall(self, vkeys: Collection[Vkey], name: str | None = None) -> tuple[int, int]:
        """(have, need): of the quorum's members (or those of group *name*), how many hold and must hold."""
        name = self.quorum if name is None else name
        if name == NO_QUORUM:
            return 0, 0
        holds = self._evaluate(vkeys)
        group = self.groups.get(name)
        if group is None:
            return int(holds[name]), 1
        return sum(holds[member] for member in group.members), group.threshold

    def as_of(self, times: Mapping[Vkey, int], now: int) -> int | None:
        """The greatest t such that the cosigners with t <= time <= now + 300 make the quorum.

        None when they do not, and when there is no quorum to make.
        """
        if self.quorum == NO_QUORUM:
            return None
        usable = {vkey: time for vkey, time in times.items() if time <= now + CLOCK_SKEW_SECONDS}
        for candidate in sorted(set(usable.values()), reverse=True):
            if self.satisfied([vkey for vkey, time in usable.items() if time >= candidate]):
                return candidate
        return None

    def open_checkpoint(self, data: bytes, now: int) -> VerifiedCheckpoint:
        """Verify a signed checkpoint: one listed log's signature, and the quorum's cosignatures.

        A cosignature from beyond now + 300 seconds does not count, nor does one by a log's key or name.

        Raises:
            EncodingError: it is no checkpoint.
            Invalid: ``WrongLog`` (no listed log has this origin), ``BadLogSignature`` or ``BadCosignature``.
            PolicyUnmet: ``TooFewWitnesses`` or ``TooFewVerifiers``, with have and need.
        """
        note = parse_note(data)
        checkpoint = parse_checkpoint(note.text)
        log_keys = [log.vkey for log in self.logs if log.vkey.name == checkpoint.origin]
        if not log_keys:
            raise Invalid("WrongLog", f"the policy lists no log {checkpoint.origin!a}")
        log = _open("BadLogSignature", note, log_keys)
        if not log:
            raise Invalid("BadLogSignature", f"no listed key of {checkpoint.origin!a} signed its checkpoint")
        cosignatures = self.open_cosignatures(note)
        return VerifiedCheckpoint(note, checkpoint, log, cosignatures, self.count(cosignatures, now))

    def open_cosignatures(self, note: Note) -> tuple[Verified, ...]:
        """The lines of the policy's cosigners, verified. They stay true; what they are worth, :meth:`count` says.

        Raises:
            Invalid: ``BadCosignature``: one of them does not verify, whatever the others say.
        """
        return _open("BadCosignature", note, self._cosigners())

    def count(self, cosignatures: Collection[Verified], now: int) -> int | None:
        """As of when the quorum stands behind a checkpoint with *cosignatures*; None if none is asked for.

        Raises:
            PolicyUnmet: as :meth:`open_checkpoint`.
        """
        times = {item.vkey: item.timestamp for item in cosignatures}
        counted = [vkey for vkey, time in times.items() if time <= now + CLOCK_SKEW_SECONDS]
        if not self.satisfied(counted):
            raise self._too_few(counted)
        return self.as_of(times, now)

    def splittable(self) -> bool:
        """Whether two sets of cosigners with no honest one in common can each make the quorum.

        A group splits when its members can be dealt out to two sides so that each side reaches the
        threshold; a splittable member serves both sides, and the keys of one cosigner stay together.
        Errs towards yes where one cosigner sits in several groups. Spec: directory map §7.
        """
        splits: dict[str, bool] = dict.fromkeys(self.witnesses, False)
        for name, group in self.groups.items():
            both = sum(splits[member] for member in group.members)
            keys = Counter(
                # Two keys of one cosigner weigh two together; a group has no vkey name, hence the pair.
                (True, witness.vkey.name) if (witness := self.witnesses.get(member)) else (False, member)
                for member in group.members
                if not splits[member]
            )
            splits[name] = _can_deal(list(keys.values()), group.threshold - both)
        return self.quorum == NO_QUORUM or splits[self.quorum]

    def check_safe(self, require_verifiers: bool = False) -> None:
        """Refuse a policy under which a fork could go unnoticed. Spec: directory map §7.

        With *require_verifiers*, groups ``witnesses`` and ``verifiers`` must exist, share no
        cosigner, and both be needed for the quorum.

        Raises:
            PolicyUnmet: ``UnsafePolicy``.
        """
        if self.quorum == NO_QUORUM:
            raise _unsafe("the quorum is none")
        if len(self._cosigners()) != len(self.witnesses):
            raise _unsafe("a cosigner has the key or the name of a log")
        if self.splittable():
            raise _unsafe("two sets of cosigners with none in common could each make the quorum")
        if not require_verifiers:
            return
        roles = {role: self._members(role) for role in (WITNESSES, VERIFIERS)}
        names = [{vkey.name for vkey in vkeys} for vkeys in roles.values()]
        if names[0] & names[1]:
            raise _unsafe("a cosigner is both witness and verifier")
        everyone = {witness.vkey for witness in self.witnesses.values()}
        for role, vkeys in roles.items():
            if self.satisfied(everyone - vkeys):
                raise _unsafe(f"the quorum can be made without any of the {role}", _BOTH)

    def _cosigners(self) -> list[Vkey]:
        """The witnesses' keys, without those that are really a log's."""
        keys = {log.vkey.public_key for log in self.logs}
        # A log and the log of its map are one operator's: neither's keys may vouch for the other.
        names = {name for log in self.logs for name in _names_of_one_operator(log.vkey.name)}
        vkeys = [witness.vkey for witness in self.witnesses.values()]
        return [vkey for vkey in vkeys if vkey.public_key not in keys and vkey.name not in names]

    def _evaluate(self, vkeys: Collection[Vkey]) -> dict[str, bool]:
        known = frozenset(vkeys)
        holds = {name: witness.vkey in known for name, witness in self.witnesses.items()}
        # Groups stand in the order of their definition, so every member is already decided.
        for name, group in self.groups.items():
            holds[name] = sum(holds[member] for member in group.members) >= group.threshold
        return holds

    def _members(self, role: str) -> set[Vkey]:
        """The keys anywhere below the group *role*."""
        if role not in self.groups:
            raise _unsafe(f"there is no group {role}", _BOTH)
        names, vkeys = [role], set()
        while names:
            name = names.pop()
            if name in self.groups:
                names.extend(self.groups[name].members)
            else:
                vkeys.add(self.witnesses[name].vkey)
        return vkeys

    def _too_few(self, vkeys: Collection[Vkey]) -> PolicyUnmet:
        holds = self._evaluate(vkeys)
        name, what = self.quorum, "TooFewWitnesses"
        if not holds.get(VERIFIERS, True) and holds.get(WITNESSES, False):
            name, what = VERIFIERS, "TooFewVerifiers"
        have, need = self.shortfall(vkeys, name)
        return PolicyUnmet(what, f"{have} of the {need} needed by {name!a} cosigned", have=have, need=need)


def parse_policy(data: bytes) -> Policy:
    """Read a tlog-policy file.

    Raises:
        EncodingError: ``BadPolicy``, with the line's number.
    """
    if len(data) > MAXIMUM_POLICY_BYTES:
        raise EncodingError("BadPolicy", f"longer than {MAXIMUM_POLICY_BYTES} bytes")
    # A file cut short could state another policy; the last newline is what shows it whole.
    if data and not data.endswith(b"\n"):
        raise EncodingError("BadPolicy", "the last line does not end in a newline")
    if any(byte in _FORBIDDEN for byte in set(data)):
        raise EncodingError("BadPolicy", "a control character other than tab and newline")
    reader = _Reader()
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        # Opaque octets survive as surrogate escapes; str.split would split at Unicode spaces too.
        octets = line.replace(b"\t", b" ").split(b" ")
        items = [item.decode("utf-8", "surrogateescape") for item in octets if item]
        if items and not items[0].startswith("#"):
            with naming("BadPolicy", f"line {number}"):
                reader.read(items)
    return reader.finish()


def format_policy(policy: Policy) -> bytes:
    """Inverse of :func:`parse_policy`, but for comments, blanks and the words ``all`` and ``any``.

    Raises:
        EncodingError: ``BadPolicy`` for names or URLs that cannot be written.
    """
    lines = [("log", str(log.vkey), log.url or "") for log in policy.logs]
    lines += [("witness", item.name, str(item.vkey), item.url or "") for item in policy.witnesses.values()]
    lines += [("group", group.name, str(group.threshold), *group.members) for group in policy.groups.values()]
    lines.append(("quorum", policy.quorum))
    text = "".join(" ".join(line).rstrip(" ") + "\n" for line in lines)
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise EncodingError("BadPolicy", "a name is not Unicode text") from None
    if parse_policy(data) != policy:
        raise EncodingError("BadPolicy", "a name or URL cannot be written in a policy")
    return data


class _Reader:
    """Gathers a policy line by line, in order, so that nothing is used before it is defined."""

    def __init__(self) -> None:
        self.logs: list[LogKey] = []
        self.witnesses: dict[str, Witness] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None

    def read(self, items: list[str]) -> None:
        keyword, *rest = items
        if keyword == "log" and 1 <= len(rest) <= 2:
            self.logs.append(LogKey(parse_vkey(rest[0]), *rest[1:]))
        elif keyword == "witness" and 2 <= len(rest) <= 3:
            self._define(rest[0])
            self.witnesses[rest[0]] = Witness(rest[0], parse_vkey(rest[1]), *rest[2:])
        elif keyword == "group" and len(rest) >= 3:
            self._group(rest[0], rest[1], tuple(rest[2:]))
        elif keyword == "quorum" and len(rest) == 1:
            _require(self.quorum is None, "a second quorum")
            _require(rest[0] == NO_QUORUM or self._defined(rest[0]), "the quorum is not defined above")
            self.quorum = rest[0]
        else:
            raise EncodingError("BadPolicy", "not a log, witness, group or quorum line of the known form")

    def _group(self, name: str, threshold: str, members: tuple[str, ...]) -> None:
        words = {"all": len(members), "any": 1}
        try:
            count = words[threshold] if threshold in words else parse_decimal(threshold)
        except EncodingError:
            what = f"how many of group {name!a}: any, all or a number, not {threshold!a}"
            raise EncodingError("BadPolicy", what) from None
        for member in members:
            _require(self._defined(member), f"{member!a} is not defined above")
        self._define(name)
        self.groups[name] = Group(name, count, members)

    def _defined(self, name: str) -> bool:
        return name in self.witnesses or name in self.groups

    def _define(self, name: str) -> None:
        _require(not self._defined(name), f"{name!a} is defined twice")

    def finish(self) -> Policy:
        if self.quorum is None:
            raise EncodingError("BadPolicy", "there is no quorum line")
        return Policy(tuple(self.logs), self.witnesses, self.groups, self.quorum)


def _can_deal(weights: list[int], need: int) -> bool:
    """Whether *weights* can be dealt out to two sides that each get at least *need*."""
    if need <= 0:
        return True
    total = sum(weights)
    reachable = 1  # bit i: some of the weights add up to i
    for weight in weights:
        reachable |= reachable << weight
    return any(reachable >> one_side & 1 for one_side in range(need, total - need + 1))


def _open(name: str, note: Note, vkeys: Collection[Vkey]) -> tuple[Verified, ...]:
    try:
        return open_note(note, vkeys)
    except Invalid as error:
        raise Invalid(name, error.message) from error


def _check_keys(kind: str, vkeys: list[Vkey], algorithms: tuple[int, ...]) -> None:
    for vkey in vkeys:
        _require(vkey.algorithm in algorithms, f"the signature type {vkey.algorithm} is not for a {kind}")
    # By public key, whatever name or signature type it is wrapped in.
    _require(len({vkey.public_key for vkey in vkeys}) == len(vkeys), f"two {kind} lines have one public key")
    identities = {(vkey.name, vkey.key_id) for vkey in vkeys}
    _require(len(identities) == len(vkeys), f"two {kind} lines share a key name and key id")


def _define(name: str, defined: set[str]) -> None:
    _require(name not in ("", NO_QUORUM), "a name is empty, or the reserved `none`")
    _require(name not in defined, f"{name!a} is defined twice")
    defined.add(name)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise EncodingError("BadPolicy", message)


_MAP = "/map"
_BOTH = "A map needs groups `witnesses` and `verifiers`, then `group both all witnesses verifiers` and `quorum both`."


def _unsafe(message: str, hint: str = "") -> PolicyUnmet:
    return PolicyUnmet("UnsafePolicy", message, hint=hint)


def _names_of_one_operator(origin: str) -> tuple[str, str]:
    log = origin.removesuffix(_MAP)
    return log, log + _MAP
