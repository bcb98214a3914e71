"""A C2SP tlog-witness: it cosigns the growth of logs, and never their rewriting. And a verifier, which reads them too.

``decide`` is the whole judgement, without I/O; ``store`` is what the witness must never
forget; ``keys`` is who it is; ``web`` puts the three behind HTTP; ``cli`` runs them.

A verifier follows a log (``follow``): it checks the entries (``inputlog``), derives the map (``deriver``, on
``derivation``, ``rules`` and ``maptree``), compares the output leaves (``leaves``), remembers (``replays``) and accuses
(``accuse``); ``verifier`` stands before the signature.
"""
