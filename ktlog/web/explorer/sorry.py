"""Pages that say why there is no other page."""

from __future__ import annotations

from flask import Response, current_app

from ktlog.errors import EncodingError, KtlogError, MessageRejected
from ktlog.pkd.actors import Actor
from ktlog.web.errors import RETRY_SECONDS, TABLE
from ktlog.web.explorer.answer import Page, asked_format, show


def failed(error: KtlogError) -> Response:
    """A refusal as a page, under the status that the API would give it."""
    if isinstance(error, MessageRejected):
        code, words = error.code, error.message
    elif isinstance(error, EncodingError):
        code, words = "bad_request", error.message
    else:
        current_app.logger.error("%s", error.diagnostics())
        code, words = "unavailable", "the log's store does not answer just now; try again shortly"
    return message(TABLE.get(code, ("", 400))[1], "That did not work", f"{words[:1].upper()}{words[1:]}.", code)


def message(status: int, title: str, words: str, code: str) -> Response:
    """A page that says one thing and names nobody."""
    try:
        form = asked_format()
    except EncodingError:
        form = "html"
    answer = show(Page("message", title, {"code": code, "message": words}, status), form)
    if status == 503:
        answer.headers["Retry-After"] = RETRY_SECONDS
    return answer


def unknown(erased: Actor | None) -> Response:
    """Of somebody without a page. Whoever was erased is named by nothing here, title and links included."""
    if erased is not None:
        return message(
            404, "Erased",
            "This log knew the actor that you asked for, and erased everything that it knew. There is nothing to show."
            " That an erasure took place stays in the log, without a name.", "erased",
        )
    return message(
        404, "Never enrolled",
        "The actor that you asked for is not in this log and never was, says this log. An app with a policy gets that"
        " proven. It says nothing about other logs.", "never_enrolled",
    )
