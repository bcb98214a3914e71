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
