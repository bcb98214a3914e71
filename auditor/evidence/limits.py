"""How much a claim may hold. A file comes from a stranger, and whoever checks it should not pay for it."""

MAX_CLAIM_BYTES = 32 << 20
MAX_BLOB_BYTES = 4 << 20
MAX_ENTRIES = 1024
"""Two Argon2id commitments an entry, some 50 ms each: a file of this many takes a minute or two of one core."""
MAX_ATTRIBUTES = 16
MAX_HASHES = 128
MAX_INDEX = 1 << 63
MAX_MARKS = 1 << 18
"""Commas, and brackets that open: what bounds how many values a JSON text can make."""
