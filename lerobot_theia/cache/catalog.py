"""Which cache under a root serves a request, and if none does, which field stands in the way."""

import logging
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot_theia.cache.augment import Augment
from lerobot_theia.cache.errors import CacheDamagedError, CacheError, CacheMismatchError
from lerobot_theia.cache.identity import differences
from lerobot_theia.cache.manifest import MANIFEST_NAME, Manifest, read_manifest
from lerobot_theia.cache.plan import DEFAULT_TOLERANCE_S, dataset_folder, make_identity
from lerobot_theia.cache.reader import FeatureCache
from lerobot_theia.cache.root import default_cache_root
from lerobot_theia.cache.source import FileHashes, describe_source
from lerobot_theia.cache.storage import DTYPES
from lerobot_theia.encoder import EncoderSpec

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheRequest:
    """What a policy needs of a cache."""

    meta: "LeRobotDatasetMetadata"
    cameras: tuple[str, ...]
    encoder: EncoderSpec
    encoder_name: str
    """As the user typed it, as is its revision, for the command that makes the cache."""
    encoder_revision: str | None = None
    pool: int = 1
    tolerance_s: float = DEFAULT_TOLERANCE_S
    """As the user typed it, for the command."""
    dtype: str | None = None
    """None takes any; of several, the most precise."""
    views: int | None = None
    """At least so many views of each frame, of several caches the one with the fewest; None takes the one with the most."""

    def command(self, root: Path) -> str:
        """The command that makes the cache asked for, under `root`, ready for a shell."""
        from lerobot.datasets.dataset_metadata import CODEBASE_VERSION

        meta = self.meta
        words = [
            override("+dataset.repo_id", meta.repo_id),
            override("dataset.root", str(meta.root)),
            override("encoder.name", self.encoder_name),
        ]
        if self.encoder_revision:
            words.append(override("encoder.revision", self.encoder_revision))
        if meta.revision != CODEBASE_VERSION:
            words.append(override("dataset.revision", str(meta.revision)))
        if set(self.cameras) != set(meta.camera_keys):
            words.append(f"cameras=[{','.join(map(quoted, self.cameras))}]")
        if self.pool > 1:
            words.append(f"pool={self.pool}")
        if (self.views or 1) > 1:
            words.append(f"augment.views={self.views}")
        if self.dtype:
            words.append(f"dtype={self.dtype}")
        if self.tolerance_s != DEFAULT_TOLERANCE_S:
            words.append(f"tolerance_s={self.tolerance_s}")
        if root != default_cache_root():
            words.append(override("cache_root", str(root)))
        return shlex.join(["lerobot-theia-precompute", *words])


def override(key: str, value: str) -> str:
    """`key=value` as Hydra reads it."""
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """Text that Hydra reads as this very text: as no number, null, interpolation or piece of its grammar."""
    # A backslash stands for itself, but before an interpolation (to OmegaConf) and before a quote (to Hydra).
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    escaped = re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + (found[2] and '\\"'), literal)
    return f'"{escaped}"'


def cache_folders(root: Path) -> Iterator[Path]:
    """Folders under `root` (or `root` itself) that hold a manifest, finished or damaged."""
    for pattern in ("", "*/", "*/*/"):
        for manifest in sorted(root.glob(pattern + MANIFEST_NAME)):
            yield manifest.parent


def find_cache(root: Path, request: CacheRequest) -> FeatureCache:
    """The cache under `root` that fits; `root` may also be a cache itself.

    Raises CacheMismatchError when none does, naming the fields in which the nearest one differs and manifests
    that cannot be read, and CacheDamagedError when one does but its shards are damaged.
    """
    # A cache's own folder is no place for the hashes, nor for other caches.
    home = default_cache_root() if (root / MANIFEST_NAME).exists() else root
    hashes = FileHashes(home)
    nearest: tuple[list, Path] | None = None
    fitting: list[tuple[tuple, Path]] = []
    unreadable: list[str] = []
    for folder in cache_folders(root):
        try:
            manifest = read_manifest(folder)
            found = mismatches(manifest, request, hashes)
        except (
            CacheError
        ) as error:  # damaged, of another format version, or of a dataset that is not all here
            unreadable.append(str(error))
            continue
        if not found:
            views, rounding = manifest.identity.views, imprecision(manifest)
            fitting.append(((rounding, -views if request.views is None else views), folder))
        elif nearest is None or rank(found) < rank(nearest[0]):
            nearest = (found, folder)
    hashes.save()
    if fitting:
        return open_first([folder for _, folder in sorted(fitting)])
    raise CacheMismatchError(explain(root, request, nearest, unreadable, request.command(home)))


