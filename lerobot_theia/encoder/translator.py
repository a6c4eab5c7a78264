"""Theia's translator: light convolutional heads that predict each teacher's feature map from patch tokens.

Parameter names and shapes are those of the published checkpoints (`translator_type: lconv`), so positions in
the `nn.Sequential`s matter.
"""

from collections.abc import Iterable, Mapping

from einops.layers.torch import Rearrange
from torch import Tensor, nn

from lerobot_theia.encoder.names import IMAGE_SIZE, PATCH_SIZE

GRID = IMAGE_SIZE // PATCH_SIZE

# A teacher's feature map: channels, height, width.
FeatureSize = tuple[int, int, int]


def _middle_16(dim: int) -> list[nn.Module]:
    """Two 3x3 convolutions that keep the 16x16 grid."""
    return [
        nn.Conv2d(dim, dim, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.LayerNorm([dim, 16, 16]),
        nn.Conv2d(dim, dim, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.LayerNorm([dim, 16, 16]),
    ]


def _middle_64(dim: int) -> list[nn.Module]:
    """Two transposed convolutions that take the grid from 16x16 over 31x31 to 64x64."""
    return [
        nn.ConvTranspose2d(dim, dim, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.LayerNorm([dim, 31, 31]),
        nn.ConvTranspose2d(dim, dim, kernel_size=3, stride=2, output_padding=1),
        nn.ReLU(),
        nn.LayerNorm([dim, 64, 64]),
    ]


_MIDDLES = {(16, 16): _middle_16, (64, 64): _middle_64}


class TranslatorHead(nn.Module):
    """Patch tokens (B, 196, D) to one teacher's feature map (B, H*W, C), of 16x16 or 64x64 positions."""

    def __init__(self, dim: int, feature_size: FeatureSize):
        super().__init__()
        channels, height, width = feature_size
        if (height, width) not in _MIDDLES:
            raise ValueError(
                f"a translator head for {height}x{width} features of {channels} channels is not known: "
                "the lconv heads are for 16x16 and 64x64"
            )
        self.pad = nn.Sequential(
            Rearrange("b (h w) c -> b c h w", h=GRID, w=GRID),
            nn.ConvTranspose2d(dim, dim, kernel_size=3),  # 14x14 -> 16x16
        )
        self.adapter = nn.Sequential(
            nn.LayerNorm([dim, 16, 16]),
            *_MIDDLES[height, width](dim),
            Rearrange("b c h w -> b (h w) c"),
            nn.Linear(dim, channels),
        )

    def forward(self, patches: Tensor) -> Tensor:
        features: Tensor = self.adapter(self.pad(patches))
        return features


class Translator(nn.Module):
    """One head per teacher.

    Args:
        dim: Width D of the patch tokens.
        feature_sizes: Teacher id (such as `facebook/dinov2-large`) to the size of its feature map.
    """

    def __init__(self, dim: int, feature_sizes: Mapping[str, FeatureSize]):
        super().__init__()
        check_teachers(feature_sizes)
        self.teachers = tuple(feature_sizes)
        self.translator_heads = nn.ModuleDict(
            {_key(teacher): TranslatorHead(dim, size) for teacher, size in feature_sizes.items()}
        )

    def forward(self, patches: Tensor, teachers: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Patch tokens (B, 196, D) to {teacher: (B, H*W, C)}, of all teachers unless some are named."""
        wanted = self.teachers if teachers is None else tuple(teachers)
        unknown = [teacher for teacher in wanted if teacher not in self.teachers]
        if unknown:
            raise ValueError(
                f"no translator head for {unknown}; this encoder has heads for {list(self.teachers)}"
            )
        return {teacher: self.translator_heads[_key(teacher)](patches) for teacher in wanted}


def check_teachers(teachers: Iterable[str]) -> None:
    """Raises ValueError for ids that cannot all be names of parameters."""
    keys: dict[str, str] = {}
    for teacher in teachers:
        key = _key(teacher)
        if not key or hasattr(nn.ModuleDict, key) or key in keys:
            reason = f"it is {keys[key]!r} inside parameter names" if key in keys else "torch needs that name"
            raise ValueError(f"a teacher cannot be called {teacher!r}: {reason}")
        keys[key] = teacher


def _key(teacher: str) -> str:
    """A teacher's id inside parameter names, where a dot would part two modules; slashes stay."""
    return teacher.replace(".", "_")
