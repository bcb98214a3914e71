"""Alarms as mail: plain text, the whole alarm as JSON beside it, and the proof as a file of its own.

One address a sink: were there several, and one refused for ever, the others would get each alarm again and again. The
Message-ID comes from the alarm's id, so that a mail sent twice is shown once by most programs. Nothing of an alarm
stands in a header but its kind and name, cut and printable.
"""

from __future__ import annotations

import json
import re
import smtplib
import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from auditor.alarm import plain_lines, printable_line
from auditor.outbox import ALARM_REFUSED, TOO_LARGE, Delivered
from auditor.sinks.settings import Settings
from ktlog.errors import Unreachable
from ktlog.wire.fetch import Fetcher

STARTTLS, TLS, NONE = "starttls", "tls", "none"
TIMEOUT_SECONDS = 30.0
_PORTS = {STARTTLS: 587, TLS: 465, NONE: 25}
# One plain address, without a display name: what SMTP takes as it is, and no header can be made of.
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_HOST = re.compile(r"[A-Za-z0-9.:-]{1,253}")


class Mail:
    """Args: login: (user, password), or None. ca_file: trusted in place of the system's authorities."""

    rewrites = False

    def __init__(
        self, name: str, findings: bool, host: str, port: int, security: str, sender: str, receiver: str,
        login: tuple[str, str] | None = None, ca_file: str | None = None,
    ) -> None:
        self.name = name
        self.findings = findings
        self._host, self._port, self._security = host, port, security
        self._sender, self._receiver = sender, receiver
        self._login = login
        self._ca_file = ca_file

    def send(
        self, document: Mapping[str, Any], reasons: Sequence[str], recent: Callable[[int], list[Delivered]]
    ) -> None:
        """Raises Unreachable unless the server has taken the mail."""
        message = compose(document, reasons, self._sender, self._receiver)
        try:
            self._hand_over(message)
        except ssl.SSLError as error:
            raise Unreachable("TlsFailed", f"{self._host}: {error.reason}") from None
        except smtplib.SMTPResponseException as error:
            # Its text is the server's, and may quote what it was sent: the code says enough.
            own = isinstance(error, smtplib.SMTPDataError) and 500 <= error.smtp_code < 600
            name = TOO_LARGE if error.smtp_code == 552 else ALARM_REFUSED if own else "BadStatus"
            raise Unreachable(name, f"{self._host} answers {error.smtp_code}") from None
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise Unreachable("Refused", f"{self._host}: {type(error).__name__}") from None

    def _hand_over(self, message: EmailMessage) -> None:
        context = ssl.create_default_context(cafile=self._ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Said in EHLO. Without it smtplib would look up, and tell, what this machine is called.
        local = self._sender.rpartition("@")[2]
        if self._security == TLS:
            client = smtplib.SMTP_SSL(self._host, self._port, local, timeout=TIMEOUT_SECONDS, context=context)
        else:
            client = smtplib.SMTP(self._host, self._port, local, timeout=TIMEOUT_SECONDS)
        with client:
            if self._security == STARTTLS:
                client.starttls(context=context)  # raises when the server does not offer it: no way back to plain text
            if self._login is not None:
                client.login(*self._login)
            client.send_message(message, self._sender, [self._receiver])


def compose(document: Mapping[str, Any], reasons: Sequence[str], sender: str, receiver: str) -> EmailMessage:
    """The mail of an alarm."""
    message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
    message["From"], message["To"] = sender, receiver
    message["Subject"] = f"[ktlog] {_short(document['name'])} at {_short(document['origin'])}"
    message["Date"] = format_datetime(datetime.fromtimestamp(document["time"], UTC))
    message["Message-ID"] = f"<{document['id']}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n".join(plain_lines(document, reasons)) + "\n")
    message.add_attachment(
        json.dumps(document, indent=1).encode("ascii"), maintype="application", subtype="json", filename="alarm.json"
    )
    proof = document.get("tlog_proof")
    if isinstance(proof, str):
        message.add_attachment(
            proof.encode("utf-8", "replace"), maintype="application", subtype="octet-stream",
            filename="entry.tlog-proof",
        )
    return message


def _short(text: str) -> str:
    return printable_line(text)[:100]


def make(settings: Settings, fetcher: Callable[[], Fetcher]) -> Mail:
    security, host = settings.text("security", STARTTLS), settings.text("host")
    if security not in _PORTS:
        raise settings.bad(f"security is one of {', '.join(_PORTS)}")
    if not _HOST.fullmatch(host):
        raise settings.bad("host is the name or the address of a mail server")
    if security == NONE and host not in _LOOPBACK:
        raise settings.bad("without TLS only a mail server of this machine is taken")
    addresses = [settings.text(member) for member in ("from", "to")]
    for address in addresses:
        if not _ADDRESS.fullmatch(address):
            raise settings.bad(f"{address[:80]!a} is not one plain address")
    user, login = settings.optional("user"), None
    if user is not None:
        try:
            login = user, settings.secret("password_file").decode("utf-8")
        except UnicodeDecodeError:
            raise settings.bad("the file of password_file holds no text") from None
    ca_file = settings.optional("ca_file")
    return Mail(
        settings.name, settings.findings, host, settings.number("port", _PORTS[security], 1, 65535), security,
        addresses[0], addresses[1], login, None if ca_file is None else str(settings.path("ca_file")),
    )
