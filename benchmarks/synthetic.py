"""Data to measure with: datasets of moving textures and of PushT, and valid caches without an encoder's work.

python benchmarks/synthetic.py           # make all of them under outputs/benchmarks/
"""

import hashlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from torch import Tensor

from lerobot_theia.cache import FeatureCache
from lerobot_theia.cache.identity import (
    CacheIdentity,
    CameraIdentity,
    DatasetIdentity,
    EncoderIdentity,
    TokenIdentity,
)
from lerobot_theia.cache.manifest import (
    MANIFEST_NAME,
    Manifest,
    TokenStatistics,
    num_shards,
    shard_key,
    shard_layout,
    write_manifest,
)
from lerobot_theia.cache.plan import PrecomputeSettings, frames_per_shard, make_plan
from lerobot_theia.cache.shard import Shard, ShardLayout, shard_header, shard_path, write_shard
from lerobot_theia.cache.source import SourceFile
from lerobot_theia.cache.storage import StoredTokens, bytes_per_frame, encode_tokens
from lerobot_theia.encoder import EncoderSpec, TheiaEncoder

"""As precompute's `shard_mib`."""
CAMERA = "observation.image"
NO_HASH = hashlib.sha256(b"").hexdigest()
PUSHT, TEXTURES = "local/pusht_expert", "local/textures"
TokensOf = Callable[[int, int], Tensor]
"""(first frame, one past the last) -> (n, N, D) float32"""


# --- datasets ---------------------------------------------------------------------------------------------


def pusht_dataset(work: Path, episodes: int) -> Path:
    """PushT expert episodes, recorded if they are not there: one camera 96x96, AV1 as LeRobot encodes it."""
    from lerobot_theia.demos.pusht import record_pusht

    root = work / f"pusht-{episodes}"
    record_pusht(root, PUSHT, episodes, if_missing=True, num_workers=1, progress=False)
    return root


