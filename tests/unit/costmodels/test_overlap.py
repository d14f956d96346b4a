import numpy as np
import pytest

from costmodels.overlap import exposed_s


@pytest.mark.parametrize(
    ("transfer", "window", "efficiency", "expected"),
    [
        (4.0, 10.0, 0.0, 4.0),  # no overlap
        (4.0, 10.0, 1.0, 0.0),  # hidden whole
        (4.0, 10.0, 0.75, 1.0),  # as much as the stack manages
        (4.0, 1.0, 1.0, 3.0),  # as much as there is to hide under
        (4.0, 1.0, 0.75, 3.0),
        (4.0, 0.0, 1.0, 4.0),
        (4.0, -1.0, 1.0, 4.0),
        (0.0, 10.0, 1.0, 0.0),
    ],
)
def test_a_transfer_hides_behind_the_computation_it_may_run_under(transfer, window, efficiency, expected):
    assert exposed_s(np.array([transfer]), np.array([window]), efficiency) == pytest.approx([expected])
    assert exposed_s(np.array([transfer]), np.array([window]), np.array([efficiency])) == pytest.approx([expected])
