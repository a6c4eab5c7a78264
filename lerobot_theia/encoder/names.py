"""The encoders one can ask for by name, what each name stands for, and under which licence it comes."""

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)

PUBLISHED_LICENSE = "The AI Institute License, non-commercial research only"
RANDOM_LICENSE = "Apache-2.0 (made by this project from a fixed seed)"
DINOV2_LICENSE = "Apache-2.0 (DINOv2, by Meta)"
UNKNOWN_LICENSE = "unknown; the licence of these weights is yours to check"
UNKNOWN_THEIA_LICENSE = (
    f"unknown; laid out like the published Theia weights, which are under {PUBLISHED_LICENSE}"
)

IMAGE_SIZE = 224
PATCH_SIZE = 16
HEAD_DIM = 64

THEIA, DINOV2 = ARCHITECTURES = ("theia", "dinov2")
DINOV2_IMAGE_SIZE = 196
"""Pixels along a side: with DINOv2's patches of 14 pixels the grid is 14x14, as Theia's, so heads and pools are the same."""
DINOV2_PATCH_SIZE = 14


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width of one published ViT size; depth, patches and image size are common to all."""

    hidden_size: int
    num_heads: int
    num_layers: int = 12

    @property
    def intermediate_size(self) -> int:
        return 4 * self.hidden_size


SIZES: dict[str, Size] = {
    "tiny": Size(hidden_size=192, num_heads=3),
    "small": Size(hidden_size=384, num_heads=6),
    "base": Size(hidden_size=768, num_heads=12),
}

# The teachers a published encoder was distilled from: CLIP, DINOv2, ViT (cdiv), and with Depth-Anything and
# SAM (cddsv).
TEACHER_SETS: tuple[str, ...] = ("cdiv", "cddsv")

THEIA_HUB_IDS: dict[str, str] = {
    f"theia-{size}-{teachers}": f"theaiinstitute/theia-{size}-patch16-224-{teachers}"
    for size in SIZES
    for teachers in TEACHER_SETS
}
DINOV2_HUB_IDS: dict[str, str] = {
    f"dinov2-{size}": f"facebook/dinov2-{size}" for size in ("small", "base", "large")
}
HUB_IDS: dict[str, str] = THEIA_HUB_IDS | DINOV2_HUB_IDS
SHIPPED: tuple[str, ...] = ("theia-tiny-sim",)
"""Trained by this project on simulators, and part of the package: `assets/<name>/`."""
RANDOM_SIZES: dict[str, Size] = {f"random-{name}": size for name, size in SIZES.items()}


def known_encoders() -> tuple[str, ...]:
    """Short names of all encoders, published ones first."""
    return (*HUB_IDS, *SHIPPED, *RANDOM_SIZES)


def canonical_name(name: str) -> str:
    """The short name behind an underscore spelling or hub id; any other `name` is returned as is."""
    hyphenated = name.replace("_", "-")
    if hyphenated in known_encoders():
        return hyphenated
    short_name_of = {hub_id: short_name for short_name, hub_id in HUB_IDS.items()}
    return short_name_of.get(name, name)


def license_notice(name: str, license: str) -> str:
    """What to tell whoever loads the weights called `name`, which come under `license`."""
    if license == PUBLISHED_LICENSE:
        return (
            f"{name}: these weights were published by the Boston Dynamics AI Institute under {license}. "
            "The licence covers what you make with them as well; read it before any other use."
        )
    return f"{name}: licence of the weights: {license}."


def untrained_warning(name: str) -> str:
    return (
        f"{name} is UNTRAINED: its weights come from a fixed seed. It is there to try out and to test the "
        f"pipeline; for results load a trained encoder, such as {SHIPPED[0]}, which needs no network, or theia-tiny-cdiv."
    )


_noticed: set[str] = set()


def notice_once(text: str) -> None:
    """Log `text` as a warning, the first time in this process only."""
    if text not in _noticed:
        _noticed.add(text)
        logger.warning(text)
