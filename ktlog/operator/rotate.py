"""``ktlog keys rotate``: give a stopped log a new key of one kind, and tell everybody (:mod:`ktlog.pkd.keychanges`).

In this order, and a run that died at any of these steps is finished by :func:`settle`:

1. the new key is on disk, as ``keys/NAME.next``. Nothing knows of it;
2. the line about it, signed by the old key and by the new, is in ``DIR/keys.jsonl``: it is announced;
3. the old key is put aside, as ``keys/NAME.until-TIME``, if it is still of use;
4. the new key takes the old one's name;
5. ``public-keys.json`` says so.

Between 2 and 5 the log does not start (``RotationUnfinished``, ``KeysDiffer``): no key signs before it is announced,
and none goes on after its successor is. It is done while the log is stopped because every process of it holds some key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.config import Settings
from ktlog.durable import (
    append_line,
    file_errors,
    reach,
    read_file,
    read_secret,
    read_secret_file,
    sync_directory,
    write_secret,
)
from ktlog.errors import EncodingError, Invalid, StoreError, UsageError
from ktlog.operator.create import PUBLIC_KEYS, load_public_keys, write_public_keys
from ktlog.operator.keys import (
    FETCH_KEY,
    MAXIMUM_FETCH_KEY_BYTES,
    SEED_BYTES,
    WEB_PURPOSES,
    PublicKeys,
    destroy_old,
    is_credential,
    load_seed,
    new_fetch_key,
    old_path,
    old_paths,
    public_text,
)
from ktlog.operator.stopped import stopped
from ktlog.operator.stores import open_log
from ktlog.pkd.keychanges import (
    FIRST,
    KINDS,
    MOST_REASON,
    KeyChange,
    Replaced,
    change_message,
    format_change,
    hash_change,
    parse_change,
    parse_changes,
    verify_changes,
)
from ktlog.pkd.keys import decode_public_key, encode_public_key, private_key_from_seed
from ktlog.tlog.note import ED25519, parse_vkey

# In order. A test kills it at each.
HOOKS = ("rotate.made", "rotate.announced", "rotate.put_aside", "rotate.switched", "rotate.told")

OVERLAP_SECONDS: Mapping[str, int] = {
    "hpke": 2 * 86_400, "leaf": 0, "checkpoint": 90 * 86_400, "map": 90 * 86_400, "http": 0, "fetch": 0,
}
"""How long an old key stays in use, unless somebody says otherwise: messages encrypted to the HPKE key may be as old as
``time_window_seconds``, a day, and its copies are cached; witnesses and clients have to be told of a checkpoint key."""

_PUT_BACK = (
    "put it and the log's checkpoint keys back into DIR/keys, as files of the log's user (systemd-creds decrypt),"
    " rotate outside of the unit, encrypt the new ones and remove their files (docs/keys.md)."
)


def read_changes(settings: Settings) -> tuple[KeyChange, ...]:
    """Every change so far, verified; none without the file.

    Raises:
        StoreError: ``BadKeyChanges``.
    """
    data = read_file(settings.key_changes) or b""
    try:
        changes = parse_changes(data)
        verify_changes(changes, settings.origin)
    except (EncodingError, Invalid) as error:
        raise StoreError(
            "BadKeyChanges", f"{settings.key_changes} is damaged: {error.message}",
            hint="Restore it: it is published, and whoever read it once has its lines.",
        ) from None
    return changes


def newest_keys(changes: tuple[KeyChange, ...]) -> dict[str, str]:
    """The public half of each key that was ever replaced, as the newest line about it has it."""
    return {key.purpose: key.new for change in changes for key in change.keys}


def check_announced(settings: Settings, using: Mapping[str, str]) -> None:
    """Refuse to use a key whose successor was announced: *using* is the public half of each, by purpose.

    Raises:
        StoreError: ``RotationUnfinished``, ``BadKeyChanges``.
    """
    newest = newest_keys(read_changes(settings))
    for purpose, public in using.items():
        if newest.get(purpose, public) != public:
            raise StoreError(
                "RotationUnfinished", f"{settings.key_changes} announces another key for {purpose} than is there",
                hint="Finish it: ktlog keys settle --dir DIR. If it says that nothing is to be done, the key is an"
                     " older copy: restore the newest.",
            )


def check_signing_keys(settings: Settings, public: PublicKeys) -> None:
    """``check_told``, and ``check_announced`` for the keys that sign entries and heads."""
    leaf = [encode_public_key(key) for key in public.leaf_keys[-1:]]
    # A log that older code made may have no map's keys yet.
    using = [*zip(KINDS["checkpoint"], public.vkeys, strict=False), *zip(KINDS["map"], public.map_vkeys, strict=False)]
    check_told(settings, public, read_changes(settings))
    check_announced(settings, dict([*using, *zip(KINDS["leaf"], leaf, strict=False)]))


def check_told(settings: Settings, public: PublicKeys, changes: tuple[KeyChange, ...]) -> None:
    """Refuse a file from which lines are gone: the next rotation would begin a second history beside what was read.

    Raises:
        StoreError: ``KeyChangesLost``.
    """
    replaced = {*public.retired_vkeys, *public.retired_map_vkeys, *map(encode_public_key, public.leaf_keys[:-1])}
    if not replaced <= {key.old for change in changes for key in change.keys}:
        raise StoreError(
            "KeyChangesLost", f"{settings.key_changes} does not say what took the place of keys that are replaced",
            hint="Restore it, from a backup, another machine of this log, or whoever read it at /keys. Nothing starts"
            " without it: who has pinned an old key could not find the new one.",
        )


def check_web_keys(settings: Settings) -> None:
    """``check_apart``, and that the keys which web workers hold are those that were announced, or made at first.

    No other key's file is read.

    Raises:
        StoreError: ``KeysDiffer``; those of ``check_apart`` and ``check_announced``.
    """
    public, changes = load_public_keys(settings), read_changes(settings)
    check_apart(settings, public)
    if not changes and not public.web:
        return
    using = web_halves(settings, "fetch-rsa")
    check_announced(settings, using)
    wanted = {**public.web, **newest_keys(changes)}
    for purpose, half in using.items():
        if wanted.get(purpose, half) != half:
            raise StoreError(
                "KeysDiffer", f"the key for {purpose} is another one than {settings.directory / PUBLIC_KEYS} names",
                hint="One of the two was changed, or is damaged: put back the one that was there, or replace the key:"
                f" ktlog keys rotate {purpose.partition('-')[0]} --dir DIR.",
            )


def web_halves(settings: Settings, *more: str) -> dict[str, str]:
    """The public half of each key that web workers hold, and of *more*, by purpose; none that is missing.

    Raises:
        StoreError: what is wrong with a key's file or credential.
    """
    return {
        purpose: read_public_half(settings, purpose) for purpose in (*WEB_PURPOSES, *more)
        if _is_there(settings, purpose)
    }


def check_apart(settings: Settings, public: PublicKeys) -> None:
    """Refuse a seed that is there twice: web workers, whom strangers talk to, would hold a key that signs, or held it.

    Raises:
        StoreError: ``KeyReused``; ``BadPublicKeys``; as :func:`ktlog.operator.keys.load_seed`.
    """
    signing = _signing(settings, public)
    seen: dict[bytes, str] = {}
    for purpose, place, seed in _web_seeds(settings):
        halves = (Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw(),
                  private_key_from_seed(seed).public_key().public_bytes_raw())
        other = next((signing[half] for half in halves if half in signing), seen.setdefault(seed, purpose))
        if other != purpose:
            raise StoreError(
                "KeyReused", f"{place}: the key for {purpose} is the log's key for {other}, too",
                hint=f"Put the right key there; in a unit, LoadCredential={purpose}:PATH may name another key's file."
                f" If web workers ran with it, replace it: ktlog keys rotate {other.partition('-')[0]} --dir DIR.",
            )


def _signing(settings: Settings, public: PublicKeys) -> dict[bytes, str]:
    """What each key that signs entries or heads is for, or that signed them, by its raw public half."""
    found = dict.fromkeys(public.leaf_keys, "leaf")
    try:
        for kind, vkeys in (
            ("checkpoint", (*public.vkeys, *public.retired_vkeys)),
            ("map", (*public.map_vkeys, *public.retired_map_vkeys)),
        ):
            for vkey in map(parse_vkey, vkeys):
                found[vkey.public_key] = f"{kind}-{'ed25519' if vkey.algorithm == ED25519 else 'mldsa44'}"
    except (EncodingError, TypeError, AttributeError) as error:
        raise StoreError("BadPublicKeys", f"{settings.directory}: a vkey of its own cannot be used: {error}") from None
    return found


def _web_seeds(settings: Settings) -> Iterator[tuple[str, str, bytes]]:
    """Each seed that web workers read: what for, where it is, and itself; none that is missing."""
    for purpose in WEB_PURPOSES:
        if _is_there(settings, purpose):
            place = f"the credential {purpose}" if is_credential(settings.keys, purpose) else _path(settings, purpose)
            yield purpose, str(place), load_seed(settings.keys, purpose)
    for path, _ in old_paths(settings.keys, "hpke"):
        yield "hpke", str(path), read_secret(path, SEED_BYTES)


def _is_there(settings: Settings, purpose: str) -> bool:
    return _path(settings, purpose).exists() or is_credential(settings.keys, purpose)


# One key


def _sign(purpose: str, secret: bytes, message: bytes) -> bytes:
    if purpose in ("hpke", "fetch-rsa"):
        return b""
    if purpose.endswith("ed25519"):
        return Ed25519PrivateKey.from_private_bytes(secret).sign(message)
    return private_key_from_seed(secret).sign(message)


def _path(settings: Settings, purpose: str, end: str = "") -> Path:
    return settings.keys / ((FETCH_KEY if purpose == "fetch-rsa" else purpose) + end)


def _read(settings: Settings, path: Path, purpose: str) -> tuple[bytes, str]:
    """A key file's content, and its public half."""
    secret = read_secret_file(path, MAXIMUM_FETCH_KEY_BYTES)
    try:
        return secret, public_text(settings.origin, purpose, secret)
    except EncodingError as error:
        raise StoreError("BadSecret", f"{path}: {error.message}") from None


