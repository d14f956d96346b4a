"""What holds for all tests: a slow or busy machine is no failure of a property, nor is one that ignores Ctrl-C."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before NumPy is imported: matrices here are small, so threads of BLAS would mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("any machine", deadline=None)
# A push is judged by its change, not by what was drawn this time, and within minutes; whoever runs the tests otherwise
# draws anew, and more.
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("any machine")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises ``KeyboardInterrupt``, also where a shell started the tests in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
