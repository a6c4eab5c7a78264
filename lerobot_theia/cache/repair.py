"""A finished cache knows what it was made from; so its damaged shards can be made again."""

from pathlib import Path
from typing import Any

from lerobot_theia.cache.augment import Augment
from lerobot_theia.cache.errors import CacheError
from lerobot_theia.cache.manifest import Manifest
from lerobot_theia.cache.plan import PrecomputeSettings


def settings_of(
    manifest: Manifest, *, dataset_root: Path | None = None, encoder: str | None = None
) -> PrecomputeSettings:
    """The settings that make this cache, wherever it is kept now.

    Folders of the machine it was made on are not recorded: a dataset outside LeRobot's home needs `dataset_root`, an
    encoder that was a folder needs `encoder`. Raises CacheError, saying so.
    """
    identity, recorded = manifest.identity, manifest.made_with.get("settings")
    recorded = recorded if isinstance(recorded, dict) else {}
    encoder = encoder or recorded.get("encoder")
    if not encoder:
        raise CacheError(
            f"the encoder of this cache, {manifest.encoder_name!r}, was a folder, and where it is now is not "
            "recorded: name it with --encoder"
        )
    # What decides nothing but rounding, or whether frames are read at all, is as it was: shards come out byte for byte.
    kept = {
        name: recorded.get(name)
        for name in ("batch_size", "video_backend", "tolerance_s", "encoder_revision")
    }
    settings: dict[str, Any] = {name: value for name, value in kept.items() if value is not None}
    try:
        return PrecomputeSettings(
            repo_id=identity.dataset.repo_id,
            root=None if dataset_root is None else str(dataset_root),
            revision=recorded.get("revision"),
            cameras=tuple(manifest.cameras),
            encoder=encoder,
            dtype=identity.tokens.dtype,
            pool=identity.tokens.pool,
            compute_dtype=identity.tokens.compute_dtype,
            views=identity.views,
            augment=identity.augment or Augment(),
            **settings,
        )
    except (TypeError, ValueError) as error:
        raise CacheError(f"its manifest records settings that cannot be used: {error}") from error
