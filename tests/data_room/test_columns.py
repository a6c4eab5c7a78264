"""Columns in memory: numbers become tensors of LeRobot's types, everything else is left to LeRobot."""

import numpy as np
import pyarrow as pa
import pytest

from lerobot_theia.data.columns import to_numpy
from lerobot_theia.data.windows import EpisodeRows


@pytest.mark.parametrize(
    ("values", "stored", "wanted"),
    [
        ([1, 2], pa.int8(), np.int64),
        ([1, 2], pa.uint32(), np.int64),
        ([0.5, 2], pa.float64(), np.float32),
        ([True, False], pa.bool_(), np.bool_),
        ([[1, 2], [3, 4]], pa.list_(pa.float32()), np.float32),
        ([[1, 2], [3, 4]], pa.list_(pa.int64(), 2), np.int64),
        ([[[1, 2], [3, 4]]], pa.list_(pa.list_(pa.float32())), np.float32),
    ],
)
def test_numbers_keep_shape_and_take_lerobots_types(values: list, stored: pa.DataType, wanted: type) -> None:
    array = to_numpy(pa.array(values, stored), len(values))
    assert array is not None and array.dtype == wanted
    np.testing.assert_array_equal(array, np.array(values))


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        [1, None],
        [[1, 2], None],
        [[1, 2, 3], [4]],
        [[], [1, 2]],
        [{"a": 1}],
        [[[1], [2]], [[3, 4]]],
    ],
    ids=["text", "null", "null list", "ragged", "empty list", "struct", "ragged within"],
)
def test_what_is_no_tensor_is_left_alone(values: list) -> None:
    """Three and one make two rows of two, if one only counts."""
    assert to_numpy(pa.array(values), len(values)) is None


def test_chunks_and_slices_are_read_as_they_are_seen() -> None:
    column = pa.chunked_array([pa.array([[1, 2], [3, 4], [5, 6]]).slice(1), pa.array([[7, 8]])])
    np.testing.assert_array_equal(to_numpy(column, 3), [[3, 4], [5, 6], [7, 8]])


def test_windows_refuse_episodes_that_are_not_whole() -> None:
    starts, stops = np.array([0, 3]), np.array([3, 7])
    EpisodeRows.from_columns(np.array([0, 0, 0, 1, 1, 1, 1]), starts, stops)
    for rows in ([0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]):
        with pytest.raises(ValueError, match="the data files are not whole"):
            EpisodeRows.from_columns(np.array(rows), starts, stops)
