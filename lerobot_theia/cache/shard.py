"""A shard: the tokens of consecutive frames of one camera, as one safetensors file.

Tensors in the order of the file, n rows of N tokens of D channels; a row is a frame, or one of its views:

    sum     (D,)       float64, over the n * N stored tokens
    sum_sq  (D,)       float64, of their squares
    scale   (n, N)     float32, int8 caches only
    tokens  (n, N, D)  the storage dtype

The header is a function of which shard it is, of the layout, and of the SHA-256 of the tensors. So a reader never
parses a header: it knows every byte that must be there, but for the 64 digits, and those it takes from the manifest or,
where an interrupted run left no manifest, from their place in the file.
"""

import functools
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lerobot_theia.cache.errors import CacheDamagedError, CacheError
from lerobot_theia.cache.files import NewFile, open_inside
from lerobot_theia.cache.storage import StoredTokens, decode_tokens, torch_dtype

SAFETENSORS_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8",
}  # fmt: skip
HASHED = ("tokens", "scale", "sum", "sum_sq")
"""Order in which tensors go into the SHA-256: tokens can be hashed as they come, the rest is known at the end."""
FRAMES_SUMMED_AT_ONCE = 32
ALIGNMENT = 64
"""Tensors begin at a multiple of this many bytes, a cache line."""
NO_DIGEST = "0" * 64
READ_BYTES = 2**20


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
    """Shape of a cache's rows."""

    num_tokens: int
    dim: int
    dtype: str
    views: int = 1
    """Rows per frame."""

    def tensors(self, frames: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Types and shapes, widest type first, which keeps all of them aligned."""
        rows = frames * self.views
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "sum": (torch.float64, (self.dim,)),
            "sum_sq": (torch.float64, (self.dim,)),
        }
        if self.dtype == "int8":
            tensors["scale"] = (torch.float32, (rows, self.num_tokens))
        return tensors | {"tokens": (torch_dtype(self.dtype), (rows, self.num_tokens, self.dim))}

    @functools.lru_cache(maxsize=256)  # noqa: B019 (layouts are few, small and last)
    def bounds(self, frames: int) -> dict[str, tuple[int, int]]:
        """First and last byte + 1 of each tensor, counted from the end of the header."""
        bounds, at = {}, 0
        for name, (dtype, shape) in self.tensors(frames).items():
            bounds[name] = (at, at + dtype.itemsize * math.prod(shape))
            at = bounds[name][1]
        return bounds

    def payload_bytes(self, frames: int) -> int:
        """Bytes of a shard's tensors, without its header."""
        return self.bounds(frames)["tokens"][1]


def shard_path(cache: Path, camera: str, shard: int) -> Path:
    """Names are computed, never read from a file, so no manifest can point outside its folder."""
    return cache / camera / f"{shard:06d}.safetensors"


def shard_header(key: ShardKey, layout: ShardLayout, sha256: str) -> bytes:
    """The one header of this shard: length, JSON, and spaces up to the alignment."""
    # Canonical JSON, spelt out: opening a cache makes one per shard.
    metadata = (
        f'{{"camera":{json.dumps(key.camera)},"fingerprint":"{key.fingerprint}","frames":{key.frames},'
        f'"sha256":"{sha256}","shard":{key.shard},"start":{key.start}}}'
    )
    text = f'{{"__metadata__":{{"shard":{json.dumps(metadata)}}},{_entries(layout, key.frames)}}}'.encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@functools.lru_cache(maxsize=64)
def _entries(layout: ShardLayout, frames: int) -> str:
    """The part of the header that says where each tensor lies."""
    bounds = layout.bounds(frames)
    entries = {
        name: {"dtype": SAFETENSORS_DTYPES[dtype], "shape": list(shape), "data_offsets": list(bounds[name])}
        for name, (dtype, shape) in layout.tensors(frames).items()
    }
    return json.dumps(entries, separators=(",", ":"))[1:-1]


def shard_bytes(key: ShardKey, layout: ShardLayout) -> int:
    """Size of the file."""
    return len(shard_header(key, layout, NO_DIGEST)) + layout.payload_bytes(key.frames)


class ShardWriter:
    """Writes a shard as its tokens come; it appears when `finish` is called, or not at all.

        with ShardWriter(path, key, layout) as writer:
            for stored in batches:
                writer.append(stored)
            sha256 = writer.finish()

    Memory does not grow with the shard, but for the scales of int8 tokens.
    """

    def __init__(self, path: Path, key: ShardKey, layout: ShardLayout) -> None:
        self.key, self.layout = key, layout
        self._bounds = layout.bounds(key.frames)
        self._base = len(shard_header(key, layout, NO_DIGEST))
        self._tokens_at = self._base + self._bounds["tokens"][0]
        self._digest = hashlib.sha256()
        self._rest = {name: torch.zeros(layout.dim, dtype=torch.float64) for name in ("sum", "sum_sq")}
        self._scales: list[Tensor] = []
        self._file = NewFile(path)

    def append(self, stored: StoredTokens) -> None:
        """The next rows, (b, N, D), on the CPU."""
        data = as_bytes(stored.tokens)
        self._digest.update(data)
        self._file.write(data, self._tokens_at)
        self._tokens_at += data.nbytes
        if stored.scale is not None:
            self._scales.append(stored.scale)
        add_sums(self._rest, stored)

    def finish(self) -> str:
        """Returns the SHA-256 of the tensors. Raises ValueError unless all frames have come."""
        expected = self._base + self._bounds["tokens"][1]
        if self._tokens_at != expected:
            raise ValueError(f"{self.key} ends at byte {self._tokens_at} of {expected}")
        rest = {"scale": torch.cat(self._scales)} if self._scales else {}
        rest |= self._rest
        for name in HASHED[1:]:
            if name in rest:
                data = as_bytes(rest[name])
                self._digest.update(data)
                self._file.write(data, self._base + self._bounds[name][0])
        sha256 = self._digest.hexdigest()
        self._file.write(shard_header(self.key, self.layout, sha256), 0)
        self._file.publish()
        return sha256

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)


