"""From a name to the two files of a checkpoint: `config.json` and `model.safetensors`, and nothing else.

A repository's code (`theia_model.py`) is neither downloaded nor run.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import httpx
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from lerobot_theia.encoder.names import HUB_IDS, SHIPPED, canonical_name, known_encoders

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LOCAL_PREFIXES = ("/", "./", "../", "~")


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """Where a checkpoint lies, and what to call it: short name, hub id, or name of the local folder."""

    name: str
    config: Path
    weights: Path


def locate(name_or_path: str, revision: str | None = None) -> CheckpointFiles:
    """Find a checkpoint by short name, local folder or hub id, in that order; `./name` is always a folder.

    Args:
        revision: Branch, tag or commit on the Hub; not for local folders.
    """
    name = canonical_name(name_or_path)
    if name in HUB_IDS:
        return _download(name, HUB_IDS[name], revision)
    if name in SHIPPED:
        if revision is not None:
            raise ValueError(f"revision {revision!r} was given with {name}, which comes with the package")
        return _in_folder(ASSETS / name)
    folder = Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():  # Path("") is the current folder
        if revision is not None:
            raise ValueError(
                f"revision {revision!r} was given with the local folder {folder}: folders have none"
            )
        return _in_folder(folder)
    if name_or_path.startswith(_LOCAL_PREFIXES) or folder.is_file():
        raise FileNotFoundError(
            f"{name_or_path!r} is no folder; a local encoder is a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    if _HUB_ID.fullmatch(name_or_path):
        return _download(name_or_path, name_or_path, revision)
    raise ValueError(
        f"unknown encoder {name_or_path!r}; known are {', '.join(known_encoders())}, "
        f"or a hub id (owner/name), or a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
    )


def _in_folder(folder: Path) -> CheckpointFiles:
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"no {' and no '.join(missing)} in the encoder folder {folder}; it needs both {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, as in the published Theia repositories"
        )
    name = folder.resolve().name
    return CheckpointFiles(name=name, config=folder / CONFIG_FILE, weights=folder / WEIGHTS_FILE)


def _download(name: str, hub_id: str, revision: str | None) -> CheckpointFiles:
    return CheckpointFiles(
        name=name,
        config=_download_file(hub_id, CONFIG_FILE, revision),
        weights=_download_file(hub_id, WEIGHTS_FILE, revision),
    )


def _download_file(hub_id: str, file: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(hub_id, file, revision=revision))
    except HFValidationError as error:
        raise ValueError(
            f"{hub_id!r} is no hub id: {' '.join(str(error).split())} A hub id is owner/name; for a folder of that "
            f"name, which must be there, pass ./{hub_id}"
        ) from error
    except (OSError, EntryNotFoundError, httpx.HTTPError) as error:
        # Read at the time of need: tests and users move the cache.
        from huggingface_hub.constants import HF_HUB_CACHE

        at_revision = f" at revision {revision}" if revision else ""
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"could not get {file} of {hub_id}{at_revision} from the Hugging Face Hub, nor from its "
            f"local cache {HF_HUB_CACHE} ({type(error).__name__}: {reason[:300]}). Without network, "
            f"copy {CONFIG_FILE} and {WEIGHTS_FILE} into a folder and pass that folder in place of the "
            f"name, or bring the cache along (HF_HUB_CACHE). {SHIPPED[0]} comes with the package and needs no "
            "network."
        ) from error
