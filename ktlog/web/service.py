"""The web workers' process: ``python -m ktlog.web.service --dir DIR --listen HOST:PORT``."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from flask import Flask

from ktlog.config import load_settings
from ktlog.errors import KtlogError
from ktlog.operator.lifeline import end_with_parent
from ktlog.web.app import create_app
from ktlog.wire import logs
from ktlog.wire.httpd import serve
from ktlog.wire.notify import Notifier


def main(arguments: list[str]) -> int:
    directory = Path(arguments[arguments.index("--dir") + 1])
    listen = arguments[arguments.index("--listen") + 1]
    try:
        settings = load_settings(directory, {"listen": listen})
        logs.configure_daemon(settings.log_format, settings.log_level)
        end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))

        notifier = Notifier.from_environment()
        addresses: list[str] = []
        first, told = os.pipe()
        os.set_blocking(first, False)
        os.write(told, b"1")

        def make_app() -> Flask:
            """In each worker. The first that can answer says so: nobody is told of a log that did not start."""
            app = create_app(settings)
            with suppress(BlockingIOError):
                os.read(first, 1)
                logs.say(f"{settings.origin} listens on http://{addresses[0]}")
                notifier.send("READY=1")
            return app

        serve(
            make_app, listen, workers=settings.workers, threads=settings.threads,
            name=f"ktlog {settings.origin}", on_ready=addresses.append,
            on_starting=lambda: logs.adopt("gunicorn.error"), whole=settings.body_limit_bytes + 1,
        )
    except KtlogError as error:
        logs.say_why(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
