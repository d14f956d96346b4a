"""Kernels as MLIR text: one canonical StableHLO text per kernel, its key, and what can be read off any such text."""
