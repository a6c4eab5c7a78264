"""Decide where a training run's tokens come from, and hand out its datasets."""

import itertools
import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.configs.types import FeatureType
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

from lerobot_theia.cache import CacheDamagedError, CacheError, CacheMismatchError, FeatureCache
from lerobot_theia.cache.catalog import CacheRequest, find_cache
from lerobot_theia.cache.plan import format_bytes
from lerobot_theia.cache.pooling import pooled_grid
from lerobot_theia.cache.reader import MEND
from lerobot_theia.cache.root import resolve_cache_root
from lerobot_theia.cache.source import select_cameras
from lerobot_theia.data.feature_dataset import FeatureDataset
from lerobot_theia.data.residency import FrameRuns, LoadedTokens, choose_residency, load_tokens
from lerobot_theia.data.resume import StepSeeds
from lerobot_theia.data.settings import FeatureSettings
from lerobot_theia.data.token_statistics import statistics_of_cache, statistics_of_sample
from lerobot_theia.encoder import EncoderSpec, TheiaEncoder

logger = logging.getLogger(__name__)


def serve_features(cfg: TrainPipelineConfig, original: Callable[[Any], tuple]) -> tuple:
    """What `make_train_eval_datasets(cfg)` returns: (training dataset, held-out dataset or None).

    `original` is LeRobot's function. For Theia policies, token statistics are left in `meta.stats` of the training
    dataset, where the policy finds them, unless it brings its own from a checkpoint.
    """
    settings = cfg.trainable_config
    if not isinstance(settings, FeatureSettings):
        return original(cfg)
    if settings.pretrained_path is not None and settings.encoder_spec is None:  # type: ignore[attr-defined]
        settings.take_from(checkpoint_of(settings))
    settings.step_seeds = StepSeeds.of_run(cfg)  # type: ignore[attr-defined]  # for the policy made from these settings
    must_be_online = why_online(cfg)
    if must_be_online and settings.features == "cached":
        raise ValueError(f"--policy.features=cached does not go with {must_be_online}")
    if (settings.cache_views or 1) > 1 and (must_be_online or settings.features == "online"):
        why = must_be_online or "--policy.features=online"
        raise ValueError(
            f"--policy.cache_views={settings.cache_views} needs a cache, which does not go with {why}"
        )

    encoder = encoder_spec(settings)
    try:
        pooled_grid(encoder.grid, settings.token_pool)
    except ValueError as error:
        raise ValueError(f"--policy.token_pool={settings.token_pool}: {error}") from None

    datasets = original(cfg)
    if not (isinstance(datasets, tuple) and len(datasets) == 2):
        raise TypeError(
            f"LeRobot's make_train_eval_datasets returned {type(datasets)}, expected two datasets"
        )
    train, held_out = datasets
    cameras = served_cameras(cfg, train.meta)
    online = must_be_online or ("as --policy.features=online asks" if settings.features == "online" else None)
    root = resolve_cache_root(settings.cache_root)
    try:
        cache = find_cache(root, request(cfg, settings, encoder, train.meta, cameras))
    except CacheError as error:
        must_be_cached = settings.features == "cached" or (settings.cache_views or 1) > 1
        if must_be_cached or not (online or isinstance(error, CacheMismatchError)):
            raise
        cache, no_cache = None, error

    if cache is not None and online is None:
        return serve_cache(settings, cache, cameras, train, held_out, cfg.batch_size, cfg.num_workers)
    if online is None:
        logger.warning("Theia features: online, each frame is decoded and encoded in each step: %s", no_cache)
    else:
        logger.info("Theia features: online, %s", online)
    if settings.pretrained_path is None:  # type: ignore[attr-defined]
        # A policy is the same whether its tokens are cached or not, so its statistics are those of the cache, too.
        if cache is not None:
            statistics = statistics_of_cache(cache, cameras)
        else:
            on_device = loaded_encoder(settings).to(settings.device)  # type: ignore[attr-defined]
            statistics = statistics_of_sample(train, on_device, cameras, settings.token_pool)
        train.meta.stats.update(statistics)
    return train, held_out


def serve_cache(
    settings: FeatureSettings,
    cache: FeatureCache,
    cameras: dict[str, str],
    train: Any,
    held_out: Any,
    batch_size: int,
    num_workers: int,
) -> tuple:
    views = settings.cache_views or cache.views
    if views > 1 and batch_size == 1:
        raise ValueError(
            f"--batch_size=1 would see the same one of {views} views of a frame in every epoch: which is drawn depends on "
            "the samples that come together. Use larger batches, or --policy.cache_views=1"
        )
    logger.info(
        "Theia features: cached, %s (%s, %s, %d view(s) of each frame)",
        cache.path,
        cache.manifest.encoder_name,
        cache.manifest.identity.tokens.dtype,
        views,
    )
    if settings.cache_verify == "full":
        verify(cache)
    if settings.pretrained_path is None:  # type: ignore[attr-defined]
        train.meta.stats.update(statistics_of_cache(cache, cameras))
    device = torch.device(settings.device)  # type: ignore[attr-defined]
    frames = frames_of(
        train.meta, *(dataset for dataset in (train, held_out) if dataset is not None), views=views
    )
    residency = choose_residency(
        settings.cache_residency, cache, list(cameras), len(frames) * views, device, num_workers
    )
    in_memory = None
    if residency == "memory":
        in_memory = load_tokens(cache, list(cameras), torch.device("cpu"), frames, shared=num_workers > 0)
    elif residency == "device":
        on_device = load_tokens(cache, list(cameras), device, frames)
        # The policy is made from these settings and finds its tokens there, under its own names of the cameras.
        settings.tokens_on_device = LoadedTokens(  # type: ignore[attr-defined]
            {name: on_device.tables[camera] for camera, name in cameras.items()}, frames
        )
    served, held = (
        None
        if dataset is None
        else FeatureDataset(
            dataset,
            cache,
            cameras,
            tokens=in_memory,
            on_device=frames if residency == "device" else None,
            views=seen,
        )
        for dataset, seen in ((train, views), (held_out, 1))
    )
    return served, held


