"""Measurements: a large log made in minutes, and what it costs to read from it."""
