"""Sign leaves in this process, on all its cores: what a sequencer is given as ``sign_entries``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ktlog.operator.keys import LeafKey
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import make_entry

SignEntries = Callable[[Sequence[bytes]], list[bytes]]
"""Makes one entry of each preimage, in order, each signed exactly once.

ML-DSA signatures are hedged: asked again, it makes other entries. Raises StoreError when nothing was signed, or
nobody knows; the process must end then, and what it asked for be forgotten.
"""


def local_signer(dialect: Dialect, key: LeafKey, threads: int | None = None) -> SignEntries:
    """A ``SignEntries`` with *key*. Signing takes about 1 ms and leaves the interpreter free meanwhile."""
    threads = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, "sign")

    def sign_some(preimages: Sequence[bytes]) -> list[bytes]:
        return [make_entry(dialect, preimage, key.private, key.public) for preimage in preimages]

    def sign(preimages: Sequence[bytes]) -> list[bytes]:
        # A share of the batch for each thread; what would be no gain, such as one message alone, stays here.
        share = -(-len(preimages) // threads)
        shares = [preimages[start : start + share] for start in range(0, len(preimages), max(share, 1))]
        if len(shares) < 2:
            return sign_some(preimages)
        return [entry for entries in pool.map(sign_some, shares) for entry in entries]

    return sign