def verify(cache: FeatureCache) -> None:
    """Read every byte, once per run. Raises CacheDamagedError naming what is wrong."""
    if int(os.environ.get("RANK", "0")) != 0:
        return  # An error of the first process ends the others.
    size = format_bytes(cache.manifest.num_bytes)
    logger.info("Theia features: reading all %s of the cache, as --policy.cache_verify=full asks", size)
    if problems := cache.verify():
        raise CacheDamagedError(
            "\n".join([*problems, f"{len(problems)} shard(s) of {cache.path} are damaged. {MEND}"])
        )
    logger.info("Theia features: every byte of the cache is as it was written")


def frames_of(meta: LeRobotDatasetMetadata, *datasets: Any, views: int = 1) -> FrameRuns:
    """The frames of the episodes that any of `datasets` has, in so many views."""
    frames_from, frames_to = (
        np.asarray(meta.episodes[f"dataset_{side}_index"], dtype=np.int64) for side in ("from", "to")
    )
    chosen = [range(meta.total_episodes) if each.episodes is None else each.episodes for each in datasets]
    return FrameRuns.of_episodes(frames_from, frames_to, [*itertools.chain.from_iterable(chosen)], views)


def why_online(cfg: TrainPipelineConfig) -> str | None:
    """What in a run's settings rules a cache out."""
    if cfg.dataset.streaming:
        return "--dataset.streaming=true: a cache is read by frame index, which a stream does not have"
    if cfg.dataset.image_transforms.enable:
        return "--dataset.image_transforms.enable=true: image transforms act on frames, and a cache holds tokens of them"
    return None


def served_cameras(cfg: TrainPipelineConfig, meta: LeRobotDatasetMetadata) -> dict[str, str]:
    """Cameras the policy looks at: name in the dataset -> name in the policy.

    These are all of the dataset's, unless `--policy.input_features` or a checkpoint says otherwise.
    """
    renamed = {camera: cfg.rename_map.get(camera, camera) for camera in meta.camera_keys}
    inputs = cfg.trainable_config.input_features or {}
    wanted = {name for name, feature in inputs.items() if feature.type is FeatureType.VISUAL}
    if missing := wanted - set(renamed.values()):
        raise ValueError(
            f"the policy looks at cameras {sorted(missing)}, dataset {meta.repo_id!r} has {list(meta.camera_keys)}"
            + (f", renamed to {sorted(renamed.values())}" if cfg.rename_map else "")
            + ". Map their names with --rename_map."
        )
    if inputs and not wanted:
        raise ValueError(f"none of the policy's input features {sorted(inputs)} is a camera (type VISUAL)")
    chosen = [camera for camera, name in renamed.items() if not inputs or name in wanted]
    called: dict[str, str] = {}
    for camera in chosen:
        if (first := called.setdefault(renamed[camera], camera)) != camera:
            raise ValueError(
                f"--rename_map calls camera {first!r} {renamed[camera]!r}, as {camera!r} is called, too: which is meant? Give "
                "the other one another name in --rename_map"
            )
    return {camera: renamed[camera] for camera in select_cameras(meta, chosen)}


def checkpoint_of(settings: FeatureSettings) -> FeatureSettings:
    """Raises ValueError if the checkpoint that is to be fine-tuned is none of these policies'."""
    path: Any = settings.pretrained_path  # type: ignore[attr-defined]
    revision = settings.pretrained_revision  # type: ignore[attr-defined]
    checkpoint = PreTrainedConfig.from_pretrained(path, revision=revision)
    if checkpoint.type != settings.type:  # type: ignore[attr-defined]
        raise ValueError(
            f"--policy.pretrained_path={path} is a policy of type {checkpoint.type!r}, and --policy.type is "
            f"{settings.type!r}: its weights do not fit. Leave pretrained_path out to begin anew"  # type: ignore[attr-defined]
        )
    return checkpoint  # type: ignore[return-value]


def request(
    cfg: TrainPipelineConfig,
    settings: FeatureSettings,
    encoder: EncoderSpec,
    meta: LeRobotDatasetMetadata,
    cameras: dict[str, str],
) -> CacheRequest:
    return CacheRequest(
        meta=meta,
        cameras=tuple(cameras),
        encoder=encoder,
        encoder_name=settings.encoder,
        encoder_revision=settings.encoder_revision,
        pool=settings.token_pool,
        tolerance_s=cfg.tolerance_s,
        dtype=settings.cache_dtype,
        views=settings.cache_views,
    )


def encoder_spec(settings: FeatureSettings) -> EncoderSpec:
    """A checkpoint knows its encoder; otherwise its weights must be read to know which it is."""
    if settings.pretrained_path is not None and settings.encoder_spec is not None:  # type: ignore[attr-defined]
        return settings.encoder_spec
    return loaded_encoder(settings).spec


def loaded_encoder(settings: FeatureSettings) -> TheiaEncoder:
    """Loaded once, and left for the policy that is made from these settings."""
    if not hasattr(settings, "loaded_encoder"):
        settings.loaded_encoder = TheiaEncoder.from_pretrained(  # type: ignore[attr-defined]
            settings.encoder, revision=settings.encoder_revision, translators=False
        )
    return settings.loaded_encoder  # type: ignore[attr-defined]
