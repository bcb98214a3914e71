"""The web workers' process: ``python -m ktlog.web.service --dir DIR --listen HOST:PORT``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from ktlog.config import load_settings
from ktlog.errors import KtlogError
from ktlog.operator.lifeline import end_with_parent
from ktlog.web.app import create_app
from ktlog.wire.httpd import serve


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    directory = Path(arguments[arguments.index("--dir") + 1])
    listen = arguments[arguments.index("--listen") + 1]
    try:
        settings = load_settings(directory, {"listen": listen})
        end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))

        def ready(address: str) -> None:
            print(f"ktlog: {settings.origin} listens on http://{address}", file=sys.stderr, flush=True)

        serve(
            lambda: create_app(settings), listen, workers=settings.workers, threads=settings.threads,
            name=f"ktlog {settings.origin}", on_ready=ready,
        )
    except KtlogError as error:
        print(f"ktlog: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
