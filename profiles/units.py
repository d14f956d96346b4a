"""SI and binary unit constants. Quantities elsewhere carry their unit in their name."""

GIGA = 1e9
TERA = 1e12

KIB = 1024
MIB = 1024**2
GIB = 1024**3

MICROSECOND = 1e-6
SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 86400.0
BITS_PER_BYTE = 8
