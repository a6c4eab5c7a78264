"""A source, read once and kept on disk in the size the student will see: uint8 frames and their truth, in shards.

A shard holds a fixed stretch of the source's items, in a file that says what it was made from; so an
interrupted packing resumes, and when files of a source change, only their shards are made again. There is no
manifest: a packed source is whole when each of its shards is there and says so.
"""

import importlib.metadata
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_theia.cache.claim import CLAIM_PREFIX, waiting_for
from lerobot_theia.cache.files import publish, remove_temporaries
from lerobot_theia.distill.arrays import Arrays, arrays_sha256, write_arrays
from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import Frame, Frames, Item
from lerobot_theia.distill.hashing import digest_of
from lerobot_theia.distill.sources.interface import Source
from lerobot_theia.encoder.resize import resize

FORMAT = "lerobot-theia-frames"
FORMAT_VERSION = 2
SHARD_ITEMS = 512
SHOWN = 5
"""Skipped images named in a message."""
SKIPPED_FILE = "skipped.jsonl"
"""All of them, where they were too many."""

IMAGES, PIXEL_HASH = "images", "pixel_hash"
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How sources are packed.

    Args:
        root: folder of packed sources.
        image_size: side in pixels to which images are squashed; smaller frames that are all alike stay as
            they are, since they are squashed to the student's size later, exactly as in a rollout.
        verify: read shards that are already there in full, against their checksums.
        retry: try images again that were left out. Only where nothing rests on what is packed yet: a run that has
            begun, and processes that share one, have to keep to the images that they have.
    """

    root: Path
    image_size: int = 224
    verify: bool = True
    retry: bool = True


class PackedSource:
    """A source on disk: `frames` gathers any of its rows. Made by `pack`."""

    def __init__(self, source: Source, items: Sequence[Item], shards: Sequence[Arrays], path: Path) -> None:
        self.path = path
        self.name, self.license, self.columns = source.name, source.license, source.columns
        self.origin = source.origin
        self.shards = tuple(shards)
        self.ids = [id for shard in shards for id in shard.about["ids"]]
        splits = {item.id: item.split for item in items}
        self.splits = [splits[id] for id in self.ids]
        self.skipped = [skipped for shard in shards for skipped in skipped_in(shard, source.name)]
        self._ends = np.cumsum([len(shard.about["ids"]) for shard in shards])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def content_sha256(self) -> str:
        """Of every image and its truth, in order."""
        return digest_of([shard.sha256 for shard in self.shards])

    def pixel_hashes(self) -> Iterator[bytes]:
        for shard in self.shards:
            for row in shard.all(PIXEL_HASH):
                yield row.tobytes()

    def locate(self, row: int) -> tuple[int, int]:
        """The shard of a row, and the row in it."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return shard, row - int(self._ends[shard]) + len(self.shards[shard].about["ids"])

    def frames(self, rows: Sequence[int]) -> Frames:
        """The frames of some rows, in their order."""
        places = [self.locate(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: places[i])
        back = np.argsort(order)
        gathered: dict[str, np.ndarray] = {}
        for name in (IMAGES, *self.columns):
            parts = []
            for shard in dict.fromkeys(places[i][0] for i in order):
                inside = [places[i][1] for i in order if places[i][0] == shard]
                parts.append(self.shards[shard].rows(name, inside))
            gathered[name] = np.concatenate(parts)[back]
        images = torch.from_numpy(gathered.pop(IMAGES)).permute(0, 3, 1, 2)
        return Frames(images, {name: torch.from_numpy(values) for name, values in gathered.items()})


@dataclass(frozen=True)
class Stretch:
    """Items of a source that make one shard, and what its file says of them."""

    file: Path
    key: dict[str, Any]
    items: Sequence[Item]


def stretches_of(source: Source, items: Sequence[Item], settings: PackSettings) -> Iterator[Stretch]:
    """In order, all in one folder. A source's files are looked at as their stretch is asked for."""
    fingerprint = digest_of(
        {
            "format": [FORMAT, FORMAT_VERSION],
            "source": dict(source.identity()),
            "shape": source.shape,
            "image_size": settings.image_size,
            "columns": {name: [list(c.shape), c.dtype] for name, c in source.columns.items()},
            "ids": digest_of([item.id for item in items]),
        }
    )
    path = settings.root / f"{source.name}-{fingerprint[:12]}"
    for start in range(0, len(items), SHARD_ITEMS):
        stop = min(start + SHARD_ITEMS, len(items))
        key = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "start": start,
            "stop": stop,
            "stamp": source.stamp(start, stop),
        }
        yield Stretch(path / f"{start // SHARD_ITEMS:06d}.safetensors", key, items[start:stop])