def texture_dataset(
    work: Path,
    *,
    vcodec: str = "libsvtav1",
    episodes: int = 2,
    frames: int = 100,
    height: int = 480,
    width: int = 640,
    cameras: int = 2,
) -> Path:
    """Moving textures from `cameras` cameras, encoded with LeRobot's settings; states and actions as ALOHA's."""
    import av
    import datasets
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = work / f"textures-{vcodec}-{cameras}x{height}x{width}-{episodes}x{frames}"
    if (root / "complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    names = [f"observation.images.camera{number}" for number in range(cameras)]
    vector = {"dtype": "float32", "shape": (14,), "names": None}
    picture = {"dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        TEXTURES,
        30,
        {"observation.state": vector, "action": vector, **dict.fromkeys(names, picture)},
        root=root,
        use_videos=True,
        rgb_encoder=RGBEncoderConfig(vcodec=vcodec),
        streaming_encoding=True,
        encoder_queue_maxsize=frames + 1,
        video_backend="pyav",
    )
    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        sources = {name: MovingTexture(rng, height, width) for name in names}
        for _ in range(frames):
            vectors = {
                key: rng.standard_normal(14).astype(np.float32) for key in ("observation.state", "action")
            }
            pictures = {name: source.next() for name, source in sources.items()}
            dataset.add_frame({**vectors, **pictures, "task": "move"})
        dataset.save_episode()
    dataset.finalize()
    (root / "complete").touch()
    return root


class MovingTexture:
    """A window that slides over a large picture of smooth noise, with a little sensor noise: not too easy for a codec."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.size = rng, (height, width)
        coarse = torch.from_numpy(rng.random((1, 3, height // 16 + 8, width // 16 + 8), dtype=np.float32))
        size = (height + 128, width + 128)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0]
        fine = torch.from_numpy(rng.random((3, *size), dtype=np.float32))
        picture = (smooth * 0.85 + fine * 0.15).clamp(0, 1) * 247 + 4
        self.picture = picture.permute(1, 2, 0).to(torch.uint8).numpy()
        self.at = rng.uniform(0, 2 * math.pi, 2)
        self.speed = rng.uniform(0.03, 0.08, 2)

    def next(self) -> np.ndarray:
        self.at += self.speed
        top, left = (63 * (1 + np.sin(self.at))).astype(int)
        height, width = self.size
        frame = self.picture[top : top + height, left : left + width]
        return frame + self.rng.integers(0, 4, frame.shape, dtype=np.uint8)


# --- caches -----------------------------------------------------------------------------------------------


def identity_of(
    frames: int, *, dim: int = 192, dtype: str = "float16", cameras: tuple[str, ...] = (CAMERA,)
) -> CacheIdentity:
    """Of a cache that belongs to no dataset: enough to open it and gather from it."""
    camera = CameraIdentity(kind="video", height=96, width=96, frames=NO_HASH, content=NO_HASH)
    return CacheIdentity(
        dataset=DatasetIdentity(
            repo_id="local/synthetic", revision="none", num_episodes=1, num_frames=frames,
            cameras=dict.fromkeys(cameras, camera),
        ),
        encoder=EncoderIdentity(
            weights_sha256=NO_HASH, hidden_size=dim, num_layers=12, patch_size=16, image_size=224
        ),
        preprocessing={},
        tokens=TokenIdentity(dtype=dtype),
    )  # fmt: skip


def encoder_spec(name: str) -> EncoderSpec:
    return TheiaEncoder.from_pretrained(name).spec


def cache_of_dataset(
    root: Path,
    repo_id: str,
    cache_root: Path,
    *,
    encoder: str = "random-tiny",
    dtype: str = "float16",
    pool: int = 1,
    tokens: TokensOf | None = None,
) -> FeatureCache:
    """The cache that precompute would make of a dataset, as far as `lerobot-train` can tell; its tokens are random,
    or those that `tokens` gives."""
    settings = PrecomputeSettings(
        repo_id=repo_id, root=str(root), cache_root=str(cache_root), encoder=encoder, dtype=dtype, pool=pool
    )
    meta = LeRobotDatasetMetadata(repo_id, root=root)
    plan = make_plan(settings, meta, encoder_spec(encoder))
    return write_cache(plan.path, plan.identity, tokens=tokens, files=plan.source.files, encoder=encoder)


def write_cache(
    path: Path,
    identity: CacheIdentity,
    *,
    tokens: TokensOf | None = None,
    files: dict[str, tuple[SourceFile, ...]] | None = None,
    encoder: str = "synthetic",
) -> FeatureCache:
    """A cache of random tokens, or of those given, written shard by shard with the cache's own writer."""
    if (path / MANIFEST_NAME).exists():
        return FeatureCache.open(path)
    layout, frames = shard_layout(identity), identity.dataset.num_frames
    shard_frames = frames_of_a_shard(layout, frames)
    if tokens is None:  # the same for all shards: making random numbers takes longer than writing them
        shape = (min(shard_frames, frames), layout.num_tokens, layout.dim)
        block = encode_tokens(torch.randn(shape, generator=torch.Generator().manual_seed(0)), layout.dtype)
    digests: dict[str, list[str]] = {}
    statistics: dict[str, TokenStatistics] = {}
    for camera in identity.dataset.cameras:
        digests[camera] = []
        sums = torch.zeros(2, layout.dim, dtype=torch.float64)
        for shard in range(num_shards(frames, shard_frames)):
            key = shard_key(identity, shard_frames, camera, shard)
            if tokens is None:
                scale = None if block.scale is None else block.scale[: key.frames]
                stored = StoredTokens(block.tokens[: key.frames], scale)
            else:
                stored = encode_tokens(tokens(key.start, key.start + key.frames), layout.dtype)
            file = shard_path(path, camera, shard)
            digests[camera].append(write_shard(file, key, layout, stored))
            opened = Shard(file, key, layout, path)
            sums += torch.stack([opened.tensors["sum"], opened.tensors["sum_sq"]])
        mean, mean_square = sums / (frames * layout.num_tokens)
        std = (mean_square - mean.square()).clamp_min(0).sqrt()
        statistics[camera] = TokenStatistics(tuple(mean.tolist()), tuple(std.tolist()))
    finish(path, identity, shard_frames, digests, statistics, files, encoder)
    return FeatureCache.open(path)


def frames_of_a_shard(layout: ShardLayout, frames: int) -> int:
    return frames_per_shard(None, bytes_per_frame(layout.num_tokens, layout.dim, layout.dtype), frames)


def write_sparse_cache(path: Path, identity: CacheIdentity, shard_frames: int | None = None) -> None:
    """Shards that are holes behind valid headers: a cache of any size on a small disk. Its tokens read as zeros.

    Without `shard_frames`, shards are as large as precompute would make them.
    """
    if (path / MANIFEST_NAME).exists():
        return
    layout, frames = shard_layout(identity), identity.dataset.num_frames
    shard_frames = shard_frames or frames_of_a_shard(layout, frames)
    digests: dict[str, list[str]] = {}
    for camera in identity.dataset.cameras:
        shard_path(path, camera, 0).parent.mkdir(parents=True, exist_ok=True)
        digests[camera] = []
        for shard in range(num_shards(frames, shard_frames)):
            key = shard_key(identity, shard_frames, camera, shard)
            sha256 = hashlib.sha256(f"{camera}/{shard}".encode()).hexdigest()
            header = shard_header(key, layout, sha256)
            with shard_path(path, camera, shard).open("wb") as file:
                file.write(header)
                file.truncate(len(header) + layout.payload_bytes(key.frames))
            digests[camera].append(sha256)
    zeros = (0.0,) * layout.dim
    statistics = dict.fromkeys(digests, TokenStatistics(zeros, zeros))
    finish(path, identity, shard_frames, digests, statistics, None, "synthetic")


def finish(
    path: Path,
    identity: CacheIdentity,
    shard_frames: int,
    digests: dict[str, list[str]],
    statistics: dict[str, TokenStatistics],
    files: dict[str, tuple[SourceFile, ...]] | None,
    encoder: str,
) -> None:
    cameras = identity.dataset.cameras
    manifest = Manifest(
        identity=identity,
        shard_frames=shard_frames,
        shards={camera: tuple(each) for camera, each in digests.items()},
        statistics=statistics,
        files=files or dict.fromkeys(cameras, ()),
        encoder_name=encoder,
        encoder_note="made by benchmarks/synthetic.py; no encoder ran",
        made_with={},
    )
    write_manifest(path, manifest)


def main() -> None:
    from common import options

    chosen = options(__doc__)
    small = {"episodes": 1, "frames": 4} if chosen.quick else {}
    print(pusht_dataset(chosen.work, 2 if chosen.quick else 20))
    for vcodec in ("libsvtav1", "h264"):
        print(texture_dataset(chosen.work, vcodec=vcodec, **small))


if __name__ == "__main__":
    main()
