"""The low-dimensional columns of a LeRobotDataset as tensors in memory."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor


def tensor_columns(hf_dataset: datasets.Dataset, skip: set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Columns as (num_frames, ...) tensors, and the names of those that are no numbers (text, language).

    Types are those LeRobot's items have: float32, int64 and bool, whatever parquet stores.
    """
    tensors, others = {}, []
    for name in hf_dataset.column_names:
        if name in skip:
            continue
        column = hf_dataset.data.column(name).combine_chunks()
        array = to_numpy(column, len(hf_dataset))
        if array is None:
            others.append(name)
        else:
            tensors[name] = torch.from_numpy(array)
    return tensors, others


def to_numpy(column: "pa.Array | pa.ChunkedArray", rows: int) -> np.ndarray | None:
    """(rows, ...) array of a column of numbers or equally long nested lists of them, else None."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    shape = [rows]
    while pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) != 1 or lengths == [None]:
            return None  # no rows, ragged or null ones
        shape.append(lengths[0])
        column = column.flatten()
    if column.null_count or not (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or pa.types.is_boolean(column.type)
    ):
        return None
    kind = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}
    values = column.to_numpy(zero_copy_only=False)
    return values.astype(kind[values.dtype.kind]).reshape(shape)
