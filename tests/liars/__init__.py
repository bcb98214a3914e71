"""A zoo of lying logs, and honest ones under bad weather: what the auditor must catch, and what it must never accuse.

``log`` is the simulator: a log with its map and witnesses in memory, everything signed by real keys, which serves what a
log serves; ``tricks`` is its dishonest half, ``names`` its keys. ``zoo`` is the table of lies, a line each: the lie, the
name it must be found under, the evidence it leaves, and the check that finds it; ``checks`` turns checks off. ``judges``
are the auditor's commands without their command line. ``weather`` draws honest runs; ``python -m tests.liars --count 500
--seed 1`` plays them, and ``--only N`` plays one again.
"""
