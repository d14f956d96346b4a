import numpy as np
import pytest

from costmodels.arrays import at_column, largest, largest_column, total


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 3), (50, 12)])
def test_columns_agree_with_numpy(shape):
    table = np.random.default_rng(0).integers(0, 4, shape).astype(float)
    assert total(table.T) == pytest.approx(table.sum(axis=1))
    assert total(table) == pytest.approx(table.sum(axis=0))
    assert largest(table).tolist() == table.max(axis=1).tolist()
    assert largest_column(table).tolist() == table.argmax(axis=1).tolist()
    assert at_column(table, largest_column(table)).tolist() == table.max(axis=1).tolist()


def test_a_sum_is_the_same_to_the_last_bit_alone_in_company_and_with_empty_columns():
    table = np.random.default_rng(1).random((40, 23))
    padded = np.hstack([table, np.zeros((40, 17))])
    for row in range(40):
        assert total(table[row : row + 1].T)[0] == total(table.T)[row] == total(padded.T)[row]


def test_at_column_keeps_the_type():
    assert at_column(np.array([[True, False], [False, True]]), np.array([0, 0])).tolist() == [True, False]


def test_no_rows_have_no_result():
    empty = np.zeros((0, 3))
    assert largest(empty).shape == total(empty.T).shape == largest_column(empty).shape == (0,)
