"""Whether what LeRobot loaded is what the data files hold.

It does not read parquet files: Hugging Face's `datasets` copies them to Arrow files once, and takes that copy for as
long as path and modification time are the same. A file that was replaced by another with the same time (rsync -t,
tar, cp -p) is hashed as it is now and loaded as it was.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_theia.cache.errors import CacheError
from lerobot_theia.cache.table import data_table

ROWS_AT_ONCE = 256


def check_loaded(dataset: LeRobotDataset, cameras: Iterable[str]) -> None:
    """Raises CacheError when the copy of a whole dataset has other frames of `cameras`, or timestamps, than its files.

    Of timestamps only where a camera is a video. No file is read that is older than the copies: its change time (ctime)
    tells, which programs that set the other one back do not touch.
    """
    copies = [Path(copy["filename"]) for copy in dataset.hf_dataset.cache_files]
    if not copies:
        return
    made_ns = min(copy.stat().st_mtime_ns for copy in copies)
    columns = {"timestamp" if camera in dataset.meta.video_keys else camera for camera in cameras}
    first_rows: dict[str, int] = {}
    for row in data_table(dataset.meta):
        first_rows.setdefault(row["file"], row["from"])
    for file, start in first_rows.items():
        path = dataset.root / file
        if path.stat().st_ctime_ns < made_ns:
            continue
        loaded: pa.Table = dataset.hf_dataset.data.table.slice(start)
        if not all(holds(path, column, loaded.column(column)) for column in columns):
            raise CacheError(
                f"{path} has changed, but not its time of modification, so that LeRobot goes on with a copy of what it "
                f"was, {copies[0].parent}. Run `touch {path}`, and the same command again; train only after that, too"
            )


def holds(path: Path, column: str, loaded: pa.ChunkedArray) -> bool:
    """Whether the first of the `loaded` values are those in a parquet file."""
    at = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
            values = pa.chunked_array([batch.column(0)])
            if plain(values) != plain(loaded.slice(at, len(values))):
                return False
            at += len(values)
    return True


def plain(values: pa.ChunkedArray) -> Any:
    """Pictures as their files' bytes, numbers as LeRobot's type for timestamps."""
    if pa.types.is_struct(values.type):
        return pc.struct_field(values, "bytes").cast(pa.large_binary())
    return values.cast(pa.float32())
