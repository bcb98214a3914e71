"""``python -m ktlog`` is the ktlog command."""

from ktlog.entry import ktlog

ktlog()
