"""``python -m ktlog`` is the ktlog command."""

from ktlog.cli import main

main()
