"""Reads a key-transparency log as anybody can, checks all of it, and convicts the log if it lies.

``auditor.audit.audit`` is one audit; ``auditor.report`` names every finding there is.
"""
