"""A C2SP tlog-witness: it cosigns the growth of logs, and never their rewriting.

``decide`` is the whole judgement, without I/O; ``store`` is what the witness must never
forget; ``keys`` is who it is; ``web`` puts the three behind HTTP; ``cli`` runs them.
"""
