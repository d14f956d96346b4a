"""How PyTorch's softmax holds its rows, by version, length and alignment: the branches of SoftMax.cu."""

import numpy as np
import pytest

from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.kernels.row_work import row_work

FORWARD, BACKWARD = 2.0, 3.0


def softmax(library: Library, width: float, element: float = 4) -> KernelCallBatch:
    return kernel_calls(
        1, op=KernelOp.MEMORY, family=KernelFamily.SOFTMAX, m=4096, n=width, batch=1, bytes=8.0 * 4096 * width,
        element_bytes=element, implementation=code_of(Engine.PYTORCH, library),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("library", "width", "element", "passes", "threads", "again", "waits"),
    [
        # A warp up to 1,024 elements and 4 KB, forward 2,048 and 8 KB since 2.7.
        (Library.REREAD_ROWS, 1024, 4, FORWARD, 32, 0, 1),
        (Library.SHARED_ROWS, 1024, 2, FORWARD, 32, 0, 1),
        (Library.EAGER, 2048, 2, FORWARD, 32, 0, 1),
        (Library.EAGER, 2048, 2, BACKWARD, 128, 0, 2),
        # Before 2.4: half as many threads as vectors, at most 512, and three reads. Of 1,820 elements 256 threads take
        # a vector of four each and then 796 one by one, of 2,048 two vectors.
        (Library.REREAD_ROWS, 1820, 4, FORWARD, 256, 2, 3 * (1 + 4)),
        (Library.REREAD_ROWS, 2048, 4, FORWARD, 256, 2, 3 * 2),
        (Library.REREAD_ROWS, 8192, 4, FORWARD, 512, 2, 3 * 4),
        # Since then a thread an element, and all shared memory where the row is whole vectors and fits into 48 KB.
        (Library.SHARED_ROWS, 4096, 4, FORWARD, 2048, 0, 1),
        (Library.SHARED_ROWS, 4095, 4, FORWARD, 1024, 2, 3 * 4),
        (Library.SHARED_ROWS, 12256, 4, FORWARD, 1024, 2, 3 * (2 + 4)),
        (Library.SHARED_ROWS, 12252, 4, FORWARD, 2048, 0, 3),
        (Library.SHARED_ROWS, 4096, 4, BACKWARD, 512, 1, 2 * 2),
        # Since 2.7 up to nine elements a thread in registers.
        (Library.EAGER, 9216, 2, FORWARD, 1024, 0, 1),
        (Library.EAGER, 9224, 2, FORWARD, 1024, 0, 2),
        (Library.EAGER, 32768, 2, FORWARD, 1024, 2, 3 * 4),
    ],
)
def test_a_row_is_held_as_the_version_does(library, width, element, passes, threads, again, waits):
    sums = 2 if passes == FORWARD else 1  # the threads of a row wait for each other
    found = row_work(softmax(library, width, element), np.array([passes]))
    assert found.counted.all()
    assert [found.threads[0], found.again[0], found.waits[0]] == [threads, again, waits + sums]


def test_the_backward_pass_multiplies_in_a_kernel_of_its_own():
    forward, backward = (row_work(softmax(Library.EAGER, 4096, 2), np.array([p])) for p in (FORWARD, BACKWARD))
    assert [forward.kernels[0], forward.between[0]] == [1, 0]
    assert [backward.kernels[0], backward.between[0]] == [2, 3]


def test_only_softmaxes_of_pytorch_are_counted():
    assert not row_work(softmax(Library.UNKNOWN, 4096), np.array([FORWARD])).counted.any()
    assert not row_work(softmax(Library.COMPILED, 4096), np.array([FORWARD])).counted.any()
