"""The dataset side of a cache's identity: which cameras, which frames of which files, and what they contain."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot_theia.cache.errors import CacheError
from lerobot_theia.cache.files import publish, remove_temporaries, sha256_of_file, stamp
from lerobot_theia.cache.identity import CameraIdentity, DatasetIdentity, sha256_of_json
from lerobot_theia.cache.table import (
    check_frame_index,
    data_table,
    frame_table,
    frames_digest,
    timed_table,
)

if TYPE_CHECKING:  # seconds, which `lerobot-theia-cache ls` need not wait
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


@dataclass(frozen=True)
class SourceFile:
    """A file that holds frames of a camera, relative to the dataset's root."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DatasetSource:
    identity: DatasetIdentity
    files: dict[str, tuple[SourceFile, ...]]
    """Per camera, the files its frames are read from; their digest is `CameraIdentity.content`."""
    fps: float
    tables: dict[str, list[dict]]
    """Per camera, `timed_table`; its digest with `fps` is `CameraIdentity.frames`."""
    stamps: dict[str, tuple | None]
    """`files.stamp` of each file that is here, by its path in `files`, from before it was hashed."""


class FileHashes:
    """SHA-256 of dataset files, remembered in the cache root by path, size and modification time.

    Hashing a dataset once costs about a second per gigabyte; asking again costs one `stat` per file.
    """

    def __init__(self, cache_root: Path) -> None:
        self._path = cache_root / ".hashes.json"
        self._known: dict[str, list] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, RecursionError):
            known = json.loads(self._path.read_text())
            self._known = known if isinstance(known, dict) else {}

    def __call__(self, path: Path) -> SourceFile:
        """`SourceFile.path` is absolute here; callers make it relative."""
        path = path.resolve()
        status = path.stat()
        entry = self._known.get(str(path))
        fresh = [status.st_size, status.st_mtime_ns]
        if not (isinstance(entry, list) and len(entry) == 3 and entry[:2] == fresh and type(entry[2]) is str):
            entry = [*fresh, sha256_of_file(path)]
            self._known[str(path)] = entry
            self._changed = True
        return SourceFile(str(path), status.st_size, entry[2])

    def save(self) -> None:
        """Best effort: a read-only or vanished root only means hashing again next time."""
        remove_temporaries(self._path.parent, below=False)
        if not self._changed:
            return
        with contextlib.suppress(CacheError):
            publish(self._path, [json.dumps(self._known).encode()])


def select_cameras(meta: "LeRobotDatasetMetadata", cameras: Iterable[str] | None = None) -> list[str]:
    """The RGB cameras to encode, in the dataset's order; all of them unless `cameras` names some.

    Raises CacheError for a dataset without cameras, none or an unknown name asked for, and grayscale or depth cameras.
    """
    if not meta.camera_keys:
        raise CacheError(
            f"dataset {meta.repo_id!r} has no camera: none of its features {sorted(meta.features)} is an image "
            "or a video. Theia policies need at least one; train LeRobot's own policies on state instead."
        )
    wanted = list(meta.camera_keys if cameras is None else cameras)
    if not wanted:
        raise CacheError(
            f"cameras=[] names none of the cameras of dataset {meta.repo_id!r}, {list(meta.camera_keys)}; leave cameras out "
            "for all of them"
        )
    if unknown := [name for name in wanted if name not in meta.camera_keys]:
        raise CacheError(f"dataset {meta.repo_id!r} has no camera {unknown}; it has {list(meta.camera_keys)}")
    for name in wanted:
        height, width, channels = image_shape(meta, name)
        if not is_rgb(meta, name):
            kind = "a depth map" if name in meta.depth_keys else f"an image of {channels} channel(s)"
            colour = ",".join(other for other in meta.camera_keys if is_rgb(meta, other))
            remedy = (
                f"Leave it out by naming the others: `cameras=[{colour}]` when precomputing, `--policy.input_features` when "
                "training."
                if colour
                else "The dataset has no RGB camera; train LeRobot's own policies instead."
            )
            raise CacheError(
                f"feature {name!r} is {kind} ({height}x{width}x{channels}); Theia encodes RGB. {remedy}"
            )
    return [name for name in meta.camera_keys if name in set(wanted)]


def is_rgb(meta: "LeRobotDatasetMetadata", camera: str) -> bool:
    """Whether a camera's frames are what Theia encodes."""
    with contextlib.suppress(CacheError):
        return camera not in meta.depth_keys and image_shape(meta, camera)[2] == 3
    return False


def image_shape(meta: "LeRobotDatasetMetadata", camera: str) -> tuple[int, int, int]:
    """(height, width, channels) of a camera, whichever way round the dataset names them."""
    feature = meta.features[camera]
    shape = tuple(int(side) for side in feature["shape"])
    names = feature.get("names") or ["height", "width", "channels"]
    if len(shape) != 3:
        raise CacheError(f"feature {camera!r} has shape {shape}; an image has height, width and channels")
    if str(names[0]).startswith("channel"):
        return shape[1], shape[2], shape[0]
    return shape


def describe_source(
    meta: "LeRobotDatasetMetadata",
    cameras: list[str],
    hashes: FileHashes,
    known_files: dict[str, tuple[SourceFile, ...]] | None = None,
) -> DatasetSource:
    """Read off the identity of `cameras` in a dataset.

    A file that is not on this machine (training on some episodes of a dataset of the Hub downloads theirs alone) is
    taken as recorded in `known_files`, the files of the cache it is compared to; without a record that is an error.
    Timestamps in data files that are not here count as regular: LeRobot reads no frame by them.
    """
    check_frame_index(meta)
    if known_files is None and (missing := missing_files(meta, cameras)):
        raise CacheError(f"dataset {meta.repo_id!r} needs {missing[0]}, which is missing")
    identities, files, tables, stamps = {}, {}, {}, {}
    for camera in cameras:
        table = timed_table(meta, camera)
        recorded = {file.path: file for file in (known_files or {}).get(camera, ())}
        camera_files = []
        for path in dict.fromkeys(row["file"] for row in table):
            full_path = meta.root / path
            if full_path.is_file():
                stamps[path] = stamp(full_path)  # before it is read: what comes later shows
                file = hashes(full_path)
                camera_files.append(SourceFile(path, file.size, file.sha256))
            elif path in recorded:
                camera_files.append(recorded[path])
            else:
                raise CacheError(
                    f"camera {camera!r} of dataset {meta.repo_id!r} needs {full_path}, which is missing"
                )
        height, width, _ = image_shape(meta, camera)
        identities[camera] = CameraIdentity(
            kind="video" if camera in meta.video_keys else "image",
            height=height,
            width=width,
            frames=frames_digest(meta.fps, table),
            content=content_digest(camera_files),
        )
        files[camera], tables[camera] = tuple(camera_files), table
    identity = DatasetIdentity(
        repo_id=meta.repo_id,
        revision=str(meta.revision),
        num_episodes=meta.total_episodes,
        num_frames=meta.total_frames,
        cameras=identities,
    )
    return DatasetSource(identity, files, meta.fps, tables, stamps)


def missing_files(meta: "LeRobotDatasetMetadata", cameras: Iterable[str]) -> list[Path]:
    """Files that are not on this machine, of those with frames of `cameras` and of the data files."""
    tables = [data_table(meta), *(frame_table(meta, camera) for camera in cameras)]
    files = {meta.root / row["file"] for table in tables for row in table}
    return sorted(file for file in files if not file.is_file())


def content_digest(files: Iterable[SourceFile]) -> str:
    return sha256_of_json([[file.path, file.size, file.sha256] for file in files])
