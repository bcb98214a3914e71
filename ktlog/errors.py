"""Every error that crosses a package boundary.

::

    KtlogError                     never raised itself; .exit_code is the command line's
    ├─ EncodingError          5    bytes do not parse, or parse but not canonically
    ├─ VerificationError           they parse, but are untrue; .name is the stable sub-case
    │  ├─ Invalid             5    a proof, signature or commitment does not hold
    │  ├─ NotLogged           4    what was asked for is not in the log
    │  ├─ PolicyUnmet         6    the trust policy is unsafe or not satisfied (.have, .need)
    │  ├─ Stale               9    true once, but too old or rolled back
    │  └─ Forked              7    misbehaviour proven (.evidence convicts the log)
    ├─ MessageRejected        5    a directory refuses a message; .code is stable
    │  └─ RateLimited         5    its sender must wait first (.retry_after_ms, .limit, .reset)
    ├─ Unreachable            3    nothing was learnt; trying again is safe
    ├─ StoreError             8    local state cannot be used, or contradicts itself
    │  └─ Conflict            8    a compare-and-set lost; carries .stored
    └─ UsageError             2    the command or its configuration asks for the impossible

No ``ValueError``, ``binascii.Error`` or driver exception leaves a package. Exit code 0 is
success and 1 an internal error, that is, a bug. (Design decision 9.)
"""

from __future__ import annotations

from typing import Any


class KtlogError(Exception):
    """Base of every error here. ``name`` is stable; the message is for people."""

    exit_code = 1

    def __init__(self, name: str, message: str = "", *, hint: str = "") -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message or name
        self.hint = hint

    def __str__(self) -> str:
        text = self.message if self.message == self.name else f"{self.name}: {self.message}"
        return printable(text)

    def diagnostics(self) -> str:
        """What happened, to what, and what to do next, for a person."""
        return f"{self}\n{printable(self.hint)}" if self.hint else str(self)

    def as_dict(self) -> dict[str, Any]:
        """The same for a machine: class, name, message and exit code."""
        return {
            "class": type(self).__name__,
            "name": self.name,
            "message": self.message,
            "exit_code": self.exit_code,
        }


def printable(text: str) -> str:
    """*text* without what could move a terminal's cursor: messages quote what strangers wrote."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


class EncodingError(KtlogError):
    """Bytes do not parse, or are not in the one canonical form."""

    exit_code = 5


class VerificationError(KtlogError):
    """Something parses but is untrue."""

    exit_code = 5


class Invalid(VerificationError):
    """A proof, a signature or a commitment does not hold."""

    exit_code = 5


class NotLogged(VerificationError):
    """What was asked for is not in the log."""

    exit_code = 4


class PolicyUnmet(VerificationError):
    """The trust policy is unsafe, or too few cosigners stand behind a checkpoint."""

    exit_code = 6

    def __init__(
        self, name: str, message: str = "", *, hint: str = "",
        have: int | None = None, need: int | None = None,
    ) -> None:
        super().__init__(name, message, hint=hint)
        self.have = have
        self.need = need


class Stale(VerificationError):
    """True once, but too old, or behind what was already trusted."""

    exit_code = 9


class Forked(VerificationError):
    """The log is proven to have misbehaved; ``evidence`` (bytes) convicts it."""

    exit_code = 7

    def __init__(
        self, name: str, message: str = "", *, hint: str = "", evidence: bytes | None = None
    ) -> None:
        super().__init__(name, message, hint=hint)
        self.evidence = evidence


class MessageRejected(KtlogError):
    """An honest refusal of a protocol message; ``code`` is stable, nothing was changed.

    weight: how many refusals it counts for against its sender, where the code alone does not say.
    """

    exit_code = 5

    def __init__(self, code: str, message: str = "", *, hint: str = "", weight: int | None = None) -> None:
        super().__init__(code, message, hint=hint)
        self.weight = weight

    @property
    def code(self) -> str:
        return self.name


class RateLimited(MessageRejected):
    """The sender, or somebody at its address, had too many refusals and must wait.

    retry_after_ms: how long. limit: requests allowed until then. reset: Unix seconds at which the wait is over.
    code: another one when something else than refusals was too much.
    """

    def __init__(
        self, message: str, *, retry_after_ms: int, limit: int, reset: int, code: str = "rate_limited"
    ) -> None:
        super().__init__(code, message)
        self.retry_after_ms = retry_after_ms
        self.limit = limit
        self.reset = reset


class Unreachable(KtlogError):
    """Nothing was learnt: a time-out, a refused connection, an answer that is no answer."""

    exit_code = 3


class StoreError(KtlogError):
    """Local state cannot be read, written or trusted."""

    exit_code = 8


class Conflict(StoreError):
    """A compare-and-set lost. ``stored`` is what was found instead."""

    def __init__(self, name: str, message: str = "", *, hint: str = "", stored: Any = None) -> None:
        super().__init__(name, message, hint=hint)
        self.stored = stored


class UsageError(KtlogError):
    """The command, or its configuration, asks for something that cannot be."""

    exit_code = 2
