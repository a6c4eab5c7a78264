"""What a cache was made from. Two caches are the same if and only if every field here is the same."""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from lerobot_theia.cache.augment import Augment, check_views
from lerobot_theia.encoder.names import HEAD_DIM

Json = dict[str, Any]


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_of_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class CameraIdentity:
    """One camera of the dataset, as read."""

    kind: str
    """`video` or `image` (frames inside the parquet files)."""
    height: int
    width: int
    frames: str
    """SHA-256 of the table that says which frame of which file each dataset frame is: see `table`."""
    content: str
    """SHA-256 over the path, size and SHA-256 of each file that holds frames of this camera."""


@dataclass(frozen=True, kw_only=True)
class DatasetIdentity:
    """The dataset a cache belongs to."""

    repo_id: str
    revision: str
    num_episodes: int
    num_frames: int
    cameras: dict[str, CameraIdentity]


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """The network, by its weights rather than by its name: a renamed folder is the same encoder."""

    weights_sha256: str
    hidden_size: int
    num_layers: int
    patch_size: int
    image_size: int
    num_heads: int | None = None
    """Attention heads, which no weight's shape shows: only where they are not of the usual HEAD_DIM channels each."""

    def __post_init__(self) -> None:
        heads = self.num_heads
        if heads is not None and (
            type(heads) is not int or heads < 1 or heads * HEAD_DIM == self.hidden_size
        ):
            raise ValueError(f"num_heads={heads!r:.80} with tokens of {self.hidden_size} channels")


@dataclass(frozen=True, kw_only=True)
class TokenIdentity:
    """Which outputs of the network are kept, and how."""

    layer: str = "last"
    """`last`: after the final layer norm. Middle layers are reserved for half-frozen training."""
    select: str = "patches"
    grid: int = 14
    """Side of the stored square token grid, after pooling."""
    pool: int = 1
    """Side of the average-pooling window over the patch grid; 1 keeps every patch."""
    dtype: str = "float16"
    compute_dtype: str = "float32"
    """Precision of the encoder's arithmetic; half precision differs from a rollout's float32 by more than storage."""


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    dataset: DatasetIdentity
    encoder: EncoderIdentity
    preprocessing: Json
    tokens: TokenIdentity
    views: int = 1
    """Views per frame; view 0 is the plain frame."""
    augment: Augment | None = None
    """How the others were made; None if there are none."""

    def __post_init__(self) -> None:
        check_views(self.views)
        if (self.augment is None) != (self.views == 1):
            raise ValueError(f"{self.views} view(s) a frame, and augment is {self.augment}")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical JSON of all fields."""
        return sha256_of_json(self.to_json())

    def to_json(self) -> Json:
        """Without `augment` and `encoder.num_heads` where they are None, as before they were known."""
        fields = dataclasses.asdict(self)
        for part, name in ((fields, "augment"), (fields["encoder"], "num_heads")):
            if part[name] is None:
                del part[name]
        return fields

    @classmethod
    def from_json(cls, value: Json) -> "CacheIdentity":
        """Raises TypeError, KeyError or ValueError when a field is missing, unknown or of another type."""
        dataset = dict(value["dataset"])
        cameras = {name: checked(CameraIdentity, camera) for name, camera in dataset["cameras"].items()}
        fields = dict(value)
        fields["dataset"] = checked(DatasetIdentity, dataset | {"cameras": cameras})
        fields["encoder"] = checked(EncoderIdentity, fields["encoder"], optional="num_heads")
        fields["tokens"] = checked(TokenIdentity, fields["tokens"])
        if "augment" in fields:
            fields["augment"] = checked(Augment, fields["augment"])
        return checked(cls, fields, optional="augment")


def checked[T](kind: type[T], fields: Json, optional: str | None = None) -> T:
    """Build dataclass `kind`, refusing values of another type than declared (JSON knows no schema).

    The `optional` field is None where it is absent, and has no second spelling: there it may not be null.
    """
    if not isinstance(fields, dict):
        raise TypeError(f"{kind.__name__} wants an object, got {type(fields).__name__}")
    known = dataclasses.fields(kind)  # type: ignore[arg-type]
    if missing := {field.name for field in known} - fields.keys() - {optional}:
        raise KeyError(f"{kind.__name__} lacks {sorted(missing)}")
    if optional in fields and fields[optional] is None:
        raise TypeError(f"{kind.__name__}.{optional} is null; it is left out where there is none")
    for field in known:
        if field.name in fields and field.type in (int, str, bool):
            value = fields[field.name]
            if type(value) is not field.type:
                raise TypeError(
                    f"{kind.__name__}.{field.name} wants {field.type.__name__}, got {value!r:.80}"
                )
    return kind(**fields)


def differences(wanted: Any, found: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves at which two JSON values differ, as (dotted field, wanted, found)."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted(wanted.keys() | found.keys())
        return [
            difference
            for key in keys
            for difference in differences(wanted.get(key), found.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if wanted == found else [(name, wanted, found)]
