"""Vision models from transformers as teachers, by Hub id or folder: safetensors only, and no code but transformers'.

Every teacher sees the whole image, squashed to its input: what its published processor does, but for the crop.
Some processors (DINOv2's, CLIP's) resize to a shorter side and crop the centre; the student sees the whole image, and
a teacher that saw the middle only would teach every position something that lies elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
import torch
from huggingface_hub import ModelCard, snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor
from yaml import YAMLError

from lerobot_theia.cache.files import sha256_of_file
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import Frames
from lerobot_theia.distill.hashing import digest_of
from lerobot_theia.distill.licenses import required, stated_or_stricter
from lerobot_theia.distill.teachers.families import Family, family_of
from lerobot_theia.encoder.translator import FeatureSize

FILES = (
    "config.json",
    "preprocessor_config.json",
    "README.md",
    "model*.safetensors",
    "model.safetensors.index.json",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MODES = {0: "nearest-exact", 1: "bicubic", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Pixels:
    """What a published processor does to an image, without its crop.

    Args:
        size: side of the input in pixels.
        mode: of `interpolate`.
    """

    size: int
    mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 3, size, size) float32."""
        values = images.float()
        if tuple(images.shape[-2:]) != (self.size, self.size):
            smooth: dict[str, Any] = (
                {} if self.mode == "nearest-exact" else {"antialias": True, "align_corners": False}
            )
            values = nn.functional.interpolate(values, size=(self.size, self.size), mode=self.mode, **smooth)
            values = values.round().clamp(0, 255)  # as processors do, which resize 8-bit images
        mean, std = (values.new_tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (values / 255 - mean) / std


@dataclass(kw_only=True)
class VisionTeacher:
    """A vision model.

    Args:
        model: Hub id or folder.
        revision: branch, tag or commit on the Hub.
        name: in the student's checkpoint; the Hub id, or the folder's name, unless given.
        license: of the weights; that of the model card if none is given, or if the card's is stricter.
        grid: positions along a side of its features, 16 or 64; by default what suits the model.
        dtype: of its arithmetic.
    """

    model: str
    revision: str | None = None
    name: str = ""
    license: str = ""
    grid: int | None = None
    dtype: str = "float32"

    needs: ClassVar[frozenset[str]] = frozenset()
    folder: Path = field(init=False)
    local: bool = field(init=False)
    family: Family = field(init=False)
    pixels: Pixels = field(init=False)
    feature_size: FeatureSize = field(init=False)
    _network: nn.Module | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise DistillError(
                f"teacher {self.model!r}: dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}"
            )
        if self.grid not in (None, 16, 64):
            raise DistillError(f"teacher {self.model!r}: grid {self.grid}, must be 16 or 64")
        self.folder = locate(self.model, self.revision)
        self.local = Path(self.model).expanduser().is_dir()
        self.name = self.name or (self.folder.name if self.local else self.model)
        self._weights = weight_files(self.model, self.folder)
        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise DistillError(
                f"teacher {self.model!r}: {self.folder / 'config.json'} cannot be read "
                f"({' '.join(str(error).split())[:300]}); copy the published one"
            ) from error
        self.family = family_of(self.model, config)
        license = stated_or_stricter(self.license, card_license(self.folder))
        self.license = required(f"teacher {self.model!r}", license)
        self.pixels = read_pixels(self.model, self.folder)
        side = self.grid or self.family.grid
        self.feature_size = (self.family.channels(config), side, side)
        # With the config: a shallower one reads a part of the same weights.
        files = [*self._weights, self.folder / "config.json"]
        self._sha256 = digest_of([[file.name, sha256_of_file(file)] for file in files])

    @property
    def origin(self) -> Mapping[str, Any]:
        return {
            "model": self.folder.name if self.local else self.model,
            "revision": None if self.local else self.folder.name,  # the commit: Hub snapshots are named by it
            "family": self.family.model_type,
            "files": {file.name: sha256_of_file(file) for file in self._weights},
            "input": f"{self.pixels.size}x{self.pixels.size}, squashed, no crop",
            "tap": self.family.tap,
        }

    def identity(self) -> Mapping[str, Any]:
        return {
            "type": "vision",
            "version": 2,
            "weights": self._sha256,
            "pixels": [self.pixels.size, self.pixels.mode, list(self.pixels.mean), list(self.pixels.std)],
            "tap": self.family.tap,
            "grid": self.feature_size[1],
            "dtype": self.dtype,
        }

    def to(self, device: torch.device) -> None:
        if self._network is not None:
            self._network.to(device)

    def release(self) -> None:
        self._network = None

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Tensor:
        network = self.network()
        network.to(frames.images.device)
        pixels = self.pixels(frames.images).to(DTYPES[self.dtype])
        try:
            with torch.autocast(pixels.device.type, enabled=False):
                features = self.family.features(network, pixels).float()
        except ValueError as error:  # of the model, which expects another size
            raise DistillError(
                f"teacher {self.model!r} does not take images of {self.pixels.size}x{self.pixels.size}, which its "
                f"preprocessor_config.json names: {error}"
            ) from error
        return resample(features, self.feature_size[1])

    def picture(self, features: Tensor) -> Tensor | None:
        """None: principal components are drawn."""
        return None

    def network(self) -> nn.Module:
        """The model, read when it is first needed: extracted features may make that never."""
        if self._network is None:
            try:
                network = self.family.load(self.folder, DTYPES[self.dtype])
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise DistillError(
                    f"teacher {self.model!r} cannot be loaded from {self.folder}: {error}"
                ) from error
            network.eval().requires_grad_(False)
            self._network = network
        return self._network


def resample(features: Tensor, grid: int) -> Tensor:
    """(B, C, h, w) to (B, C, grid, grid)."""
    if features.shape[-1] == grid and features.shape[-2] == grid:
        return features
    return nn.functional.interpolate(
        features, size=(grid, grid), mode="bilinear", align_corners=False, antialias=True
    )


def locate(model: str, revision: str | None) -> Path:
    """The folder of a model: the local one, or a snapshot of the Hub's, downloaded if it is not here."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise DistillError(
                f"teacher {model!r} is a folder, which has no revision {revision!r}: leave it out"
            )
        return folder.resolve()
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DistillError(
            f"teacher {model!r} is no folder, and cannot be had from the Hugging Face Hub ({type(error).__name__}: "
            f"{reason}). Without network, copy config.json, preprocessor_config.json, model.safetensors and README.md, "
            "for its licence, into a folder and name that"
        ) from error


def weight_files(model: str, folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        raise DistillError(
            f"teacher {model!r}: {folder} lacks "
            f"{'config.json' if not (folder / 'config.json').is_file() else 'model.safetensors'}. Pickled weights "
            "(pytorch_model.bin) are not loaded; choose a revision with safetensors, or convert them"
        )
    return files


def card_license(folder: Path) -> str:
    """The licence that a model card states, or nothing."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    try:
        data = ModelCard.load(card).data
    except (ValueError, YAMLError) as error:
        raise DistillError(
            f"{card} cannot be read ({' '.join(str(error).split())[:200]}), and with it the licence that it states: mend the lines "
            "between its `---`"
        ) from error
    licenses = data.license if isinstance(data.license, list) else [data.license]
    stated = " and ".join(str(license) for license in licenses if license)
    if stated.lower() != "other":
        return stated
    # The Hub's way to state a licence that is not on its list.
    more = [str(each) for each in (data.get("license_name"), data.get("license_link")) if each]
    return f"other: {', '.join(more)}" if more else stated


def read_pixels(model: str, folder: Path) -> Pixels:
    if not (folder / "preprocessor_config.json").is_file():
        raise DistillError(
            f"teacher {model!r}: {folder} lacks preprocessor_config.json, which says what its images look like; copy the "
            "published one"
        )
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    sizes = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    found = {
        int(sizes[name])
        for name in ("height", "width", "shortest_edge", "longest_edge")
        if sizes.get(name) is not None
    }
    if len(found) != 1:
        raise DistillError(f"teacher {model!r}: an input of {sizes} is not square, which students need")
    if not getattr(processor, "do_rescale", True):
        raise DistillError(
            f"teacher {model!r}: its preprocessor_config.json says do_rescale=false, pixels of 0 to 255; students are taught by "
            "models that take 0 to 1"
        )
    normalises = getattr(processor, "do_normalize", True)
    return Pixels(
        size=found.pop(),
        mode=_MODES.get(int(processor.resample), "bilinear"),
        mean=tuple(processor.image_mean) if normalises else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalises else (1.0, 1.0, 1.0),
    )
