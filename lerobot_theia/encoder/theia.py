"""The frozen encoder: camera frames in, patch tokens out, the same tokens wherever it runs."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from lerobot_theia.encoder.backbone import Backbone
from lerobot_theia.encoder.checkpoint import read_checkpoint
from lerobot_theia.encoder.locate import locate
from lerobot_theia.encoder.names import (
    IMAGE_SIZE,
    PATCH_SIZE,
    RANDOM_LICENSE,
    RANDOM_SIZES,
    SHIPPED,
    canonical_name,
    license_notice,
    notice_once,
    untrained_warning,
)
from lerobot_theia.encoder.precision import tf32
from lerobot_theia.encoder.preprocess import NORMALIZATIONS, preprocess, to_uint8
from lerobot_theia.encoder.random_weights import random_weights
from lerobot_theia.encoder.spec import EncoderSpec
from lerobot_theia.encoder.translator import FeatureSize, Translator
from lerobot_theia.encoder.weights_hash import weights_sha256

logger = logging.getLogger(__name__)

REDUCTIONS = ("mean", "max", "cls", "identity")


class TheiaEncoder(nn.Module):
    """A ViT distilled from several vision models, used as it is: it takes no gradient and never trains.

    Built by `from_pretrained` (weights from a checkpoint or a fixed seed) or `from_spec` (weights follow).
    Its `state_dict` has the names of the published checkpoints. It runs in the dtype of its parameters, with
    autocast off, in eval mode and with a multiplication of its own choice (`precision.tf32`), so that a token does
    not depend on the training loop around it.

    Args:
        spec: Architecture, and identity of the weights.
        feature_sizes: Teacher id to the size of its feature map, for a translator.
    """

    def __init__(self, spec: EncoderSpec, feature_sizes: Mapping[str, FeatureSize] | None = None):
        super().__init__()
        self.spec = spec
        self.backbone = Backbone(spec)
        self.translator = Translator(spec.hidden_size, feature_sizes) if feature_sizes else None
        self.requires_grad_(False)
        self.train()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        translators: bool = True,
    ) -> Self:
        """Load an encoder by short name, hub id or folder; see `names.known_encoders`.

        Args:
            revision: Branch, tag or commit on the Hub.
            dtype: Of parameters and tokens. The weights' hash is that of the float32 weights in any case.
            translators: Load the translator heads too, where there are any; only `translate` needs them.
        """
        name_or_path = str(name_or_path)
        name = canonical_name(name_or_path)
        if name in RANDOM_SIZES:
            if revision is not None:
                raise ValueError(
                    f"revision {revision!r} was given with {name}, which is made from a fixed seed"
                )
            encoder = cls._random(name)
        else:
            checkpoint = read_checkpoint(locate(name_or_path, revision), translators)
            encoder = cls._with_weights(checkpoint.spec, checkpoint.tensors, checkpoint.feature_sizes)
        if not encoder.spec.trained:
            notice_once(untrained_warning(name))
        elif name not in SHIPPED:  # which are as free as the package
            notice_once(license_notice(name, encoder.spec.license))
        heads = f", translator heads for {', '.join(encoder.teachers)}" if encoder.teachers else ""
        logger.info("Loaded encoder %s%s", encoder.spec.describe(), heads)
        return encoder.to(device=device, dtype=dtype)

    @classmethod
    def from_spec(cls, spec: EncoderSpec) -> Self:
        """The architecture alone, without translator, for a policy checkpoint that brings the weights.

        The weights are NaN until then, so that nothing plausible comes out if they never arrive. Call
        `verify_weights` after loading.
        """
        with torch.device("meta"):
            encoder = cls(spec)
        encoder.to_empty(device="cpu")
        for parameter in encoder.parameters():
            parameter.fill_(torch.nan)
        return encoder

    @classmethod
    def _random(cls, name: str) -> Self:
        size = RANDOM_SIZES[name]
        spec = EncoderSpec(
            name=name,
            weights_sha256="",
            hidden_size=size.hidden_size,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            intermediate_size=size.intermediate_size,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            license=RANDOM_LICENSE,
            trained=False,
        )
        with torch.device("meta"):
            shapes = {key: tensor.shape for key, tensor in cls(spec).state_dict().items()}
        return cls._with_weights(spec, random_weights(shapes, spec.num_layers))

    @classmethod
    def _with_weights(
        cls,
        spec: EncoderSpec,
        tensors: Mapping[str, Tensor],
        feature_sizes: Mapping[str, FeatureSize] | None = None,
    ) -> Self:
        # On the meta device nothing is initialised only to be overwritten, and no random state moves.
        with torch.device("meta"):
            encoder = cls(spec, feature_sizes)
        encoder.load_state_dict(tensors, strict=True, assign=True)
        encoder.spec = replace(spec, weights_sha256=weights_sha256(encoder))
        return encoder

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.model.embeddings.cls_token.dtype

    @property
    def device(self) -> torch.device:
        return self.backbone.model.embeddings.cls_token.device

    @property
    def teachers(self) -> tuple[str, ...]:
        """Ids of the teachers whose features `translate` can predict."""
        return () if self.translator is None else self.translator.teachers

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a policy's `train()` reaches all of its submodules, this one does not follow."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, reduce: str | None = None) -> Tensor:
        """Frames, in any dress that `preprocess.to_uint8` takes, to tokens.

        Args:
            images: (B, H, W, 3) or (B, 3, H, W), on any device.
            reduce: None for the patch tokens (B, N, D), row by row; "mean" or "max" over the patches, or
                "cls", for (B, D); "identity" for CLS and patches (B, 1 + N, D).
        """
        _check_reduction(reduce)
        # A frame travels as uint8, a quarter of its size in float; its resize has the same result anywhere.
        frames = to_uint8(images).to(self.device)
        return self.encode_preprocessed(self.preprocess(frames), reduce)

    def preprocess(self, images: Tensor) -> Tensor:
        """Frames, see `preprocess.to_uint8`, on their own device, to what `encode_preprocessed` takes."""
        return preprocess(images, self.spec.image_size, self.dtype, NORMALIZATIONS[self.spec.architecture])

    @torch.no_grad()
    def encode_preprocessed(self, pixels: Tensor, reduce: str | None = None) -> Tensor:
        """As `forward`, from what `preprocess` returned: (B, 3, image_size, image_size)."""
        _check_reduction(reduce)
        expected = (3, self.spec.image_size, self.spec.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected or not pixels.is_floating_point():
            raise ValueError(
                f"preprocessed images must be float of shape (B, {', '.join(map(str, expected))}), got "
                f"{pixels.dtype} of shape {tuple(pixels.shape)}; pass frames to the encoder itself, or "
                "through its preprocess() first"
            )
        with torch.autocast(self.device.type, enabled=False), tf32(self.device):
            tokens = self.backbone(pixels.to(self.device, self.dtype))
        return _reduce(tokens, reduce)

    @torch.no_grad()
    def translate(self, images: Tensor, teachers: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Predict teachers' features from frames: {teacher: (B, H*W, C)}, row by row; of all unless named.

        As in training, features are standardised: per channel, teacher minus mean over standard deviation.
        """
        if self.translator is None:
            raise ValueError(
                f"{self.spec.name} was loaded without translator heads, so it cannot translate: random-* "
                "encoders and backbone-only checkpoints have none, others need "
                "from_pretrained(..., translators=True)"
            )
        patches = self(images)
        with torch.autocast(self.device.type, enabled=False), tf32(self.device):
            features: dict[str, Tensor] = self.translator(patches, teachers)
        return features

    def verify_weights(self) -> None:
        """Raise unless the present weights are those that `spec` speaks of."""
        present = weights_sha256(self)
        if present == self.spec.weights_sha256:
            return
        why = "other weights were loaded"
        if any(torch.isnan(parameter).any() for parameter in self.backbone.parameters()):
            why = "they hold NaN: no checkpoint was loaded into them, or only a part"
        elif self.dtype != torch.float32:
            why = f"they are {self.dtype}, which rounds float32 weights: verify before casting"
        raise ValueError(
            f"the weights of encoder {self.spec.name} have sha256 {present[:16]}…, expected "
            f"{self.spec.weights_sha256[:16] or 'none'}…; {why}. Tokens cached from one "
            "would not match the other."
        )


def _check_reduction(reduce: str | None) -> None:
    if reduce is not None and reduce not in REDUCTIONS:
        raise ValueError(f"reduce is {reduce!r}, must be None or one of {', '.join(REDUCTIONS)}")


def _reduce(tokens: Tensor, reduce: str | None) -> Tensor:
    """(B, 1 + N, D), CLS first, to what `reduce` asks for."""
    match reduce:
        case None:
            return tokens[:, 1:]
        case "mean":
            return tokens[:, 1:].mean(dim=1)
        case "max":
            return tokens[:, 1:].amax(dim=1)
        case "cls":
            return tokens[:, 0]
        case _:
            return tokens
