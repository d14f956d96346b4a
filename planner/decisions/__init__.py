"""Decisions under uncertainty: which plans to try, what to measure first, what trials have taught."""
