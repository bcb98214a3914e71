"""Where a log keeps what it must not lose.

``contracts`` says what is promised, ``memory``, ``sqlite`` and ``tilefiles`` keep the promises. This
package imports none of them, so that a program pays only for the store that it uses.
"""
