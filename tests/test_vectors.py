"""The border of the core: unit float32 rows or a clear refusal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from neuralcache_plugins.core.vectors import unit_rows, unit_vector, width_of
from neuralcache_plugins.errors import DimensionMismatchError, InvalidInputError


def test_a_vector_leaves_with_length_one_and_shares_no_memory():
    mine = np.array([3.0, 4.0], dtype=np.float32)

    row = unit_vector(mine, name="query_vector")
    row[0] = 9.0

    assert mine.tolist() == [3.0, 4.0]
    assert unit_vector([3, 4], name="query_vector").tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("bad", [[], [[1.0]], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], ["a"], None])
def test_a_vector_that_is_none_is_refused_by_name(bad):
    with pytest.raises(InvalidInputError, match="query_vector"):
        unit_vector(bad, name="query_vector")


def test_another_width_names_both_widths():
    with pytest.raises(DimensionMismatchError, match=r"^query_vector has 3 dimensions, expected 2$"):
        unit_vector([1, 2, 3], name="query_vector", width=2)


def test_rows_that_cannot_be_used_become_zeros_and_are_named():
    rows, unusable = unit_rows(
        [[3.0, 4.0], None, [np.nan, 1.0], [1.0, 2.0, 3.0], [0.0, 0.0], [0.0, 5.0]], count=6, width=2
    )

    assert unusable == [1, 2, 3, 4]
    assert rows[[1, 2, 3, 4]].tolist() == [[0.0, 0.0]] * 4
    assert rows[[0, 5]] == pytest.approx(np.array([[0.6, 0.8], [0.0, 1.0]]))


@pytest.mark.parametrize("length", [1e-38, 1.9e-22, 1.0, 3e38])
def test_how_long_a_row_is_says_nothing(length):
    assert unit_rows([[0.0, length], [2.0, 0.0]], count=2, width=2)[0].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert unit_vector([0.0, -length], name="query_vector").tolist() == [0.0, -1.0]


@given(
    arrays(
        np.float64,
        array_shapes(min_dims=2, max_dims=2, max_side=8),
        elements=st.floats(allow_nan=True, allow_infinity=True, width=32),
    )
)
def test_whatever_comes_in_rows_are_finite_and_of_length_one_or_zero(values):
    rows, unusable = unit_rows(values, count=len(values), width=values.shape[1])

    lengths = np.linalg.norm(rows, axis=1)
    assert np.isfinite(rows).all()
    for position, length in enumerate(lengths):
        assert length == (0 if position in unusable else pytest.approx(1.0, abs=1e-4))


def test_the_wrong_number_of_rows_is_refused():
    with pytest.raises(InvalidInputError, match="got 1 rows for 2 texts"):
        unit_rows([[1.0]], count=2, width=1)


def test_the_width_is_that_of_the_first_row_there_is():
    assert width_of([None, [1.0, 2.0]]) == 2
    assert width_of([None]) is None