def write_shard(path: Path, key: ShardKey, layout: ShardLayout, stored: StoredTokens) -> str:
    """A shard whose tokens are all here; returns the SHA-256 of its tensors."""
    with ShardWriter(path, key, layout) as writer:
        writer.append(stored)
        return writer.finish()


def add_sums(sums: dict[str, Tensor], stored: StoredTokens) -> None:
    """Add per-channel sums (D,) frame by frame, so that they do not depend on how frames came in batches."""
    for start in range(0, len(stored.tokens), FRAMES_SUMMED_AT_ONCE):
        # A few frames at a time: the float64 copy of a large batch would not be small.
        part = slice(start, start + FRAMES_SUMMED_AT_ONCE)
        scale = None if stored.scale is None else stored.scale[part]
        values = decode_tokens(stored.tokens[part], scale).double()  # (b, N, D)
        for name, frames in (("sum", values.sum(1)), ("sum_sq", values.square().sum(1))):
            for frame in frames:
                sums[name] += frame


def as_bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def check_header(
    path: Path,
    key: ShardKey,
    layout: ShardLayout,
    cache: Path,
    sha256: str | None = None,
    opened: int | None = None,
) -> str:
    """Check by size and header that a file of `cache` is the shard that `key` and `layout` describe.

    Returns the SHA-256 of its tensors; without `sha256` the file's own digits are taken for it. `opened` is as for
    `open_inside`. Raises CacheDamagedError.
    """
    return checked_header(path, key, layout, cache, sha256, opened)[0]


