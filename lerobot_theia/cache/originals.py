"""Whether a dataset is still the one that was hashed.

A cache says what it was made from, and that is settled before work begins, while frames are read over hours. A dataset
that is edited, recorded further or replaced meanwhile must not be filed under what it was.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lerobot_theia.cache.errors import CacheError
from lerobot_theia.cache.files import sha256_of_file, stamp
from lerobot_theia.cache.source import DatasetSource
from lerobot_theia.cache.table import frames_digest, timed_table

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


class Originals:
    """The files of a dataset as they were when `source` was read off it. Not for several threads at once.

    `meta` is of the dataset as it was opened to read frames. Raises CacheError if that is another than `source` says.
    """

    def __init__(self, source: DatasetSource, meta: "LeRobotDatasetMetadata") -> None:
        self.root = meta.root
        self._stamps = dict(source.stamps)
        self._hashes = {file.path: file.sha256 for files in source.files.values() for file in files}
        self.check(self._hashes)
        for camera, identity in source.identity.cameras.items():
            if frames_digest(meta.fps, timed_table(meta, camera)) != identity.frames:
                raise CacheError(
                    changed(f"where dataset {meta.repo_id!r} says that frames of {camera!r} are")
                )

    def check(self, paths: Iterable[str]) -> None:
        """Raises CacheError for the first of these files, relative to the root, that is gone or has another content."""
        for path in paths:
            now = stamp(self.root / path)
            if now == self._stamps[path]:
                continue
            # Touched, copied back, or on a file system where inodes have no constant numbers: its content decides.
            if now is None or sha256_of_file(self.root / path) != self._hashes[path]:
                raise CacheError(changed(str(self.root / path)))
            self._stamps[path] = now


def changed(what: str) -> str:
    return (
        f"{what} has changed while it was being encoded. What is finished is of the dataset as it was when this run "
        "began. Let it come to rest, and run the same command again: it encodes the dataset as it is then"
    )
