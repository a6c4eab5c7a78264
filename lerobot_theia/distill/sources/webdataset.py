"""Tar shards as webdataset writes them: a sample is the files of one shard with the same name up to the first dot."""

import fnmatch
import functools
import glob
import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import TRAIN, VALIDATION, Frame, Item, split_by_group
from lerobot_theia.distill.licenses import required
from lerobot_theia.distill.sources.folder import read_image
from lerobot_theia.distill.sources.interface import Column, reason_of, stamp_of_files

IMAGE_SUFFIXES = frozenset(
    ["avif", "bmp", "gif", "heic", "jfif", "jp2", "jpe", "jpeg", "jpg", "jxl", "pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"]
)  # fmt: skip
"""What ends in one of these is meant as an image."""


@dataclass(frozen=True)
class Member:
    """An image in a shard: where its bytes lie."""

    shard: Path
    key: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class WebdatasetSource:
    """Images of uncompressed tar files, on this machine.

    Args:
        train: path of the shards; `*` matches any name, `{000..099}` a range.
        validation: path of the held-out shards; or a number: the share of the shards in `train` to hold out.
        license: of the images.
        extensions: of the files that are the images; all that follows the first dot of a name.
        ignore: extensions of images that are not wanted, such as masks; `*` matches anything.
    """

    name: str
    train: str
    validation: str | float
    license: str = ""
    extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    ignore: tuple[str, ...] = ()

    shape: ClassVar[None] = None
    columns: ClassVar[Mapping[str, Column]] = {}

    def __post_init__(self) -> None:
        required(f"source {self.name!r}", self.license)

    @property
    def origin(self) -> Mapping[str, Any]:
        return {"kind": "webdataset", "shards": [shard.name for shard, _ in self._shards]}

    def identity(self) -> Mapping[str, Any]:
        return {"type": "webdataset", "version": 1, "extensions": list(self.extensions)}

    def items(self) -> Sequence[Item]:
        split_of = dict(self._shards)
        return [Item(f"{self._names[m.shard]}/{m.key}", split_of[m.shard]) for m in self._members]

    def stamp(self, start: int, stop: int) -> str:
        return stamp_of_files([member.shard for member in self._members[start:stop]])

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        for member in self._members[start:stop]:
            try:
                with member.shard.open("rb") as file:
                    file.seek(member.offset)
                    data = file.read(member.size)
            except OSError as error:
                yield UnreadableError(f"{member.shard.name}: {reason_of(error)}")
                continue
            yield read_image(io.BytesIO(data))

    @functools.cached_property
    def _shards(self) -> list[tuple[Path, str]]:
        train = self._found(self.train)
        if isinstance(self.validation, str):
            held_out = self._found(self.validation)
            if both := set(train) & set(held_out):
                raise DistillError(
                    f"source {self.name!r}: {min(both)} is both in train and in validation; name each shard once"
                )
            return [(shard, TRAIN) for shard in train] + [(shard, VALIDATION) for shard in held_out]
        names = short_names(train)
        splits = split_by_group(list(names.values()), self.validation, f"source {self.name!r}")
        return [(shard, splits[names[shard]]) for shard in train]

    @functools.cached_property
    def _names(self) -> dict[Path, str]:
        return short_names([shard for shard, _ in self._shards])

    def _found(self, pattern: str) -> list[Path]:
        shards = []
        for name in expand(str(Path(pattern).expanduser())):
            matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
            shards += [Path(match) for match in matches]
        if not shards or (missing := [shard for shard in shards if not shard.is_file()]):
            raise DistillError(
                f"source {self.name!r}: no shard {missing[0] if shards else pattern}; check the pattern {pattern!r}"
            )
        return shards

    @functools.cached_property
    def _members(self) -> list[Member]:
        members = []
        for shard, _ in self._shards:
            try:
                with tarfile.open(shard, "r:") as tar:
                    for entry in tar:
                        key, _, extension = entry.name.rpartition("/")[2].partition(".")
                        # A name that begins with a dot belongs to a file system, not to the dataset.
                        if (
                            not key
                            or entry.isdir()
                            or not self._is_wanted(shard, entry.name, extension.lower())
                        ):
                            continue
                        if not entry.isfile():
                            raise DistillError(
                                f"source {self.name!r}: {entry.name} in {shard} is a link to {entry.linkname!r} and no file of its "
                                "own; write the shard again with `tar --dereference --hard-dereference`"
                            )
                        folder = entry.name.rpartition("/")[0]
                        key = f"{folder}/{key}" if folder not in ("", ".") else key
                        members.append(Member(shard, key, entry.offset_data, entry.size))
                    check_end(shard, tar.offset)
            except (tarfile.TarError, OSError) as error:
                raise DistillError(
                    f"source {self.name!r}: {shard} is no readable, uncompressed tar file ({error}); copy it again, or "
                    "leave it out"
                ) from error
        return members

    def _is_wanted(self, shard: Path, name: str, extension: str) -> bool:
        """Raises DistillError for an image that is neither wanted nor to be ignored: nothing is left out in silence."""
        if extension in self.extensions:
            return True
        ignored = any(fnmatch.fnmatch(extension, pattern) for pattern in self.ignore)
        if extension.rpartition(".")[2] in IMAGE_SUFFIXES and not ignored:
            raise DistillError(
                f"source {self.name!r}: {shard} holds {name}, an image by its name, but its extension {extension!r} is none of "
                f"{', '.join(self.extensions)}: add it to `extensions` of this source if it is to be taken, to `ignore` if not"
            )
        return False


def short_names(shards: Sequence[Path]) -> dict[Path, str]:
    """Names of files; where two are alike, with as many of their folders as differ."""
    if len({shard.name for shard in shards}) == len(shards):
        return {shard: shard.name for shard in shards}
    common = os.path.commonpath([shard.absolute().parent for shard in shards])
    return {shard: shard.absolute().relative_to(common).as_posix() for shard in shards}


def check_end(shard: Path, offset: int) -> None:
    """What follows the last member is the mark of the end, zeros only. `tarfile` also stops, in silence, at a header that
    is damaged or missing: then members would be lost.

    Raises:
        tarfile.ReadError: if there is anything else, or nothing.
    """
    with shard.open("rb") as file:
        file.seek(offset)
        rest = file.read(tarfile.BLOCKSIZE)
        whole = len(rest) == tarfile.BLOCKSIZE
        while whole and rest:
            whole = not rest.strip(b"\0")
            rest = file.read(1 << 20)
    if not whole:
        raise tarfile.ReadError(f"it breaks off or is damaged at byte {offset:,}")


def expand(pattern: str) -> list[str]:
    """`a-{00..02}.tar` to `a-00.tar`, `a-01.tar`, `a-02.tar`; `{a,b}` to both."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span:
        first, last = span.groups()
        options = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        options = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [whole for option in options for whole in expand(before + option + after)]
