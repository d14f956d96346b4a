"""Seconds of a training step: blocks of layers, stages, passes over them, and how far to trust their sum."""
