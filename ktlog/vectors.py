"""The file format of the published PKD test vectors, version 0.9.0.

Only structure is checked here: members that have to be there, and their types. Whether the values
are right is :mod:`ktlog.conformance`'s question. PHP wrote the file, so an empty map may appear as
an empty list. Members that no check needs (descriptions, seeds) are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ktlog.errors import EncodingError
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.pae import utf8
from ktlog.tlog.encoding import naming


@dataclass(frozen=True)
class KeyPair:
    """A seed and its public key, as base64url text."""

    secret: str
    public: str


@dataclass(frozen=True)
class Step:
    """One message and what should become of it. The names are the file's."""

    root_before: str
    root_after: str
    expect_fail: bool
    protocol_message: str
    signed_message: str
    hpke_message: str
    leaf: str
    expected_error: str | None


@dataclass(frozen=True)
class FinalActor:
    """An actor at the end: (key-id, encoded key, revoked) and (aux-type, aux-data)."""

    fireproof: bool
    keys: tuple[tuple[str, str, bool], ...]
    aux: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Case:
    """A story told to one fresh directory."""

    name: str
    hpke_keys: KeyPair
    sign_keys: KeyPair
    signers: Mapping[str, KeyPair]
    """ML-DSA-44 keys of everyone who signs, by label."""
    recipients: Mapping[str, KeyPair]
    """X-Wing keys of the same, where given."""
    steps: tuple[Step, ...]
    actors: Mapping[str, FinalActor]
    root: str
    leaf_count: int
    leaves: tuple[str, ...]


def _bad(where: str, problem: str) -> EncodingError:
    return EncodingError("BadVectors", f"{where or 'the file'}: {problem}")


def _typed(value: Any, kind: type, where: str) -> Any:
    if kind is dict and value == []:
        return {}
    if type(value) is not kind:
        raise _bad(where, f"want {kind.__name__}, found {type(value).__name__}")
    if kind is str:
        with naming("BadVectors", where):
            utf8(value)
    return value


def _get(members: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    if name not in members:
        raise _bad(where, f"lacks {name!r}")
    return _typed(members[name], kind, f"{where}.{name}" if where else name)


def _items(value: Any, kind: type, where: str) -> list[tuple[str, Any]]:
    return [(f"{where}[{i}]", _typed(item, kind, f"{where}[{i}]")) for i, item in enumerate(value)]


def _key_pair(members: Mapping[str, Any], secret: str, public: str, where: str) -> KeyPair:
    return KeyPair(_get(members, secret, str, where), _get(members, public, str, where))


def _step(members: Mapping[str, Any], where: str) -> Step:
    def text(name: str) -> str:
        return _get(members, name, str, where)

    return Step(
        root_before=text("merkle-root-before"), root_after=text("merkle-root-after"),
        expect_fail=_get(members, "expect-fail", bool, where),
        protocol_message=text("protocol-message"), signed_message=text("signed-message"),
        hpke_message=text("hpke-wrapped-message"), leaf=text("merkle-leaf"),
        expected_error=text("expected-error") if "expected-error" in members else None,
    )


def _final_actor(members: Mapping[str, Any], where: str) -> FinalActor:
    keys = []
    for key_id, key in _get(members, "public-keys", dict, where).items():
        place = f"{where}.public-keys[{key_id!r}]"
        key = _typed(key, dict, place)
        keys.append((key_id, _get(key, "public-key", str, place), _get(key, "revoked", bool, place)))
    aux = tuple(
        (_get(item, "aux-type", str, place), _get(item, "aux-data", str, place))
        for place, item in _items(_get(members, "aux-data", list, where), dict, f"{where}.aux-data")
    )
    return FinalActor(_get(members, "fireproof", bool, where), tuple(keys), aux)


def _case(members: Mapping[str, Any], where: str) -> Case:
    server = _get(members, "server-keys", dict, where)
    signers, recipients = {}, {}
    for label, identity in _get(members, "identities", dict, where).items():
        place = f"{where}.identities[{label!r}]"
        identity = _typed(identity, dict, place)
        pair = _get(identity, "mldsa44", dict, place)
        signers[label] = _key_pair(pair, "secret-key", "public-key", f"{place}.mldsa44")
        if "xwing" in identity:
            pair = _get(identity, "xwing", dict, place)
            recipients[label] = _key_pair(pair, "secret-key", "public-key", f"{place}.xwing")
    steps = _items(_get(members, "steps", list, where), dict, f"{where}.steps")
    if not steps:
        raise _bad(where, "has no steps")
    final = _get(members, "final-mapping", dict, where)
    tree = _get(final, "merkle-tree", dict, f"{where}.final-mapping")
    place = f"{where}.final-mapping.merkle-tree"
    actors = _get(final, "actors", dict, f"{where}.final-mapping")
    return Case(
        name=_get(members, "name", str, where),
        hpke_keys=_key_pair(server, "hpke-decaps-key", "hpke-encaps-key", f"{where}.server-keys"),
        sign_keys=_key_pair(server, "sign-secret-key", "sign-public-key", f"{where}.server-keys"),
        signers=signers,
        recipients=recipients,
        steps=tuple(_step(step, step_place) for step_place, step in steps),
        actors={
            actor_id: _final_actor(
                _typed(actor, dict, f"{where}.final-mapping.actors[{actor_id!r}]"),
                f"{where}.final-mapping.actors[{actor_id!r}]",
            )
            for actor_id, actor in actors.items()
        },
        root=_get(tree, "root", str, place),
        leaf_count=_get(tree, "leaf-count", int, place),
        leaves=tuple(leaf for _, leaf in _items(_get(tree, "leaves", list, place), str, f"{place}.leaves")),
    )


def read_vectors(vectors: Any) -> tuple[Case, ...]:
    """The cases of a parsed vectors file.

    Raises:
        EncodingError: ``BadVectors``, saying where and what; also for a file without any case.
    """
    cases = _get(_typed(vectors, dict, ""), "test-cases", list, "")
    if not cases:
        raise _bad("test-cases", "is empty")
    return tuple(_case(case, where) for where, case in _items(cases, dict, "test-cases"))


def parse_vectors(data: bytes) -> dict[str, Any]:
    """A vectors file's JSON, strictly read, its structure checked.

    Raises:
        EncodingError: ``BadVectors``.
    """
    try:
        vectors = parse_json(data)
    except EncodingError as error:
        raise _bad("", error.message) from None
    read_vectors(vectors)
    return vectors
