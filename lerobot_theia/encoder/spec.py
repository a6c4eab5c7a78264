"""What an encoder is, in plain values: enough to rebuild its architecture and to recognise its weights."""

from dataclasses import dataclass

from lerobot_theia.encoder.names import ARCHITECTURES, THEIA


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Identity and architecture of one encoder.

    Only `str`, `int` and `bool` fields: it is stored in cache manifests (JSON) and policy configs (draccus).

    Args:
        name: Label: a short name, a hub id, or the name of the folder the weights were read from.
        weights_sha256: Hash of the backbone's float32 weights, see `weights_hash`; it, not the name, is the
            identity. Empty while the weights are not known yet.
        hidden_size: Width D of a token.
        num_layers: Transformer blocks.
        num_heads: Attention heads per block.
        intermediate_size: Width of the MLP in a block.
        image_size: Height and width of the input, in pixels.
        patch_size: Height and width of a patch, in pixels.
        license: Licence of the weights, in words.
        trained: False for weights made from a seed.
        architecture: `theia`, or `dinov2`, whose blocks, preprocessing and names of weights are its own.
    """

    name: str
    weights_sha256: str
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    license: str
    trained: bool
    architecture: str = THEIA
    """`theia` or `dinov2`."""  # Without it draccus takes the code below for this flag's help.

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"EncoderSpec of {self.name!r}: architecture is {self.architecture!r}, must be one of "
                f"{', '.join(ARCHITECTURES)}"
            )
        sizes = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "image_size", "patch_size")
        for field in sizes:
            if getattr(self, field) <= 0:
                raise ValueError(
                    f"EncoderSpec of {self.name!r}: {field} is {getattr(self, field)}, must be > 0"
                )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"EncoderSpec of {self.name!r}: hidden_size {self.hidden_size} is not a multiple of "
                f"num_heads {self.num_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"EncoderSpec of {self.name!r}: image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    def describe(self) -> str:
        """One line for logs."""
        untrained = "" if self.trained else " (UNTRAINED: weights from a fixed seed)"
        weights = f"weights {self.weights_sha256[:8]}…" if self.weights_sha256 else "weights not loaded"
        return f"{self.name}{untrained} {self.hidden_size}-d, {self.grid}x{self.grid} patches, {weights}"
