"""Features of a teacher, extracted once and kept in the shards of the feature cache: bfloat16, resumable, checked.

A feature shard belongs to one shard of a packed source and carries its hash, so whatever changes in a corpus,
only what depends on it is made again. Statistics come from the sums that every shard keeps.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lerobot_theia.cache.errors import CacheDamagedError
from lerobot_theia.cache.files import publish, remove_temporaries
from lerobot_theia.cache.shard import (
    Shard,
    ShardKey,
    ShardLayout,
    ShardWriter,
    check_header,
    verify_shard,
)
from lerobot_theia.cache.storage import StoredTokens
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.hashing import digest_of
from lerobot_theia.distill.loss import Standard
from lerobot_theia.distill.pack import PackedSource
from lerobot_theia.distill.teachers.interface import Teacher

DTYPE = "bfloat16"
RECORD = "teacher.json"
Progress = Callable[[int], None]


class StoredFeatures:
    """Extracted features of one teacher. Made by `extract`."""

    def __init__(self, teacher: Teacher, shards: dict[str, list[Shard | None]], path: Path) -> None:
        self.path = path
        self._size = teacher.feature_size
        self._shards = shards

    def gather(self, source: PackedSource, rows: Sequence[int]) -> Tensor:
        """(b, C, H, W) bfloat16."""
        features = []
        for row in rows:
            number, inside = source.locate(row)
            shard = self._shards[source.name][number]
            assert shard is not None, "a shard without images has no rows"
            features.append(shard.tensors["tokens"][inside])  # (H*W, C)
        channels, height, width = self._size
        return torch.stack(features).transpose(1, 2).reshape(len(rows), channels, height, width)

    def standard(self) -> Standard:
        """Over all positions of all images."""
        shards = [shard for of_source in self._shards.values() for shard in of_source if shard is not None]
        count = sum(shard.key.frames for shard in shards) * self._size[1] * self._size[2]
        mean = torch.stack([shard.tensors["sum"] for shard in shards]).sum(0) / count
        square = torch.stack([shard.tensors["sum_sq"] for shard in shards]).sum(0) / count
        return Standard(mean.float(), (square - mean.square()).clamp_min(0).sqrt().float())


@dataclass(frozen=True)
class Sharing:
    """How several processes share out an extraction: each makes every `processes`-th shard, then waits for all."""

    process: int = 0
    processes: int = 1
    wait: Callable[[], None] = lambda: None


ALONE = Sharing()


def extract(
    teacher: Teacher,
    sources: Sequence[PackedSource],
    root: Path,
    *,
    device: torch.device,
    batch_size: int = 32,
    verify: bool = True,
    sharing: Sharing = ALONE,
    progress: Progress | None = None,
) -> StoredFeatures:
    """Extract the features of all images of `sources`, or what is missing of them.

    Args:
        root: folder of extracted features.
        verify: read shards that are already there in full, against their checksums.
        progress: called with the number of images that are done, or were there.
    """
    identity = digest_of({"teacher": dict(teacher.identity()), "dtype": DTYPE})
    slug = re.sub(r"[^A-Za-z0-9.-]+", "--", teacher.name).strip("-.")
    path = root / f"{slug}-{identity[:12]}"
    channels, height, width = teacher.feature_size
    layout = ShardLayout(num_tokens=height * width, dim=channels, dtype=DTYPE)
    remove_temporaries(path)
    record(path / RECORD, teacher)
    shards = [(source, key, rows) for source in sources for key, rows in shard_keys(source, identity)]
    for number, (source, key, rows) in enumerate(shards):
        file = feature_file(path, source, key)
        mine = number % sharing.processes == sharing.process
        if mine and key.frames and not whole(file, key, layout, path, verify):
            with ShardWriter(file, key, layout) as writer:
                for features in features_of(teacher, source, rows, device, batch_size):
                    writer.append(StoredTokens(features))
                writer.finish()
        if progress is not None:
            progress(key.frames)
    sharing.wait()
    opened: dict[str, list[Shard | None]] = {source.name: [] for source in sources}
    for source, key, _ in shards:
        file = feature_file(path, source, key)
        opened[source.name].append(Shard(file, key, layout, path) if key.frames else None)
    return StoredFeatures(teacher, opened, path)


def feature_file(path: Path, source: PackedSource, key: ShardKey) -> Path:
    """Named by the frames, too: another corpus may call its source the same."""
    return path / source.name / f"{key.shard:06d}-{source.shards[key.shard].sha256[:12]}.safetensors"


def shard_keys(source: PackedSource, identity: str) -> Iterator[tuple[ShardKey, range]]:
    """One shard of features for each shard of frames, named by the contents of those, and its rows in the source."""
    row = 0
    for number, packed in enumerate(source.shards):
        frames = len(packed.about["ids"])
        key = ShardKey(
            fingerprint=digest_of([identity, packed.sha256]),
            camera=source.name,
            shard=number,
            start=packed.about["start"],  # not `row`, which changes when an earlier shard loses an image
            frames=frames,
        )
        yield key, range(row, row + frames)
        row += frames


def record(file: Path, teacher: Teacher) -> None:
    """Say what the folder holds; raise if it holds features of another size."""
    wanted = {"name": teacher.name, "feature_size": list(teacher.feature_size), **dict(teacher.identity())}
    found = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text())
    if isinstance(found, dict) and found.get("feature_size") != wanted["feature_size"]:
        raise DistillError(
            f"teacher {teacher.name} gives features of size {wanted['feature_size']}, but its cache {file.parent} was "
            f"made with {found.get('feature_size')}: another teacher stands behind the same name, or the cache was "
            "altered. Delete that folder, then resume"
        )
    if found != wanted:
        publish(file, [json.dumps(wanted, indent=2).encode()])


def whole(file: Path, key: ShardKey, layout: ShardLayout, folder: Path, verify: bool) -> bool:
    try:
        (verify_shard if verify else check_header)(file, key, layout, folder)
    except CacheDamagedError:
        return False
    return True


@torch.no_grad()
def features_of(
    teacher: Teacher, source: PackedSource, rows: range, device: torch.device, batch_size: int
) -> Iterator[Tensor]:
    """Features (b, H*W, C) bfloat16 on the CPU, batch by batch."""
    for start in range(rows.start, rows.stop, batch_size):
        part = range(start, min(start + batch_size, rows.stop))
        features = teacher(source.frames(part).to(device))
        check_features(teacher, features, [source.ids[row] for row in part], source.name)
        yield features.flatten(2).transpose(1, 2).to(torch.bfloat16).cpu().contiguous()


def check_features(teacher: Teacher, features: Tensor, ids: Sequence[str], source: str) -> None:
    if tuple(features.shape) != (len(ids), *teacher.feature_size):
        raise DistillError(
            f"teacher {teacher.name} says its features are {teacher.feature_size}, but gives "
            f"{tuple(features.shape[1:])}"
        )
    bad = ~torch.isfinite(features).flatten(1).all(1)
    if bad.any():
        raise DistillError(
            f"teacher {teacher.name} gives NaN or infinity for image {ids[int(bad.nonzero()[0])]} of source {source!r}: "
            "look at the image, and at the teacher's weights"
        )
