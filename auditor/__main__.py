"""``python -m auditor`` is the ktlog-auditor command."""

from auditor.cli import main

main()
