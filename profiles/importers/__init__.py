"""Readers of other tools' measurements: each turns one kind of file into rows of ``profiles.timings``."""
