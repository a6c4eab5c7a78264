"""The manifest: one JSON file, written last, that makes a folder of shards a cache."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lerobot_theia.cache.errors import CacheDamagedError, CacheError
from lerobot_theia.cache.files import open_inside, publish
from lerobot_theia.cache.identity import CacheIdentity, Json, canonical_json
from lerobot_theia.cache.shard import ShardKey, ShardLayout, shard_bytes
from lerobot_theia.cache.source import SourceFile
from lerobot_theia.cache.storage import FLOAT_DTYPES, torch_dtype

MANIFEST_NAME = "manifest.json"
FORMAT = "lerobot-theia-cache"
FORMAT_VERSION = 3
FIRST_WITH_VIEWS = 3
"""A cache says the oldest version that can read it: one of plain frames is of version 2."""
OLDEST_READABLE_VERSION = 2
"""Raised when older caches can no longer be read as they are; see docs/cache.md, Versions."""
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_VALUES = 2 * 2**20
"""By the commas in a manifest's JSON: as text, small values take a tenth of the memory they take when read."""
MAX_INTEGER = 2**53
"""JSON readers agree up to here."""
MAX_FRAME_BYTES = 2**30
"""Tokens of one frame, which a gather allocates."""
CAMERA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Camera names are folder names inside a cache."""


@dataclass(frozen=True)
class TokenStatistics:
    """Per channel, over all stored tokens of a camera."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    identity: CacheIdentity
    shard_frames: int
    """Frames per shard; the last shard of a camera holds the rest."""
    shards: dict[str, tuple[str, ...]]
    """Per camera, the SHA-256 of each shard's tensors, in order."""
    statistics: dict[str, TokenStatistics]
    files: dict[str, tuple[SourceFile, ...]]
    """Dataset files each camera was read from."""
    encoder_name: str
    encoder_note: str
    """What the encoder is, in words: untrained, its licence."""
    made_with: Json
    """Versions, device and precision of the run; no part of the identity."""

    @property
    def cameras(self) -> list[str]:
        return list(self.identity.dataset.cameras)

    @property
    def num_frames(self) -> int:
        return self.identity.dataset.num_frames

    @functools.cached_property
    def layout(self) -> ShardLayout:
        return shard_layout(self.identity)

    @property
    def num_bytes(self) -> int:
        return sum(self.shard_bytes(camera, shard) for camera, shard in self.shard_names())

    def shard_names(self) -> Iterator[tuple[str, int]]:
        """(camera, shard) of all shards, in order."""
        for camera, digests in self.shards.items():
            for shard in range(len(digests)):
                yield camera, shard

    def shard_bytes(self, camera: str, shard: int) -> int:
        return shard_bytes(self.shard_key(camera, shard), self.layout)

    def shard_key(self, camera: str, shard: int) -> ShardKey:
        return shard_key(self.identity, self.shard_frames, camera, shard)


def shard_layout(identity: CacheIdentity) -> ShardLayout:
    tokens = identity.tokens
    return ShardLayout(
        num_tokens=tokens.grid**2,
        dim=identity.encoder.hidden_size,
        dtype=tokens.dtype,
        views=identity.views,
    )


