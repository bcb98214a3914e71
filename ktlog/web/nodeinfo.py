"""NodeInfo: what kind of server this is, for those who count them, and where its log is, for everybody else.

No numbers of users: who they are is nobody's business, and the log's size is in its checkpoint.

Spec: NodeInfo 2.1; FEP-f1d5.
"""

from __future__ import annotations

import json

from flask import Blueprint, Response

from ktlog import __version__
from ktlog.web.context import context

SCHEMA = "http://nodeinfo.diaspora.software/ns/schema/2.1"
PKD_VERSION = "0.8"

nodeinfo = Blueprint("nodeinfo", __name__)


def _answer(document: dict[str, object], content_type: str) -> Response:
    return Response(json.dumps(document), content_type=content_type)


@nodeinfo.get("/.well-known/nodeinfo")
def discovery() -> Response:
    ctx = context()
    links = [{"rel": SCHEMA, "href": f"{ctx.settings.url}/nodeinfo/2.1"}]
    return _answer({"links": links}, "application/json")


@nodeinfo.get("/nodeinfo/2.1")
def document() -> Response:
    ctx = context()
    settings = ctx.settings
    return _answer({
        "version": "2.1",
        "software": {"name": "ktlog", "version": __version__},
        "protocols": ["activitypub"],
        "services": {"inbound": [], "outbound": []},
        "openRegistrations": False,
        "usage": {"users": {}},
        "metadata": {
            "pkd": {
                "spec": PKD_VERSION,
                "api": f"{settings.url}/api",
                "actor": settings.actor_id,
                "origin": settings.origin,
                "dialect": settings.dialect,
                "checkpoint": f"{settings.url}/checkpoint",
                "vkeys": list(ctx.public_keys.vkeys),
                "extensions": sorted(settings.aux_type_names()),
                "non-conformant": sorted(settings.compat_names()),
            },
        },
    }, f'application/json; profile="{SCHEMA}#"')