def checked_header(
    path: Path, key: ShardKey, layout: ShardLayout, cache: Path, sha256: str | None, opened: int | None = None
) -> tuple[str, int]:
    """As `check_header`; returns the length of the header, too."""
    expected = shard_header(key, layout, sha256 or NO_DIGEST)
    size = len(expected) + layout.payload_bytes(key.frames)
    try:
        descriptor = open_inside(path, cache, opened)
        try:
            found_size = os.fstat(descriptor).st_size
            found = os.pread(descriptor, len(expected), 0)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise CacheDamagedError(f"shard {path} is missing") from None
    except OSError as error:
        raise CacheDamagedError(f"shard {path} cannot be read: {error.strerror or error}") from error
    if found_size != size:
        raise CacheDamagedError(
            f"shard {path} has {found_size} bytes, {size} are expected: cut short, extended or not this cache's"
        )
    if sha256 is None:
        at = expected.rindex(NO_DIGEST.encode())  # the last: a camera may be called so
        if not re.fullmatch(b"[0-9a-f]{64}", digits := found[at : at + 64]):
            raise CacheDamagedError(f"shard {path} was altered: it has no SHA-256")
        sha256 = digits.decode()
        expected = shard_header(key, layout, sha256)
    if found != expected:
        at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
        raise CacheDamagedError(
            f"shard {path} is not frames {key.start}..{key.start + key.frames - 1} of camera {key.camera!r} of this "
            f"cache, or was altered: its header differs from the one expected at byte {at}"
        )
    return sha256, len(expected)


class Shard:
    """A shard opened for reading: a private memory map of the file; no file stays open.

    Size and header are checked as in `check_header`; the contents are not hashed, `verify_shard` does that.
    """

    def __init__(
        self, path: Path, key: ShardKey, layout: ShardLayout, cache: Path, sha256: str | None = None
    ) -> None:
        self.path, self.key, self.layout = path, key, layout
        self.sha256, self._base = checked_header(path, key, layout, cache, sha256)
        size = self._base + layout.payload_bytes(key.frames)
        try:
            self._file = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        except RuntimeError as error:
            raise CacheError(
                f"shard {path} cannot be mapped into memory: {error}. A process may hold vm.max_map_count maps; "
                "larger shards (shard_mib) need fewer."
            ) from error

    def rows(self, name: str) -> np.ndarray:
        """`tokens` or `scale` as (n, bytes per row): numpy knows no bfloat16, and copies bytes the fastest."""
        return self._bytes(name).view(self.key.frames * self.layout.views, -1).numpy()

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, on the map."""
        return {
            name: self._bytes(name).view(dtype).view(shape)
            for name, (dtype, shape) in self.layout.tensors(self.key.frames).items()
        }

    def _bytes(self, name: str) -> Tensor:
        start, stop = self.layout.bounds(self.key.frames)[name]
        return self._file[self._base + start : self._base + stop]


def verify_shard(
    path: Path, key: ShardKey, layout: ShardLayout, cache: Path, sha256: str | None = None
) -> str:
    """Read every byte; returns the SHA-256. Raises CacheDamagedError when they are not what was written.

    Reads rather than maps: a file that shrinks meanwhile is then an error and not a crash.
    """
    sha256, base = checked_header(path, key, layout, cache, sha256)
    bounds = layout.bounds(key.frames)
    digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            for name in HASHED:
                start, stop = bounds.get(name, (0, 0))
                file.seek(base + start)
                left = stop - start
                while left and (count := file.readinto(buffer[: min(left, READ_BYTES)])):
                    digest.update(buffer[:count])
                    left -= count
    except OSError as error:
        raise CacheDamagedError(f"shard {path} cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != sha256:
        raise CacheDamagedError(
            f"shard {path} was altered: the SHA-256 of its tensors is {digest.hexdigest()}, not {sha256}"
        )
    return sha256


def is_shard(path: Path, cache: Path) -> bool:
    """Whether a file in the folder `cache` calls itself a shard of some cache."""
    try:
        with open(open_inside(path, cache), "rb") as file:
            start = file.read(8 + 32)
    except OSError:
        return False
    return start[8:].startswith(b'{"__metadata__":{"shard":"{')