def read_public_half(settings: Settings, purpose: str) -> str:
    """The public half of the key that is in use. Raises StoreError: what is wrong with its file or credential."""
    if is_credential(settings.keys, purpose):
        return public_text(settings.origin, purpose, load_seed(settings.keys, purpose))
    return _read(settings, _path(settings, purpose), purpose)[1]


# The rotation


def _stopped(settings: Settings) -> AbstractContextManager[None]:
    return stopped(
        settings, "a log gets new keys while it is stopped", "Stop it, rotate, start it again: a few seconds."
    )


def rotate(
    settings: Settings, kind: str, reason: str, now: int, overlap_seconds: int | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> KeyChange:
    """Replace the keys of *kind*; gives the line that tells of it.

    Raises:
        UsageError: ``UnknownKind``, ``BadReason``.
        StoreError: ``Locked``, ``OtherUser``, ``ClockWentBack``, and those of the files.
    """
    if kind not in KINDS:
        raise UsageError("UnknownKind", f"{kind!a} is none of {', '.join(KINDS)}")
    if len(reason) > MOST_REASON or not reason.isprintable():
        raise UsageError("BadReason", f"a reason has {MOST_REASON} printable characters at most")
    with _stopped(settings):
        _settle(settings, now)
        changes = read_changes(settings)
        check_told(settings, load_public_keys(settings), changes)
        if changes and changes[-1].time > now:
            raise StoreError("ClockWentBack", f"the clock says {now}, before the last change at {changes[-1].time}")
        old = _present(settings, kind)
        for purpose in KINDS[kind]:
            _make_next(settings, purpose, random)
        reach("rotate.made")
        overlap = OVERLAP_SECONDS[kind] if overlap_seconds is None else overlap_seconds
        until = now + overlap
        while overlap and any(old_path(settings.keys, purpose, until).exists() for purpose in KINDS[kind]):
            until += 1  # two files of one name would be one key the less
        change = _signed(settings, _change(settings, kind, reason, now, until, changes, old))
        line = format_change(change)
        verify_changes((*changes, parse_change(line)), settings.origin)
        append_line(settings.key_changes, line)
        # Public, and read by processes that may have another user than the one that writes it.
        with file_errors(settings.key_changes):
            settings.key_changes.chmod(0o644)
        reach("rotate.announced")
        _settle(settings, now)
    return change


def settle(settings: Settings, now: int) -> tuple[str, ...]:
    """Finish a rotation that was announced, and destroy keys that are of no use any more. Gives what was done."""
    with _stopped(settings):
        return _settle(settings, now)


def _present(settings: Settings, kind: str) -> dict[str, str]:
    """The public halves of what signs the line: the keys to replace, and the log's own. Nothing was made yet.

    Raises:
        UsageError: ``NoFetchKey``.
        StoreError: "KeyInCredential", "TwoSources"; "MissingSecret", "UnsafeSecret", "BadSecret".
    """
    if kind == "fetch" and not _path(settings, "fetch-rsa").exists():
        raise UsageError("NoFetchKey", f"{settings.keys} has none yet, so there is none to replace")
    purposes = dict.fromkeys((*KINDS[kind], "checkpoint-mldsa44"))
    for purpose in purposes:
        if is_credential(settings.keys, purpose):
            raise StoreError(
                "KeyInCredential", f"{purpose} is a systemd credential, and nothing can be written there",
                hint=f"To rotate, {_PUT_BACK}",
            )
    try:
        return {purpose: _read(settings, _path(settings, purpose), purpose)[1] for purpose in purposes}
    except StoreError as error:
        if error.name != "MissingSecret":
            raise
        hint = "A key's successor is signed by it, and by the log's checkpoint key: restore it from the offline copy."
        hint += f" Or, if it is a systemd credential: {_PUT_BACK}"
        if settings.signer:
            hint += f" If the signer at {settings.signer} has it: stop both, and put the keys back (docs/keys.md)."
        raise StoreError(error.name, error.message, hint=hint) from None


def _make_next(settings: Settings, purpose: str, random: Callable[[int], bytes]) -> None:
    """The new key's file. One that was left by a run that died before it was announced serves as well."""
    path = _path(settings, purpose, ".next")
    if not path.exists():
        write_secret(path, new_fetch_key() if purpose == "fetch-rsa" else random(32))


def _change(
    settings: Settings, kind: str, reason: str, now: int, until: int, changes: tuple[KeyChange, ...],
    old: Mapping[str, str],
) -> KeyChange:
    with closing(open_log(settings, read_only=True)) as store:
        state = store.state()
    keys = [
        Replaced(purpose, old[purpose], _read(settings, _path(settings, purpose, ".next"), purpose)[1])
        for purpose in KINDS[kind]
    ]
    return KeyChange(
        settings.origin, len(changes), hash_change(changes[-1]) if changes else FIRST, now, state.size, state.root,
        kind, until, reason, tuple(keys), old["checkpoint-mldsa44"],
    )


def _signed(settings: Settings, change: KeyChange) -> KeyChange:
    message = change_message(change)

    def sign(purpose: str, end: str = "") -> bytes:
        return _sign(purpose, _read(settings, _path(settings, purpose, end), purpose)[0], message)

    return replace(
        change, log_signature=sign("checkpoint-mldsa44"),
        keys=tuple(
            replace(key, old_signature=sign(key.purpose), new_signature=sign(key.purpose, ".next"))
            for key in change.keys
        ),
    )


def _settle(settings: Settings, now: int) -> tuple[str, ...]:
    changes = read_changes(settings)
    done = []
    latest = {key.purpose: (change, key) for change in changes for key in change.keys}
    for purpose, (change, key) in latest.items():
        coming = _path(settings, purpose, ".next")
        if coming.exists() and _read(settings, coming, purpose)[1] == key.new:
            _switch(settings, change, key)
            done.append(f"{purpose}: the new key is in place")
    if changes:
        _tell(settings, changes)
        reach("rotate.told")
    done += [f"{path.name}: destroyed" for path in destroy_old(settings.keys, now)]
    return tuple(done)


def _switch(settings: Settings, change: KeyChange, key: Replaced) -> None:
    path = _path(settings, key.purpose)
    secret, public = _read(settings, path, key.purpose)
    if public != key.old:
        raise StoreError(
            "KeysDiffer", f"{path} is neither the old key nor the new one that {settings.key_changes} names",
            hint="Put back the key that was there.",
        )
    if change.until > change.time:
        aside = old_path(settings.keys, key.purpose, change.until)
        if not aside.exists():
            write_secret(aside, secret)
    reach("rotate.put_aside")
    with file_errors(path):
        _path(settings, key.purpose, ".next").rename(path)
    sync_directory(settings.keys)
    reach("rotate.switched")


def _tell(settings: Settings, changes: tuple[KeyChange, ...]) -> None:
    """Bring ``public-keys.json`` up to date: it follows from what it says and from the lines."""
    public = load_public_keys(settings)
    new = merge(public, changes)
    if new != public:
        write_public_keys(settings, new)


def merge(public: PublicKeys, changes: tuple[KeyChange, ...]) -> PublicKeys:
    """*public* after *changes*; those that it has already change nothing."""
    vkeys, map_vkeys = list(public.vkeys), list(public.map_vkeys)
    retired, map_retired = list(public.retired_vkeys), list(public.retired_map_vkeys)
    leaf_keys, web = list(public.leaf_keys), dict(public.web)
    for change in changes:
        for key in change.keys:
            if key.purpose in web:
                web[key.purpose] = key.new
            elif change.kind == "leaf":
                raw = decode_public_key(key.new)
                if raw not in leaf_keys:
                    leaf_keys.append(raw)
            elif change.kind in ("checkpoint", "map"):
                now, before = (vkeys, retired) if change.kind == "checkpoint" else (map_vkeys, map_retired)
                if key.old in now:
                    now[now.index(key.old)] = key.new
                if key.old not in before:
                    before.append(key.old)
    return PublicKeys(tuple(vkeys), tuple(leaf_keys), tuple(map_vkeys), tuple(retired), tuple(map_retired), web)