def look(source: Source, settings: PackSettings) -> None:
    """Read the first image that is not packed yet, and let it go. A simulator that is not installed or cannot render says so
    here, before hours went into packing the sources that come first.

    Raises:
        DistillError: as `pack` would.
    """
    for each in stretches_of(source, list(source.items()), settings):
        if existing(each.file, each.key, verify=False) is None:
            list(source.read(each.key["start"], each.key["start"] + 1))
            return


def pack(
    source: Source,
    settings: PackSettings,
    allow_skipped: float,
    progress: Progress | None = None,
) -> PackedSource:
    """Read a source that is not packed yet, or what has changed of it.

    Args:
        allow_skipped: raise if more than this share of the items cannot be read.
        progress: called with the number of items that are newly packed, or were there.

    Raises:
        DistillError: naming the items, when all were read and too many cannot be, or if a source has no items.
    """
    items = list(source.items())
    check_items(source.name, items)
    stretches = list(stretches_of(source, items, settings))
    path = stretches[0].file.parent
    shards: dict[Path, Arrays] = {}

    def has(each: Stretch, shard: Arrays) -> None:
        shards[each.file] = shard
        if progress is not None:
            progress(len(each.items))

    # First without the claim: several processes look through what is there side by side.
    for each in stretches:
        if (shard := kept(each, source, settings)) is not None:
            has(each, shard)
    if len(shards) < len(stretches):
        with waiting_for(path / f"{CLAIM_PREFIX}pack") as claim:  # another process that packs this: let it
            remove_temporaries(path)
            for each in stretches:
                if each.file not in shards:
                    has(each, kept(each, source, settings) or written(each, source, settings.image_size))
                claim.touch()
    packed = PackedSource(source, items, [shards[each.file] for each in stretches], path)
    check_skipped(source.name, packed.skipped, len(items), allow_skipped, path / SKIPPED_FILE)
    return packed


def check_items(name: str, items: Sequence[Item]) -> None:
    if not items:
        raise DistillError(f"source {name!r} has no images: check its path and settings")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DistillError(
                f"source {name!r} lists {item.id!r} twice: each image needs an id of its own; leave one out, or give one another name"
            )
        seen.add(item.id)


def skipped_in(shard: Arrays, source: str) -> list[Skipped]:
    return [Skipped(f"{source}/{id}", reason) for id, reason in shard.about["skipped"]]


def check_skipped(name: str, skipped: Sequence[Skipped], total: int, allowed: float, listing: Path) -> None:
    """Raise DistillError if too many images are left out of `total`, and list all of them in a file, a JSON object a line."""
    if len(skipped) / total <= allowed:
        return
    publish(listing, [(json.dumps(asdict(entry)) + "\n").encode() for entry in skipped])
    named = "; ".join(f"{entry.id}: {entry.reason}" for entry in skipped[:SHOWN])
    more = f"; and {len(skipped) - SHOWN} more, all listed in {listing}" if len(skipped) > SHOWN else ""
    raise DistillError(
        f"{name}: {len(skipped)} of {total} images have to be left out, more than the allowed share of {allowed:g} "
        f"(corpus.allow_skipped): {named}{more}. Mend or remove them, or allow more with "
        f"corpus.allow_skipped={rounded_up(len(skipped) / total):g}; what is packed is kept"
    )


