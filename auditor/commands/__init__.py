"""What each command of ``ktlog-auditor`` does: a module for each, with its ``command``."""
