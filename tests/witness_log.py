"""A log in memory for the witness tests: real trees, real signatures, and lies on demand."""

from __future__ import annotations

from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Note, SignatureLine, format_note, signer_from_seed
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_consistency, root_hash

NOW = 1_700_000_000


class Log:
    """Signs any checkpoint of its own tree, or of none, under one or more keys."""

    def __init__(
        self,
        origin: str = "example.com/log",
        *,
        key_name: str | None = None,
        seed: int = 1,
        algorithms: tuple[int, ...] = (ED25519, COSIGNATURE_MLDSA44),
        prefix: bytes = b"entry",
    ) -> None:
        self.origin = origin
        self.signers = tuple(
            signer_from_seed(key_name or origin, algorithm, bytes([seed]) * 32) for algorithm in algorithms
        )
        self.prefix = prefix

    @property
    def vkeys(self) -> tuple:
        return tuple(signer.vkey for signer in self.signers)

    def _reader(self, tree_size: int):
        return leaf_reader([hash_leaf(self.prefix + b" %d" % index) for index in range(tree_size)])

    def root(self, tree_size: int) -> bytes:
        return root_hash(tree_size, self._reader(tree_size))

    def proof(self, old_size: int, tree_size: int) -> list[bytes]:
        """The consistency proof; empty where none is needed."""
        if old_size in (0, tree_size):
            return []
        return prove_consistency(old_size, tree_size, self._reader(tree_size))

    def note(
        self,
        tree_size: int,
        *,
        root: bytes | None = None,
        extensions: tuple[str, ...] = (),
        extra: tuple[SignatureLine, ...] = (),
    ) -> bytes:
        """A signed checkpoint; 0x06 keys sign it even where an honest signer would refuse."""
        checkpoint = Checkpoint(self.origin, tree_size, self.root(tree_size) if root is None else root)
        honest_text = format_checkpoint(checkpoint)
        text = honest_text + "".join(f"{line}\n" for line in extensions).encode()
        lines = tuple(
            # An ML-DSA-44 line does not cover the extension lines, so it fits a text with any.
            signer.sign(text if signer.vkey.algorithm == ED25519 else honest_text, NOW)
            for signer in self.signers
        )
        return format_note(Note(text, lines + extra))

    def submission(
        self, old_size: int, tree_size: int, *, proof: list[bytes] | None = None, **note_options
    ) -> bytes:
        """An add-checkpoint body, with the right proof unless another is given."""
        if proof is None:
            proof = self.proof(old_size, tree_size) if old_size < tree_size else []
        return join(old_size, proof, self.note(tree_size, **note_options))


def join(old_size: int | str, proof: list[bytes], note: bytes) -> bytes:
    lines = "".join(f"{encode_base64(hash_)}\n" for hash_ in proof)
    return f"old {old_size}\n{lines}\n".encode() + note