def shard_key(identity: CacheIdentity, shard_frames: int, camera: str, shard: int) -> ShardKey:
    start = shard * shard_frames
    return ShardKey(
        fingerprint=identity.fingerprint,
        camera=camera,
        shard=shard,
        start=start,
        frames=min(shard_frames, identity.dataset.num_frames - start),
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    body = {
        "format": FORMAT,
        "format_version": version_of(manifest.identity),
        "fingerprint": manifest.identity.fingerprint,
        "identity": manifest.identity.to_json(),
        "shard_frames": manifest.shard_frames,
        "shards": {camera: list(digests) for camera, digests in manifest.shards.items()},
        "statistics": {camera: asdict(statistics) for camera, statistics in manifest.statistics.items()},
        "files": {
            camera: [[file.path, file.size, file.sha256] for file in files]
            for camera, files in manifest.files.items()
        },
        "encoder": {"name": manifest.encoder_name, "note": manifest.encoder_note},
        "made_with": manifest.made_with,
    }
    body["checksum"] = checksum(body)
    publish(folder / MANIFEST_NAME, [spelt(body)])


def version_of(identity: CacheIdentity) -> int:
    return FIRST_WITH_VIEWS if identity.views > 1 else OLDEST_READABLE_VERSION


def spelt(body: Json) -> bytes:
    """The one text of a manifest, so that no changed bit means the same as before (`1e-05` is `1E-05` to JSON)."""
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()


def checksum(body: Json) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Raises CacheDamagedError when the manifest is absent, altered or not one; CacheError for a newer format."""
    path = folder / MANIFEST_NAME
    try:
        text, body = read_json(folder)
    except FileNotFoundError:
        raise CacheDamagedError(
            f"{folder} holds no {MANIFEST_NAME}: it is no cache, or one that is not finished. "
            "Run `lerobot-theia-precompute` with the settings it was begun with to finish it."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CacheDamagedError(f"{path} is not a readable manifest: {error}") from error
    version = body.get("format_version")
    if type(version) is not int or not OLDEST_READABLE_VERSION <= version <= FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        raise CacheError(
            f"{path} has format_version {version!r}; this plugin reads "
            + " to ".join(dict.fromkeys(map(str, (OLDEST_READABLE_VERSION, FORMAT_VERSION))))
            + (". Upgrade lerobot_policy_theia, or" if newer else ". Here you can only")
            + " delete this cache (`lerobot-theia-cache rm`) and precompute again."
        )
    try:
        as_written = text == spelt(body)
        found = body.pop("checksum")
        if found != checksum(body):
            raise ValueError(f"its checksum is {checksum(body)}, it says {found}")
        if not as_written:
            raise ValueError("its values are as they were written, its text is not")
        return parse(body)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CacheDamagedError(f"{path} was altered: {error!r:.300}") from error


def read_json(folder: Path) -> tuple[bytes, Json]:
    """A manifest's text, and what it says; whether that is true is for the caller to see.

    Raises OSError, ValueError or RecursionError for what does not even call itself a manifest.
    """
    with open(open_inside(folder / MANIFEST_NAME, folder), "rb") as file:
        text = file.read(MAX_MANIFEST_BYTES + 1)
    if len(text) > MAX_MANIFEST_BYTES:
        raise ValueError(f"it is larger than the limit, {MAX_MANIFEST_BYTES} bytes")
    if text.count(b",") > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values")
    body = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"it does not say {FORMAT!r}")
    return text, body


def is_manifest(folder: Path) -> bool:
    """Whether a folder holds what calls itself a manifest, of whatever version, altered or not."""
    try:
        read_json(folder)
    except (OSError, ValueError, RecursionError):
        return False
    return True


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate keys in JSON")
    return value


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} in JSON")


def parse(body: Json) -> Manifest:
    """Raises KeyError, TypeError or ValueError for whatever does not hold together."""
    identity = CacheIdentity.from_json(body["identity"])
    if identity.fingerprint != body["fingerprint"]:
        raise ValueError(
            f"fingerprint {body['fingerprint']} is not that of its identity, {identity.fingerprint}"
        )
    if body["format_version"] != version_of(identity):
        raise ValueError(f"format_version {body['format_version']} with {identity.views} view(s) a frame")
    manifest = Manifest(
        identity=identity,
        shard_frames=positive(body["shard_frames"], "shard_frames"),
        shards={
            str(camera): tuple(digest(value, f"shard of {camera!r}") for value in digests)
            for camera, digests in body["shards"].items()
        },
        statistics={
            str(camera): TokenStatistics(
                tuple(finite(value, f"mean of {camera!r}") for value in statistics["mean"]),
                tuple(finite(value, f"std of {camera!r}") for value in statistics["std"]),
            )
            for camera, statistics in body["statistics"].items()
        },
        files={
            str(camera): tuple(SourceFile(str(path), int(size), str(sha)) for path, size, sha in files)
            for camera, files in body["files"].items()
        },
        encoder_name=str(body["encoder"]["name"]),
        encoder_note=str(body["encoder"]["note"]),
        made_with=dict(body["made_with"]),
    )
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Raises ValueError for sizes that contradict each other, so that no later allocation trusts a number alone."""
    positive(manifest.num_frames, "num_frames")
    positive(manifest.identity.encoder.hidden_size, "hidden_size")
    positive(manifest.identity.tokens.grid, "grid")
    torch_dtype(manifest.identity.tokens.dtype)
    if manifest.identity.tokens.compute_dtype not in FLOAT_DTYPES:
        raise ValueError(f"compute_dtype is {manifest.identity.tokens.compute_dtype!r:.80}")
    cameras, layout = manifest.identity.dataset.cameras.keys(), manifest.layout
    if (size := layout.payload_bytes(1)) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame would take {size} bytes")
    for part in (manifest.shards, manifest.statistics, manifest.files):
        if part.keys() != cameras:
            raise ValueError(f"cameras {sorted(part)} and {sorted(cameras)} differ")
    for camera in cameras:
        if not CAMERA_NAME.fullmatch(camera):
            raise ValueError(f"camera {camera!r} cannot be a folder name")
        if len(manifest.shards[camera]) != num_shards(manifest.num_frames, manifest.shard_frames):
            raise ValueError(
                f"{len(manifest.shards[camera])} shards for {manifest.num_frames} frames of {camera!r}"
            )
        statistics = manifest.statistics[camera]
        if not len(statistics.mean) == len(statistics.std) == layout.dim:
            raise ValueError(f"statistics of {camera!r} are not {layout.dim} channels")


def num_shards(num_frames: int, shard_frames: int) -> int:
    return -(-num_frames // shard_frames)


def digest(value: object, name: str) -> str:
    if type(value) is not str or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{name} is {value!r:.80}, not a SHA-256")
    return value


def finite(value: object, name: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ValueError(f"{name} holds {value!r:.80}, not a finite number")
    return float(value)  # type: ignore[arg-type]


def positive(value: object, name: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_INTEGER:
        raise ValueError(f"{name} is {value!r:.80}, not an integer of 1 to {MAX_INTEGER}")
    return value