def rounded_up(share: float) -> float:
    """To two digits, and never below."""
    unit = 10.0 ** (math.floor(math.log10(share)) - 1)
    rounded = math.ceil(share / unit) * unit
    return float(f"{rounded if rounded >= share else rounded + unit:.2g}")


def existing(file: Path, key: dict[str, Any], verify: bool) -> Arrays | None:
    """The shard that is already there, if it is the one wanted and whole."""
    if not file.is_file():
        return None
    try:
        shard = Arrays(file)
        if any(shard.about.get(name) != value for name, value in key.items()):
            return None
        if verify:
            shard.verify()
    except DistillError:
        return None
    return shard


def kept(stretch: Stretch, source: Source, settings: PackSettings) -> Arrays | None:
    """The shard that is already there, unless it is to be packed again: an image that was left out can be read by now, though
    its file looks as before. Rights were mended, a disk is there again."""
    shard = existing(stretch.file, stretch.key, settings.verify)
    if shard is None or not settings.retry:
        return shard
    left_out = {id for id, _ in shard.about["skipped"]}
    for index, item in enumerate(stretch.items, stretch.key["start"]):
        if item.id in left_out:
            (result,) = source.read(index, index + 1)
            if isinstance(result, Frame) and frame_problem(source, result) is None:
                return None
    return shard


def written(stretch: Stretch, source: Source, image_size: int) -> Arrays:
    """Read the stretch, and write its shard."""
    size = stored_size(source.shape, image_size)
    images, hashes, ids, skipped = [], [], [], []
    truth: dict[str, list[np.ndarray]] = {name: [] for name in source.columns}
    results = source.read(stretch.key["start"], stretch.key["stop"])
    for item, result in zip(stretch.items, results, strict=True):
        problem = result if isinstance(result, UnreadableError) else frame_problem(source, result)
        if problem is not None:
            skipped.append([item.id, str(problem)])
            continue
        assert isinstance(result, Frame)
        image = squash(result.image, size)
        images.append(image)
        # Of the picture as it came: sources that are alike may be stored in different sizes.
        pixels = arrays_sha256({"": result.image})
        hashes.append(np.frombuffer(bytes.fromhex(pixels)[:16], dtype=np.uint8))
        ids.append(item.id)
        for name in truth:
            truth[name].append(np.asarray(result.truth[name], dtype=source.columns[name].dtype))
    arrays = {
        IMAGES: np.stack(images) if images else np.zeros((0, *size, 3), np.uint8),
        PIXEL_HASH: np.stack(hashes) if hashes else np.zeros((0, 16), np.uint8),
    }
    for name, column in source.columns.items():
        values = truth[name]
        arrays[name] = np.stack(values) if values else np.zeros((0, *column.shape), column.dtype)
    versions = {name: version_of(name) for name in source.origin.get("packages", ())}
    about = stretch.key | {"ids": ids, "skipped": skipped, "made_with": versions}
    write_arrays(stretch.file, arrays, about)
    return Arrays(stretch.file)


def stored_size(shape: tuple[int, int] | None, image_size: int) -> tuple[int, int]:
    if shape is not None and max(shape) <= image_size:
        return shape
    return image_size, image_size


def frame_problem(source: Source, frame: Frame) -> UnreadableError | None:
    image = frame.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return UnreadableError(f"{image.dtype} of shape {image.shape}, not a uint8 colour image")
    if source.shape is not None and image.shape[:2] != source.shape:
        return UnreadableError(f"{image.shape[0]}x{image.shape[1]} pixels, not {source.shape} as the others")
    for name, column in source.columns.items():
        values = np.asarray(frame.truth[name])
        if values.shape != column.shape or not np.isfinite(values).all():
            return UnreadableError(f"its {name} is of shape {values.shape}, or not finite")
    return None


def squash(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    channel_first = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return resize(channel_first, size[0])[0].permute(1, 2, 0).contiguous().numpy()


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
