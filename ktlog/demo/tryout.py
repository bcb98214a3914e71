"""What a log needs around it to be tried on one machine: names, a certificate for them, and an instance with an actor.

    python -m ktlog.demo.tryout --dir D --actor @alice@example.social keys.example.com w1.example.net

D gets ``server.pem`` and ``server.key`` for those names, signed by ``ca.pem``, an authority that is gone at once;
``dial.json``, a table (``KTLOG_DIAL``) that leads them to this machine's port 443 and trusts that authority; and
``instance``, for ``python -m ktlog.demo.instance``. A log with a name of its own needs none of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ktlog.demo.instance import prepare_instance
from ktlog.demo.pki import CA_FILE, create_pki
from ktlog.durable import write_atomic
from ktlog.errors import KtlogError, UsageError

ADDRESS = "127.0.0.1:443"


def prepare(directory: Path, names: list[str], actor: str) -> None:
    """Write all of it to *directory*. actor: a handle.

    Raises:
        UsageError: ``BadHandle``; those of prepare_instance. EncodingError: ``BadHost``. StoreError: as write_atomic.
    """
    user, at, domain = actor.removeprefix("@").partition("@")
    if not (user and at and domain):
        raise UsageError("BadHandle", f"{actor!r} is not @NAME@DOMAIN")
    names = sorted({*names, domain})
    prepare_instance(directory / "instance", domain, [user])
    create_pki(directory, names)
    table = {"ca_file": CA_FILE, "hosts": dict.fromkeys(names, ADDRESS)}
    write_atomic(directory / "dial.json", json.dumps(table, indent=1).encode() + b"\n")


def main(arguments: list[str] | None = None) -> int:
    """Prepare a directory. The exit code is the error's."""
    parser = argparse.ArgumentParser(prog="ktlog.demo.tryout", description="Names, certificate and instance for a try.")
    parser.add_argument("--dir", required=True, type=Path, help="where to put everything")
    parser.add_argument("--actor", required=True, metavar="@NAME@DOMAIN", help="whom the instance knows")
    parser.add_argument("names", nargs="+", metavar="NAME", help="a host name on the certificate")
    options = parser.parse_args(arguments)
    try:
        prepare(options.dir, options.names, options.actor)
    except KtlogError as error:
        print(f"ktlog tryout: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
