"""Single bits turned in the files of a cache: where, and who notices."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lerobot_theia.cache import CacheError, FeatureCache
from lerobot_theia.cache.manifest import MANIFEST_NAME, read_manifest

PARTS = ("manifest", "header", "tensors")


@dataclass(frozen=True)
class Flip:
    """One bit of one file, and the part of the cache it lies in."""

    place: str
    bit: int
    part: str

    def __call__(self, cache: Path) -> None:
        """Turn it; once more turns it back."""
        with (cache / self.place).open("r+b") as file:
            file.seek(self.bit // 8)
            [byte] = file.read(1)
            file.seek(self.bit // 8)
            file.write(bytes([byte ^ (1 << self.bit % 8)]))


def random_flips(cache: Path, count: int, seed: int) -> Iterator[Flip]:
    """As many in the manifest as in headers of shards, and as in their tensors, though those are the most bytes."""
    draw = random.Random(seed)
    shards = sorted(cache.glob("*/*.safetensors"))
    for number in range(count):
        part = PARTS[number % len(PARTS)]
        path = cache / MANIFEST_NAME if part == "manifest" else draw.choice(shards)
        start, stop = 0, path.stat().st_size
        if part != "manifest":
            header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
            start, stop = (0, header) if part == "header" else (header, stop)
        yield Flip(str(path.relative_to(cache)), draw.randrange(8 * start, 8 * stop), part)


def found_by_verify(cache: Path) -> bool:
    """As `lerobot-theia-cache verify` looks: without opening, which would stop at the first."""
    try:
        return bool(FeatureCache(cache, read_manifest(cache)).verify())
    except CacheError:
        return True


def found_by_opening(cache: Path) -> bool:
    try:
        FeatureCache.open(cache)
    except CacheError:
        return True
    return False
