"""From a plan to seconds, bytes, joules and dollars: pure functions over arrays, no I/O.

Symbols used in docstrings: s sequence length, b micro-batch size, h hidden size, a attention heads,
L layers, V vocabulary, t/p/d/c/e tensor, pipeline, data, context and expert parallel degrees,
m micro-batches per step, v virtual stages per pipeline rank.
"""
