"""The explorer's pages, asked of the application itself."""

from __future__ import annotations

from urllib.parse import quote

from ktlog.web.app import create_app
from tests.operator_world import ORIGIN
from tests.reading_log import ReadingLog


class Site:
    """The application, as a browser asks it."""

    def __init__(self, log: ReadingLog) -> None:
        self.log = log
        self.app = create_app(log.settings)
        self.client = self.app.test_client()

    def ask(self, target: str, status: int = 200, **headers: str):
        answer = self.client.get(target, headers={"Host": ORIGIN, **headers})
        assert answer.status_code == status, answer.data[:800]
        return answer

    def json(self, target: str, status: int = 200):
        return self.ask(f"{target}{'&' if '?' in target else '?'}format=json", status).json

    def found(self, text: str, status: int = 303) -> str | None:
        return self.ask(f"/search?q={quote(text, safe='')}", status).headers.get("Location")

    def paste(self, text: str | bytes, **form: str):
        data = {"checkpoint": text if isinstance(text, str) else text.decode(), **form}
        return self.client.post("/checkpoints?format=json", data=data, headers={"Host": ORIGIN})


def page(actor_id: str, rest: str = "") -> str:
    return f"/a/{quote(actor_id, safe='')}{rest}"


def readable(html: str) -> str:
    """*html* without the places where a long name may be broken."""
    return html.replace("<wbr>", "")
