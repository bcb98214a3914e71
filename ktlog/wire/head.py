"""The head of an HTTP answer, read strictly.

Python's own reader forgives much: it takes ``HTTP/0.9 +200`` for a status line, an informational ``103`` for
the answer (so that the real one is read as the answer to the next request on the connection), the first of two lengths,
and it drops every header after a line that is none. Two readers that disagree about where an answer ends, or
what it says, are what request smuggling and cache poisoning are made of, so here nothing is forgiven.

Spec: RFC 9112 §4, §5, §6; RFC 9110 §5.3, §15.2.
"""

from __future__ import annotations

import email.errors
import http.client
import re
from collections.abc import Mapping

#: Informational answers (1xx) that may come before the answer.
MAX_INFORMATIONAL = 8

# What is read once, by us or by the HTTP library. Two lines of one of these have no one meaning.
_ONCE = frozenset({
    "content-digest", "content-encoding", "content-length", "content-type", "date", "location", "retry-after",
    "signature", "signature-input", "transfer-encoding",
})
_LINE_BYTES = 65536
_STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?\r?\n")
_SWITCHING_PROTOCOLS = 101
# What the library's parser, which is one for mail, says about headers; on multipart bodies it has opinions too.
_HEADER_DEFECTS = (
    email.errors.FirstHeaderLineIsContinuationDefect, email.errors.HeaderDefect,
    email.errors.MisplacedEnvelopeHeaderDefect, email.errors.MissingHeaderBodySeparatorDefect,
)


class BadHead(http.client.HTTPException):
    """The head of an answer that can be read in two ways, or in none."""


class StrictResponse(http.client.HTTPResponse):
    """The standard library's answer, with a head that has one meaning."""

    def begin(self) -> None:
        """Read the head.

        Raises:
            http.client.HTTPException: it is none. RemoteDisconnected: nothing came at all.
        """
        if self.headers is not None:
            return
        super().begin()
        for defect in self.headers.defects:
            if isinstance(defect, _HEADER_DEFECTS):
                raise BadHead(f"a header does not parse: {type(defect).__name__}")
        names = [name.lower() for name, _ in self.headers.raw_items()]
        repeated = sorted(name for name in _ONCE if names.count(name) > 1)
        if repeated:
            raise BadHead(f"{repeated[0]} is there twice")
        for name, value in self.headers.raw_items():
            if "\r" in value or "\n" in value or "\0" in value:
                raise BadHead(f"{name[:100]!a} goes over more than one line")
        if "transfer-encoding" in names:
            if "content-length" in names:
                raise BadHead("a transfer coding and a length: one of them lies")
            if self.headers["transfer-encoding"].strip().lower() != "chunked":
                raise BadHead("a transfer coding that was not asked for")

    def _read_status(self) -> tuple[str, int, str]:
        """The status line of the answer itself; those of a few informational ones before it are passed over."""
        for _ in range(MAX_INFORMATIONAL + 1):
            line = self.fp.readline(_LINE_BYTES + 1)
            if not line:
                raise http.client.RemoteDisconnected("the server hung up without an answer")
            match = _STATUS_LINE.fullmatch(line)
            if match is None:
                raise http.client.BadStatusLine(ascii(line[:100]))
            status = int(match[2])
            if status >= 200:
                return match[1].decode("ascii"), status, (match[3] or b"").decode("latin-1")
            if status == _SWITCHING_PROTOCOLS:
                raise BadHead("the server changes to a protocol that was not asked for")
            http.client.parse_headers(self.fp)
        raise BadHead(f"more than {MAX_INFORMATIONAL} informational answers")


def joined_fields(answer_headers: Mapping[str, str]) -> dict[str, str]:
    """Header fields by name in lower case, those that came on several lines joined by a comma.

    answer_headers: what has an ``items`` that gives repeated lines apart.
    """
    fields: dict[str, str] = {}
    for name, value in answer_headers.items():
        key = name.lower()
        fields[key] = f"{fields[key]}, {value}" if key in fields else value
    return fields
