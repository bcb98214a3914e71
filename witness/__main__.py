"""``python -m witness`` is the ktlog-witness command."""

from witness.cli import main

main()
