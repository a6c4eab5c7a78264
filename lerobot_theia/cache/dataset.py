"""Opening the dataset that a cache is made from, with errors that say what to do."""

from pathlib import Path

from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import CompatibilityError

from lerobot_theia.cache.errors import CacheError
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.cache.source import missing_files, select_cameras

ROOT = "dataset.root=... (`--dataset-root` of `lerobot-theia-cache verify --repair`)"


def open_metadata(settings: PrecomputeSettings) -> LeRobotDatasetMetadata:
    if settings.root is not None and not (Path(settings.root) / "meta" / "info.json").is_file():
        raise CacheError(
            f"dataset.root={settings.root} holds no LeRobotDataset (meta/info.json is missing); check the path, or "
            f"leave {ROOT} out to look on the Hub"
        )
    try:
        meta = LeRobotDatasetMetadata(settings.repo_id, root=settings.root, revision=settings.revision)
    except (CompatibilityError, NotImplementedError) as error:
        raise CacheError(
            f"dataset {settings.repo_id!r} is not a LeRobotDataset v3.0, which is what Theia caches are made from: "
            f"{' '.join(str(error).split())}"
        ) from error
    except Exception as error:  # whatever the Hub, the network or a damaged file raise
        raise CacheError(
            f"dataset {settings.repo_id!r} is neither in LeRobot's home nor to be had from the Hub "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}). Give its folder with {ROOT}, or "
            "record it first (scripts/record_pusht_demos.py for local/pusht_expert)"
        ) from error
    if not meta.total_episodes:
        raise CacheError(
            f"dataset {settings.repo_id!r} in {meta.root} has no episode yet: record one, and close the recording, before "
            "its frames are encoded"
        )
    if missing := missing_files(meta, select_cameras(meta, settings.cameras)):
        # A dataset of the Hub of which only the metadata is here. LeRobot downloads the rest when it opens it.
        try:
            meta = open_dataset(settings).meta
        except CacheError as error:
            raise CacheError(
                f"dataset {settings.repo_id!r} is not whole: {missing[0]} is missing ({error})"
            ) from error
    return meta


def open_dataset(settings: PrecomputeSettings) -> LeRobotDataset:
    """Raises CacheError when LeRobot cannot read the dataset, cannot download what is missing of it, or finds it short."""
    try:
        dataset = LeRobotDataset(
            settings.repo_id,
            root=settings.root,
            revision=settings.revision,
            video_backend=settings.video_backend,
            tolerance_s=settings.tolerance_s,
            return_uint8=True,
        )
    except Exception as error:  # Whatever parquet, datasets, the Hub or the network raise.
        raise CacheError(
            f"LeRobot cannot open dataset {settings.repo_id!r}: {type(error).__name__}: {error}"
        ) from error
    if (rows := len(dataset.hf_dataset)) < dataset.meta.total_frames:
        raise CacheError(
            f"the parquet files of dataset {settings.repo_id!r} in {dataset.root / 'data'} hold {rows} rows, and "
            f"meta/info.json declares {dataset.meta.total_frames} frames: download or record the dataset again"
        )
    return dataset
