"""Decisions: which plans are legal, which is best, and why."""
