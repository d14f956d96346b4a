"""The command line: one module per command or group of commands; ``app`` puts them together."""

import os

# Before NumPy is imported: matrices here are small, so threads of BLAS would mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