def open_first(folders: list[Path]) -> FeatureCache:
    """The first that is whole. Raises what is wrong with the first if none is."""
    errors = []
    for folder in folders:
        try:
            return FeatureCache.open(folder)
        except CacheDamagedError as error:
            logger.warning("%s fits but is damaged: %s", folder, error)
            errors.append(error)
    raise errors[0]


def mismatches(manifest: Manifest, request: CacheRequest, hashes: FileHashes) -> list[tuple]:
    """Fields in which a cache differs from what is asked, as (field, wanted, found)."""
    found = manifest.identity
    if request.meta.repo_id != found.dataset.repo_id:
        # Do not hash this dataset's files to compare them with those of another.
        return [("dataset.repo_id", request.meta.repo_id, found.dataset.repo_id)]
    dtype = request.dtype or found.tokens.dtype
    if not set(request.cameras) <= set(found.dataset.cameras):
        return [("dataset.cameras", sorted(request.cameras), sorted(found.dataset.cameras))]
    # A cache of more cameras than are asked for serves those that are.
    cameras = [camera for camera in found.dataset.cameras if camera in request.cameras]
    source = describe_source(request.meta, cameras, hashes, known_files=manifest.files)
    wanted = make_identity(
        source,
        request.encoder,
        dtype=dtype,
        pool=request.pool,
        compute_dtype=found.tokens.compute_dtype,  # any is accepted, full precision preferred
        views=max(found.views, request.views or 1),
        augment=found.augment or Augment(),
    ).to_json()
    offered = found.to_json()
    offered["dataset"]["cameras"] = {camera: offered["dataset"]["cameras"][camera] for camera in cameras}
    return differences(wanted, offered)


def imprecision(manifest: Manifest) -> tuple[int, int]:
    """Grows with the rounding of arithmetic first, of storage second."""
    tokens = manifest.identity.tokens
    return DTYPES.index(tokens.compute_dtype), DTYPES.index(tokens.dtype)


def rank(found: list[tuple]) -> tuple[bool, bool, int]:
    """Caches of the same dataset come first, then those with the cameras, then those with fewer differences."""
    fields = [field for field, *_ in found]
    return "dataset.repo_id" in fields, "dataset.cameras" in fields, len(found)


def explain(
    root: Path, request: CacheRequest, nearest: tuple[list, Path] | None, unreadable: list[str], command: str
) -> str:
    head = (
        f"no feature cache under {root} fits dataset {request.meta.repo_id!r}, cameras {list(request.cameras)}, "
        f"encoder {request.encoder_name!r}"
    )
    lines = [head]
    if nearest:
        lines.append(f"the nearest, {nearest[1]}, differs in")
        lines += [f"  {field}: wanted {wanted!r}, it has {has!r}" for field, wanted, has in nearest[0]]
    lines += [f"passed over: {problem}" for problem in unreadable]
    lines += [f"not finished: {folder}" for folder in unfinished(root / dataset_folder(request.meta.repo_id))]
    return "\n".join([*lines, "Make it with", f"  {command}"])


def unfinished(folder: Path) -> list[Path]:
    """Caches of a dataset that have shards and no manifest yet."""
    shards = sorted(folder.glob("*/*/*.safetensors"))
    begun = dict.fromkeys(shard.parents[1] for shard in shards)
    return [cache for cache in begun if not (cache / MANIFEST_NAME).exists()]
