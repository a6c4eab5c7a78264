"""The last step of building a cache: the manifest."""

import datetime
import importlib.metadata
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lerobot_theia.cache.claim import CLAIM_PREFIX, waiting_for
from lerobot_theia.cache.errors import CacheDamagedError
from lerobot_theia.cache.manifest import Manifest, TokenStatistics, read_manifest, write_manifest
from lerobot_theia.cache.plan import Plan, PrecomputeSettings
from lerobot_theia.cache.shard import Shard, check_header, shard_path
from lerobot_theia.cache.work import Work
from lerobot_theia.encoder import TheiaEncoder

PLACES = ("root", "cache_root")
"""Settings that say where things were on the machine that made a cache, which says nothing about the cache."""


def publish(plan: Plan, encoder: TheiaEncoder, work: Work, started: datetime.datetime) -> None:
    """Write the manifest of a cache whose shards are all there, unless another process has.

    Raises CacheDamagedError when a shard has gone meanwhile.
    """
    with waiting_for(plan.path / f"{CLAIM_PREFIX}manifest"):
        # As the shards are now: two processes may have made the same one, on devices that round differently.
        work.digests = {name: check_header(**work.where(name)) for name in work.names}
        shards = {
            camera: tuple(work.digests[name] for name in work.names if name[0] == camera)
            for camera in plan.cameras
        }
        try:
            found = read_manifest(plan.path)
            if (found.identity, found.shard_frames, found.shards) == (
                plan.identity,
                plan.shard_frames,
                shards,
            ):
                return
        except CacheDamagedError:
            pass  # not there yet, or to be replaced
        write_manifest(plan.path, manifest(plan, encoder, work, shards, started))
        remove_strays(plan.path, work)


def remove_strays(path: Path, work: Work) -> None:
    """Shards of another size, of a run that was interrupted, are no part of this cache."""
    ours = {shard_path(path, *name) for name in work.names}
    for camera in dict(work.names):
        for file in path.glob(f"{camera}/[0-9]*.safetensors"):
            if file not in ours:
                file.unlink()


def manifest(
    plan: Plan,
    encoder: TheiaEncoder,
    work: Work,
    shards: dict[str, tuple[str, ...]],
    started: datetime.datetime,
) -> Manifest:
    spec = encoder.spec
    return Manifest(
        identity=plan.identity,
        shard_frames=plan.shard_frames,
        shards=shards,
        statistics={camera: statistics(work, camera) for camera in plan.cameras},
        files=plan.source.files,
        encoder_name=spec.name,
        encoder_note=f"{spec.describe()}; licence: {spec.license}",
        made_with={
            "created": started.isoformat(timespec="seconds"),
            "settings": recorded(plan.settings),
            "device": str(encoder.device),
            "machine": platform.machine(),
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("lerobot_policy_theia", "lerobot", "torch", "torchvision", "transformers")
            },
        },
    )


def recorded(settings: PrecomputeSettings) -> dict[str, Any]:
    """What finds dataset and encoder again, on any machine: an encoder that is a folder is not among it."""
    fields = {name: value for name, value in asdict(settings).items() if name not in PLACES}
    if Path(settings.encoder).expanduser().is_dir():
        del fields["encoder"]
    return fields


def statistics(work: Work, camera: str) -> TokenStatistics:
    """Per-channel mean and standard deviation of all views, from the shards' float64 sums, added in shard order."""
    total = torch.zeros(work.layout.dim, dtype=torch.float64)
    total_sq, count = total.clone(), 0
    for name in work.names:
        if name[0] == camera:
            opened = Shard(**work.where(name), sha256=work.digests[name])
            total += opened.tensors["sum"]
            total_sq += opened.tensors["sum_sq"]
            count += opened.key.frames * work.layout.views * work.layout.num_tokens
    mean = total / count
    variance = (total_sq / count - mean.square()).clamp_min(0)
    return TokenStatistics(tuple(mean.tolist()), tuple(variance.sqrt().tolist()))
