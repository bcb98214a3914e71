"""Every error answer in one table: our stable code, PKD's code and the HTTP status.

Source: PKD specification, "Error Responses". ``error`` is the specification's code, ``code`` is
ours, which tells the cases apart that the specification lumps together.
"""

from __future__ import annotations

import json
from http import HTTPStatus

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from ktlog.errors import EncodingError, KtlogError, MessageRejected, StoreError, Unreachable
from ktlog.web.asked import note_refusal
from ktlog.wire.httpsig import ACCEPT_SIGNATURE

ERROR_CONTEXT = "fedi-e2ee:v1/api/error"

# our code -> (PKD's code, HTTP status); what is not named here is an invalid request.
TABLE: dict[str, tuple[str, int]] = {
    "unauthorized": ("unauthorized", 401),
    "unknown_http_key": ("unauthorized", 401),
    "actor_unreachable": ("unauthorized", 401),
    "actor_gone": ("unauthorized", 401),
    "bad_signature": ("invalid_signature", 400),
    "bad_token_signature": ("invalid_signature", 400),
    "unknown_key_id": ("invalid_signature", 400),
    "merkle_root_stale": ("merkle_root_stale", 400),
    "duplicate_message": ("duplicate_message", 409),
    "actor_is_fireproof": ("fireproof", 403),
    "actor_mismatch": ("unauthorized", 403),
    "domain_mismatch": ("unauthorized", 403),
    "directory_not_allowed": ("unauthorized", 403),
    "domain_not_served": ("unauthorized", 403),
    "burndown_disabled": ("unauthorized", 403),
    "instance_blocked": ("unauthorized", 403),
    "instance_not_allowed": ("unauthorized", 403),
    "directory_key_mismatch": ("unauthorized", 403),
    "directory_unreachable": ("unauthorized", 403),
    "otp_required": ("unauthorized", 403),
    "bad_otp": ("unauthorized", 403),
    "otp_reused": ("unauthorized", 403),
    "not_found": ("not_found", 404),
    "not_published": ("not_found", 404),
    "unknown_root": ("not_found", 404),
    "too_large": ("invalid_request", 413),
    "totp_exists": ("invalid_request", 409),
    "totp_moved": ("invalid_request", 409),
    "totp_absent": ("invalid_request", 409),
    "bad_totp_secret": ("invalid_request", 406),
    "bad_new_otp": ("invalid_request", 406),
    "bad_cosignature": ("invalid_signature", 400),
    "unknown_witness": ("unauthorized", 403),
    "rate_limited": ("rate_limited", 429),
    "too_many_messages": ("rate_limited", 429),
    "too_many_at_once": ("rate_limited", 429),
    "replayed_request": ("unauthorized", 401),
    "wrong_host": ("invalid_request", 421),
    "replica_stale": ("internal_error", 503),
    "overloaded": ("internal_error", 503),
    "keys_differ": ("internal_error", 503),
    "paused": ("internal_error", 503),
    "unavailable": ("internal_error", 503),
    "internal_error": ("internal_error", 500),
}
INVALID_REQUEST = ("invalid_request", 400)
RETRY_SECONDS = "2"
NOTHING_HERE = "there is nothing at this address"
TOO_LARGE = "the request body is too large"
PAUSE_SECONDS = "120"
"""When to come again while the operator lets no messages in."""


def error_response(code: str, message: str) -> Response:
    """An error in the specification's format. The message never quotes a secret."""
    pkd_code, status = TABLE.get(code, INVALID_REQUEST)
    note_refusal(request.environ, code, request.endpoint)
    response = jsonify(_members(pkd_code, code, message))
    response.status_code = status
    response.headers["Cache-Control"] = "no-store"  # some caches keep a 404 for minutes, and soon it is none
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["Accept-Signature"] = ACCEPT_SIGNATURE
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = PAUSE_SECONDS if code == "paused" else RETRY_SECONDS
    return response


def nothing_here() -> Response:
    """Of an address that is none of this server's."""
    return error_response("not_found", NOTHING_HERE)


def _members(pkd_code: str, code: str, message: str) -> dict[str, str]:
    return {"!pkd-context": ERROR_CONTEXT, "error": pkd_code, "message": message, "code": code}


def _unread(code: str, message: str) -> tuple[str, bytes]:
    return "application/json", json.dumps(_members("invalid_request", code, message)).encode() + b"\n"


UNREAD = {
    400: _unread("bad_request", "this is not an HTTP request, or it could be read in two ways"),
    413: _unread("too_large", TOO_LARGE),
    431: _unread("bad_request", "the request's first line and header are too long"),
    501: _unread("bad_request", "a body comes with its length, or in chunks"),
    505: _unread("bad_request", "this server speaks HTTP/1.1"),
}
"""What our HTTP server says to what it does not read (ktlog.wire.whole): content type and body, by HTTP status."""


def register_errors(app: Flask) -> None:
    """Make every exception an answer of the one format; nothing internal leaks out."""

    @app.errorhandler(MessageRejected)
    def refused(error: MessageRejected) -> Response:
        return error_response(error.code, error.message)

    @app.errorhandler(EncodingError)
    def malformed(error: EncodingError) -> Response:
        return error_response("bad_request", str(error))

    @app.errorhandler(StoreError)
    @app.errorhandler(Unreachable)
    def unavailable(error: KtlogError) -> Response:
        app.logger.error("%s", error.diagnostics())
        return error_response("unavailable", "the log's store or its sequencer does not answer; try again shortly")

    @app.errorhandler(KtlogError)
    def internal(error: KtlogError) -> Response:
        app.logger.error("%s", error.diagnostics())
        return error_response("internal_error", "an internal error; nothing was changed")

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        status = error.code or 500
        if status == HTTPStatus.NOT_FOUND:
            return nothing_here()
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return error_response("too_large", TOO_LARGE)
        response = error_response("bad_request", error.name)
        response.status_code = status
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))  # RFC 9110, section 15.5.6
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        app.logger.exception("unexpected error", exc_info=error)
        return error_response("internal_error", "an internal error; whether anything was accepted, api/history tells")
