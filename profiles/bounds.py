"""Bounds of what descriptions of models say, whichever part of a model they are of."""

MAX_DIMENSION = 1 << 22  # of widths and of numbers of heads
MAX_LENGTH = 1 << 24  # of windows, and of keys that are chosen
