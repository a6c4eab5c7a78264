"""What a precompute run will do: settings -> plan. Everything wrong with a request is found here, before any work."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot_theia.cache.augment import Augment, check_views
from lerobot_theia.cache.errors import CacheError
from lerobot_theia.cache.identity import CacheIdentity, EncoderIdentity, TokenIdentity
from lerobot_theia.cache.manifest import CAMERA_NAME
from lerobot_theia.cache.pooling import pooled_grid
from lerobot_theia.cache.root import resolve_cache_root
from lerobot_theia.cache.source import DatasetSource, FileHashes, describe_source, select_cameras
from lerobot_theia.cache.storage import FLOAT_DTYPES, bytes_per_frame, torch_dtype
from lerobot_theia.encoder import EncoderSpec
from lerobot_theia.encoder.names import HEAD_DIM
from lerobot_theia.encoder.preprocess import preprocessing_of

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

DEFAULT_TOLERANCE_S = 1e-4
"""LeRobot's."""
SHARD_BYTES = 64 * 2**20
MAX_SHARD_MIB = 2**20
"""1 TiB."""
SHARDS_PER_CAMERA = 48
"""With few shards a cache opens as fast at ten million frames as at ten thousand, and needs few memory maps; with enough
of them an interruption costs a fiftieth of the work."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeSettings:
    """What to encode, with what, and where to keep it."""

    repo_id: str
    """Dataset, as for `--dataset.repo_id`."""
    root: str | None = None
    """Its folder, as for `--dataset.root`; None looks in LeRobot's home and on the Hub."""
    revision: str | None = None
    video_backend: str | None = None
    """`torchcodec` or `pyav`; None is LeRobot's choice. It must be that of training, or frames differ by a bit."""
    tolerance_s: float = DEFAULT_TOLERANCE_S
    """Seconds by which a video's frame may miss its timestamp, as for `--tolerance_s`. The nearest is taken in any case, so it
    is no part of a cache's identity."""
    cameras: tuple[str, ...] | None = None
    """Cameras to encode; None is all."""
    encoder: str = "theia-tiny-cdiv"
    encoder_revision: str | None = None
    cache_root: str | None = None
    dtype: str = "float16"
    """Storage: float16, bfloat16, float32, int8."""
    pool: int = 1
    """Side of the average-pooling window over the 14x14 grid: 1, 2, 7 or 14."""
    views: int = 1
    """Views of each frame: the plain one, and so many less one that are augmented. A cache has so many times the bytes."""
    augment: Augment = field(default_factory=Augment)
    """How far those go."""
    device: str | None = None
    """None takes an accelerator if there is one."""
    compute_dtype: str = "float32"
    """Precision of the encoder. float32 agrees with rollouts to rounding; halves are faster on a GPU."""
    batch_size: int = 64
    shard_mib: int | None = None
    """Approximate size of a shard. None: 64 MiB, or as much as keeps a camera to SHARDS_PER_CAMERA, or, within a factor of two
    of that, the size of a cache to copy from. Not part of a cache's identity, but of its folder's layout."""
    decode_threads: int | None = None
    """Threads that decode, each a batch. None: as many as keep up with the encoder, on the cores there are."""
    compile: bool = False
    """torch.compile the encoder; with a warning eager where that fails. Its tokens differ by rounding, as those of another
    device do."""
    verify: bool = True
    """Read finished shards in full before trusting them; False only looks at their headers."""

    def __post_init__(self) -> None:
        torch_dtype(self.dtype)
        check_views(self.views)
        for name in ("batch_size", "shard_mib", "decode_threads", "pool"):
            value = getattr(self, name)
            automatic = value is None and name in ("shard_mib", "decode_threads")
            if (type(value) is not int or value < 1) and not automatic:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        if self.shard_mib is not None and self.shard_mib > MAX_SHARD_MIB:
            raise ValueError(f"shard_mib={self.shard_mib} must be at most {MAX_SHARD_MIB}")
        for name in ("compile", "verify"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}={getattr(self, name)!r} must be true or false")
        tolerance_s = self.tolerance_s
        if type(tolerance_s) not in (int, float) or not 0 < tolerance_s < math.inf:
            raise ValueError(f"tolerance_s={tolerance_s!r} must be a number of seconds above 0")
        if self.video_backend not in (None, "torchcodec", "pyav"):
            raise ValueError(
                f"video_backend={self.video_backend!r}; choose torchcodec or pyav, or leave it out"
            )
        if self.compute_dtype not in FLOAT_DTYPES:
            raise ValueError(f"compute_dtype={self.compute_dtype!r}; choose one of {', '.join(FLOAT_DTYPES)}")


