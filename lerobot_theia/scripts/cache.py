"""`lerobot-theia-cache`: look after feature caches."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from tqdm import tqdm

from lerobot_theia.cache.catalog import cache_folders
from lerobot_theia.cache.claim import CLAIM_PREFIX, in_use
from lerobot_theia.cache.errors import CacheDamagedError, CacheError
from lerobot_theia.cache.files import TEMPORARY_PREFIX
from lerobot_theia.cache.manifest import MANIFEST_NAME, Manifest, is_manifest, read_manifest
from lerobot_theia.cache.plan import format_bytes
from lerobot_theia.cache.reader import MEND, FeatureCache
from lerobot_theia.cache.root import resolve_cache_root
from lerobot_theia.cache.shard import is_shard
from lerobot_theia.cache.shard_size import SETTLED_NAME, begun_with

SHARDS = "*/[0-9][0-9][0-9][0-9][0-9][0-9].safetensors"
HIDDEN = (TEMPORARY_PREFIX + "*", CLAIM_PREFIX + "*", SETTLED_NAME)
OUR_FILES = (MANIFEST_NAME, SHARDS, *HIDDEN, *(f"*/{name}" for name in HIDDEN))
"""What a cache folder holds; `rm` deletes these and nothing else."""


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="lerobot-theia-cache", description=__doc__)
    commands = arguments.add_subparsers(dest="command", required=True)
    command = commands.add_parser("ls", help="list the caches under a root")
    command.add_argument("root", nargs="?", help="default: where precompute puts caches")
    command.set_defaults(run=list_caches)
    command = commands.add_parser("info", help="what a cache was made from, as JSON")
    command.add_argument("path", type=Path)
    command.set_defaults(run=show)
    command = commands.add_parser("verify", help="read every byte and compare it with its checksum")
    command.add_argument("path", type=Path)
    command.add_argument("--repair", action="store_true", help="make damaged shards again, and only those")
    command.add_argument(
        "--dataset-root", type=Path, help="--repair: the dataset's folder, if not in LeRobot's home"
    )
    command.add_argument("--encoder", help="--repair: the encoder, if it was a folder")
    command.set_defaults(run=verify)
    command = commands.add_parser("rm", help="delete a cache")
    command.add_argument("path", type=Path)
    command.add_argument("-y", "--yes", action="store_true", help="do not ask")
    command.set_defaults(run=remove)
    return arguments


def list_caches(arguments: argparse.Namespace) -> int:
    root = resolve_cache_root(arguments.root)
    folders = list(cache_folders(root))
    if not folders:
        print(f"no caches under {root}")
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except CacheError as error:
            print(f"{folder}\n    NOT READABLE: {error}")
            continue
        identity, tokens = manifest.identity, manifest.identity.tokens
        print(
            f"{folder}\n    {identity.dataset.repo_id}, {manifest.num_frames:,} frames x {len(manifest.cameras)} "
            f"camera(s), {manifest.encoder_name}, {tokens.grid}x{tokens.grid} x {identity.encoder.hidden_size} "
            f"{tokens.dtype}{f' x {identity.views} views' if identity.views > 1 else ''}, {format_bytes(manifest.num_bytes)}"
        )
    return 0


def show(arguments: argparse.Namespace) -> int:
    manifest = read_manifest(arguments.path)
    print(
        json.dumps(
            {
                "path": str(arguments.path),
                "fingerprint": manifest.identity.fingerprint,
                "identity": manifest.identity.to_json(),
                "encoder": {"name": manifest.encoder_name, "note": manifest.encoder_note},
                "bytes": manifest.num_bytes,
                "shards": {camera: len(records) for camera, records in manifest.shards.items()},
                "shard_frames": manifest.shard_frames,
                "made_with": manifest.made_with,
            },
            indent=2,
        )
    )
    return 0


def verify(arguments: argparse.Namespace) -> int:
    cache = FeatureCache(arguments.path, read_manifest(arguments.path))
    with tqdm(total=cache.manifest.num_bytes, unit="B", unit_scale=True) as bar:
        problems = cache.verify(bar.update)
    for problem in problems:
        print(problem)
    if problems and not arguments.repair:
        raise CacheDamagedError(
            f"{len(problems)} shard(s) of {arguments.path} are damaged. {MEND}, which `info` shows."
        )
    if problems:
        return repair(arguments, cache.manifest)
    print(f"{arguments.path}: every byte is as it was written ({format_bytes(cache.manifest.num_bytes)})")
    return 0


def repair(arguments: argparse.Namespace, manifest: Manifest) -> int:
    # The encoder is only needed here, and takes seconds to import.
    from lerobot_theia.cache.precompute import precompute
    from lerobot_theia.cache.repair import settings_of

    settings = settings_of(manifest, dataset_root=arguments.dataset_root, encoder=arguments.encoder)
    try:
        report = precompute(settings, path=arguments.path, say=print)
    except ValueError as error:  # no such encoder, or one that is damaged
        raise CacheError(f"encoder {settings.encoder!r}: {error}. Name another with --encoder") from error
    print(
        f"{arguments.path}: {len(report.problems)} damaged file(s) made again, the rest is as it was written"
    )
    return 0


def remove(arguments: argparse.Namespace) -> int:
    if arguments.path.is_symlink() or not is_cache(arguments.path):
        raise CacheError(f"{arguments.path} is no feature cache, or a link to one: nothing is deleted")
    path = arguments.path.resolve()
    found = own_files(path)
    if not arguments.yes and not confirmed(f"delete {path} ({format_bytes(bytes_of(found))})? [y/N] "):
        print("kept")
        return 1
    with in_use(path, exclusive=True):
        # Looked for again: while the question stood, another process may have made the rest.
        files = own_files(path)
        size = bytes_of(files)
        # The manifest goes first: without it the rest is no cache any more, whatever interrupts us.
        for file in files:
            file.unlink(missing_ok=True)
        for folder in [*(file.parent for file in (*found, *files)), path]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    print(f"deleted {path} ({format_bytes(size)})")
    return 0


def own_files(path: Path) -> list[Path]:
    """What is deleted of a cache, in this order. A folder in the place of a file is somebody else's."""
    return [
        file
        for pattern in OUR_FILES
        for file in path.glob(pattern)
        if not file.parent.is_symlink() and (file.is_symlink() or not file.is_dir())
    ]


def bytes_of(files: list[Path]) -> int:
    """Of links their own; of what another process has just removed none."""
    size = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            size += file.lstat().st_size
    return size


def confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() == "y"
    except EOFError:
        raise CacheError("nobody is there to answer; pass --yes") from None


def is_cache(path: Path) -> bool:
    """Whether a manifest, a shard, whole or not, or the number that a run begins with says so.

    Names alone prove nothing, nor do claims: distillation leaves such, too.
    """
    return (
        is_manifest(path)
        or begun_with(path / SETTLED_NAME) is not None
        or any(file.suffix == ".safetensors" and is_shard(file, path) for file in own_files(path))
    )


def main() -> None:
    arguments = parser().parse_args()
    try:
        sys.exit(arguments.run(arguments))
    except (CacheError, OSError) as error:
        sys.exit(f"lerobot-theia-cache: {error}")


if __name__ == "__main__":
    main()
