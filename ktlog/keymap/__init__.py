"""The directory map: which keys an actor has now, provably all of them. Pure.

Spec: directory map v1 (docs/protocol.md).
"""
