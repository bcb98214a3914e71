"""Faults on purpose: a log is hurt, started again, and judged. ``python -m tests.faults --count 500 --seed 1``.

A run takes a prepared log, forks the sequencer's process from it (``ktlog.operator.service.main``, the command line's
own entry), feeds it messages, lets one fault happen, starts it again, and judges what is left by code that shares
nothing with the log's (``judge``). What was answered and what was signed is kept here, outside of the fault's reach.

``plan`` says what a fault is, ``calls`` and ``vfs`` carry one out inside the process, ``disk`` knows what a power
cut would leave, ``site`` is the prepared log with its witness, ``kinds`` the ways to be hurt, and ``__main__`` draws.
"""