@dataclass(frozen=True)
class Plan:
    """What a run will do, known before it starts."""

    settings: PrecomputeSettings
    identity: CacheIdentity
    source: DatasetSource
    path: Path
    shard_frames: int
    bytes_per_frame: int

    @property
    def cameras(self) -> list[str]:
        return list(self.identity.dataset.cameras)

    @property
    def num_frames(self) -> int:
        """Over all cameras."""
        return self.identity.dataset.num_frames * len(self.cameras)

    @property
    def num_bytes(self) -> int:
        return self.num_frames * self.bytes_per_frame

    def describe(self) -> str:
        tokens = self.identity.tokens
        return (
            f"{self.identity.dataset.num_frames:,} frames x {len(self.cameras)} camera(s) {self.cameras}, "
            f"{tokens.grid}x{tokens.grid} tokens x {self.identity.encoder.hidden_size} channels in {tokens.dtype}"
            f"{f' x {views} views' if (views := self.identity.views) > 1 else ''}: "
            f"{self.bytes_per_frame:,} bytes a frame, {format_bytes(self.num_bytes)} in all, at {self.path}"
        )


def format_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.4g} {unit}"
        size /= 1000
    raise AssertionError


def make_plan(settings: PrecomputeSettings, meta: "LeRobotDatasetMetadata", encoder: EncoderSpec) -> Plan:
    """Everything that can be wrong with the request is wrong here, before any work."""
    cache_root = resolve_cache_root(settings.cache_root)
    cameras = select_cameras(meta, settings.cameras)
    if bad := [camera for camera in cameras if not CAMERA_NAME.fullmatch(camera)]:
        raise CacheError(f"cameras {bad} cannot be folder names; rename them in the dataset")
    hashes = FileHashes(cache_root)
    source = describe_source(meta, cameras, hashes)
    hashes.save()
    identity = make_identity(
        source,
        encoder,
        dtype=settings.dtype,
        pool=settings.pool,
        compute_dtype=settings.compute_dtype,
        views=settings.views,
        augment=settings.augment,
    )
    size = bytes_per_frame(identity.tokens.grid**2, encoder.hidden_size, settings.dtype) * settings.views
    return Plan(
        settings=settings,
        identity=identity,
        source=source,
        path=cache_root / cache_name(identity, encoder.name),
        shard_frames=frames_per_shard(settings.shard_mib, size, identity.dataset.num_frames),
        bytes_per_frame=size,
    )


def frames_per_shard(shard_mib: int | None, bytes_per_frame: int, num_frames: int) -> int:
    if shard_mib is not None:
        return max(1, shard_mib * 2**20 // bytes_per_frame)
    return max(1, SHARD_BYTES // bytes_per_frame, -(-num_frames // SHARDS_PER_CAMERA))


def make_identity(
    source: DatasetSource,
    encoder: EncoderSpec,
    *,
    dtype: str,
    pool: int,
    compute_dtype: str,
    views: int = 1,
    augment: Augment | None = None,
) -> CacheIdentity:
    """`augment` counts only where there is more than the plain view."""
    return CacheIdentity(
        dataset=source.identity,
        encoder=EncoderIdentity(
            weights_sha256=encoder.weights_sha256,
            hidden_size=encoder.hidden_size,
            num_layers=encoder.num_layers,
            patch_size=encoder.patch_size,
            image_size=encoder.image_size,
            num_heads=None if encoder.num_heads * HEAD_DIM == encoder.hidden_size else encoder.num_heads,
        ),
        preprocessing=preprocessing_of(encoder),
        tokens=TokenIdentity(
            grid=pooled_grid(encoder.grid, pool), pool=pool, dtype=dtype, compute_dtype=compute_dtype
        ),
        views=views,
        augment=augment if views > 1 else None,
    )


def dataset_folder(repo_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "--", repo_id).strip(".") or "dataset"


def cache_name(identity: CacheIdentity, encoder_name: str) -> str:
    """`<dataset>/<encoder>-<dtype>[-pool2][-views4]-<fingerprint>`: for eyes; what counts is the manifest."""
    dataset = dataset_folder(identity.dataset.repo_id)
    encoder = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(encoder_name).name).strip(".") or "encoder"
    pool = f"-pool{identity.tokens.pool}" if identity.tokens.pool > 1 else ""
    views = f"-views{identity.views}" if identity.views > 1 else ""
    return f"{dataset}/{encoder}-{identity.tokens.dtype}{pool}{views}-{identity.fingerprint[:12]}"
