"""A shard: the tokens of consecutive frames of one camera, as one safetensors file.

Tensors, n frames of N tokens of D channels:

    tokens  (n, N, D)  the storage dtype
    scale   (n, N)     float32, int8 caches only
    sum     (D,)       float64, over the n * N stored tokens
    sum_sq  (D,)       float64, of their squares

The metadata holds one key, `shard`: JSON that says which shard of which cache this is, and the SHA-256 of the
tensors in the order above, so that a shard found after an interruption proves itself without a manifest.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from lerobot_theia.cache.errors import CacheDamagedError
from lerobot_theia.cache.files import publish
from lerobot_theia.cache.identity import canonical_json, checked
from lerobot_theia.cache.storage import StoredTokens, decode_tokens, torch_dtype

SAFETENSORS_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8",
}  # fmt: skip
FRAMES_SUMMED_AT_ONCE = 32
MAX_HEADER_BYTES = 16_384
"""Our headers are below 1 kB; a larger one is not ours."""


@dataclass(frozen=True, kw_only=True)
class ShardKey:
    """Which shard this is."""

    fingerprint: str
    camera: str
    shard: int
    start: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """Shape of a cache's rows: what every shard header must say."""

    num_tokens: int
    dim: int
    dtype: str

    def tensors(self, frames: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "tokens": (torch_dtype(self.dtype), (frames, self.num_tokens, self.dim))
        }
        if self.dtype == "int8":
            tensors["scale"] = (torch.float32, (frames, self.num_tokens))
        return tensors | {"sum": (torch.float64, (self.dim,)), "sum_sq": (torch.float64, (self.dim,))}

    def payload_bytes(self, frames: int) -> int:
        """Bytes of a shard's tensors, without its header."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.tensors(frames).values())


def shard_path(cache: Path, camera: str, shard: int) -> Path:
    """Names are computed, never read from a file, so no manifest can point outside its folder."""
    return cache / camera / f"{shard:06d}.safetensors"


def write_shard(path: Path, key: ShardKey, stored: StoredTokens) -> str:
    """Write a shard all at once or not at all; returns the file's SHA-256."""
    tensors = {"tokens": stored.tokens.contiguous()}
    if stored.scale is not None:
        tensors["scale"] = stored.scale.contiguous()
    tensors |= token_sums(stored)
    metadata = {"shard": canonical_json(asdict(key) | {"sha256": payload_digest(tensors)})}
    return publish(path, [safetensors.torch.save(tensors, metadata)])


def token_sums(stored: StoredTokens) -> dict[str, Tensor]:
    """Per channel (D,) float64, a few frames at a time: float64 copies of a whole shard would not be small."""
    dim = stored.tokens.shape[-1]
    sums = {"sum": torch.zeros(dim, dtype=torch.float64), "sum_sq": torch.zeros(dim, dtype=torch.float64)}
    for start in range(0, len(stored.tokens), FRAMES_SUMMED_AT_ONCE):
        part = slice(start, start + FRAMES_SUMMED_AT_ONCE)
        scale = None if stored.scale is None else stored.scale[part]
        values = decode_tokens(stored.tokens[part], scale).flatten(0, 1).double()  # (n * N, D)
        sums["sum"] += values.sum(0)
        sums["sum_sq"] += values.square().sum(0)
    return sums


def payload_digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Shard:
    """A shard opened for reading. Its tensors are a private memory map of the file; no file stays open.

    Raises CacheDamagedError when the file is not exactly the shard that `key` and `layout` describe. The
    contents are not hashed here; `verify` does that.
    """

    def __init__(self, path: Path, key: ShardKey, layout: ShardLayout) -> None:
        self.path, self.key = path, key
        expected = layout.tensors(key.frames)
        try:
            size = path.stat().st_size
            metadata, entries, base = read_header(path, size)
            if metadata.key != key:
                raise ValueError(f"it says it is {metadata.key}, expected {key}")
            bounds = check_entries(entries, expected, size - base)
            file = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            self.tensors = {
                # Fails, as it should, for offsets that are not multiples of the type's size.
                name: file[base + start : base + stop].view(expected[name][0]).view(expected[name][1])
                for name, (start, stop) in bounds.items()
            }
        except FileNotFoundError:
            raise CacheDamagedError(f"shard {path} is missing") from None
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CacheDamagedError(f"shard {path} is damaged: {error}") from error
        self._sha256 = metadata.sha256

    def verify(self) -> None:
        """Read every byte. Raises CacheDamagedError when the contents are not what was written."""
        if payload_digest(self.tensors) != self._sha256:
            raise CacheDamagedError(f"shard {self.path} was altered: its tensors do not match their SHA-256")


@dataclass(frozen=True)
class ShardMetadata:
    key: ShardKey
    sha256: str


def read_header(path: Path, size: int) -> tuple[ShardMetadata, dict, int]:
    """Returns metadata, tensor entries and the offset of the first tensor byte."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(
                f"a header of {length} bytes in a file of {size} (cut short, or no safetensors file)"
            )
        entries: dict = json.loads(file.read(length), object_pairs_hook=unique_keys)
    metadata: dict = json.loads(entries.pop("__metadata__")["shard"], object_pairs_hook=unique_keys)
    sha256 = metadata.pop("sha256")
    return ShardMetadata(checked(ShardKey, metadata), str(sha256)), entries, 8 + length


def is_shard(path: Path) -> bool:
    """Whether a file calls itself a shard of some cache."""
    try:
        read_header(path, path.stat().st_size)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return True


def unique_keys(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate keys in JSON")
    return value


def check_entries(entries: dict, expected: dict, size: int) -> dict[str, tuple[int, int]]:
    """Byte bounds per tensor. Raises ValueError unless they are the expected tensors and tile the file exactly."""
    if entries.keys() != expected.keys():
        raise ValueError(f"it holds tensors {sorted(entries)}, expected {sorted(expected)}")
    bounds = {}
    for name, (dtype, shape) in expected.items():
        entry = entries[name]
        wanted = {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape)}
        if {"dtype": entry["dtype"], "shape": entry["shape"]} != wanted:
            raise ValueError(f"tensor {name!r} is {entry}, expected {wanted}")
        start, stop = entry["data_offsets"]
        if not type(start) is type(stop) is int or stop - start != dtype.itemsize * math.prod(shape):
            raise ValueError(f"tensor {name!r} spans bytes {start}..{stop}, which is not its shape's size")
        bounds[name] = (start, stop)
    if not tiles(bounds.values(), size):
        raise ValueError(
            f"its tensors at {sorted(bounds.values())} do not fill its {size} bytes: cut short, extended or altered"
        )
    return bounds


def tiles(bounds: Iterable[tuple[int, int]], size: int) -> bool:
    """Whether the intervals cover 0..size without gap or overlap."""
    at = 0
    for start, stop in sorted(bounds):
        if start != at:
            return False
        at = stop
    return at == size
