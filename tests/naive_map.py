"""The map by its definition, slowly: recursion over bit strings. It imports nothing of the product."""

from __future__ import annotations

from hashlib import sha256

MISSING = bytes(32)


def bits(index: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in index)


def leaf_hash(index: bytes, commitment: bytes) -> bytes:
    return sha256(b"\x02" + index + commitment).digest()


def root(leaves: dict[bytes, bytes], prefix: str = "") -> bytes:
    """Hash of the subtree below *prefix* of the tree that maps each index to a commitment."""
    below = {index: value for index, value in leaves.items() if bits(index).startswith(prefix)}
    if not below:
        return MISSING
    if len(below) == 1:
        return leaf_hash(*next(iter(below.items())))
    return sha256(b"\x03" + root(below, prefix + "0") + root(below, prefix + "1")).digest()


def search(leaves: dict[bytes, bytes], index: bytes) -> tuple[int, int, tuple[bytes, bytes] | None, list[bytes]]:
    """(result type, depth, the leaf it ended at, hashes from left to right) of a search for *index*."""
    prefix, left, right = "", [], []
    while True:
        below = {i: v for i, v in leaves.items() if bits(i).startswith(prefix)}
        if len(below) <= 1:
            leaf = next(iter(below.items()), None)
            kind = 3 if leaf is None else 1 if leaf[0] == index else 2
            return kind, len(prefix), leaf, left + right[::-1]
        here = bits(index)[len(prefix)]
        if here == "1":
            left.append(root(below, prefix + "0"))
        else:
            right.append(root(below, prefix + "1"))
        prefix += here


Found = tuple[bytes, bytes, int, int, tuple[bytes, bytes] | None]


def update(before: dict[bytes, bytes], changed: dict[bytes, bytes], prefix: str = "") -> tuple[list[Found], list[bytes]]:
    """(index, new commitment, result type, depth, the leaf there before) of every change, and the hashes beside."""
    here = [index for index in sorted(changed) if bits(index).startswith(prefix)]
    below = {index: value for index, value in before.items() if bits(index).startswith(prefix)}
    if not here:
        return [], [root(below, prefix)]
    if len(below) <= 1:
        leaf = next(iter(below.items()), None)
        return [
            (i, changed[i], 3 if leaf is None else 1 if leaf[0] == i else 2, len(prefix), leaf) for i in here
        ], []
    left, right = (update(below, changed, prefix + side) for side in "01")
    return left[0] + right[0], left[1] + right[1]


def update_bytes(leaf_index: int, before: dict[bytes, bytes], changed: dict[bytes, bytes]) -> bytes:
    """The published update: docs/protocol.md, section 6."""
    found, hashes = update(before, changed)
    rows = b"".join(
        index + new + depth.to_bytes(2, "big") + bytes([kind])
        + (leaf[1] if kind == 1 else b"" if leaf is None else leaf[0] + leaf[1])
        for index, new, kind, depth, leaf in found
    )
    return (
        b"ktlog-map-update/v1\n" + leaf_index.to_bytes(8, "big") + len(found).to_bytes(4, "big") + rows
        + len(hashes).to_bytes(4, "big") + b"".join(hashes)
    )
