"""ktlog: key transparency for the Fediverse."""

__version__ = "0.1.0"
