"""``POST /api/totp/...``: an instance enrolls, rotates or removes its TOTP secret."""

from __future__ import annotations

from flask import Blueprint, Response

from ktlog.web.api import answer_json
from ktlog.web.context import context
from ktlog.web.guarding import current_request, guarded

totp = Blueprint("totp", __name__, url_prefix="/api/totp")


def done(operation: str) -> Response:
    return answer_json(f"totp/{operation}", {"success": True, "time": str(context().now())})


@totp.post("/enroll")
@guarded
def enroll() -> Response:
    context().totp.enroll(current_request())
    return done("enroll")


@totp.post("/disenroll")
@guarded
def disenroll() -> Response:
    context().totp.disenroll(current_request())
    return done("disenroll")


@totp.post("/rotate")
@guarded
def rotate() -> Response:
    context().totp.rotate(current_request())
    return done("rotate")
