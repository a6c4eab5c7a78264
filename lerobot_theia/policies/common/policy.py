"""What a Theia policy adds to a LeRobot policy besides its network: where the encoder comes from and travels to."""

import logging
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_theia.data.resume import StepSeeds
from lerobot_theia.encoder import EncoderSpec, TheiaEncoder
from lerobot_theia.encoder.names import (
    canonical_name,
    known_encoders,
    license_notice,
    notice_once,
    untrained_warning,
)
from lerobot_theia.policies.common.augment import augment
from lerobot_theia.policies.common.compiling import compile_forward
from lerobot_theia.policies.common.features import FrozenFeatures, has_tokens

logger = logging.getLogger(__name__)


SOURCE = (
    "force_download",
    "resume_download",
    "proxies",
    "token",
    "cache_dir",
    "local_files_only",
    "revision",
)
"""Of `from_pretrained`'s arguments, those that say where the files are."""


class TheiaPolicy(PreTrainedPolicy):
    """Base of both policies. Checkpoints hold the encoder, so that they load offline and on other machines."""

    config_class: Any = object
    name: Any = "theia"
    features: FrozenFeatures

    def build_features(
        self, dataset_stats: dict[str, dict[str, Any]] | None, from_checkpoint: bool
    ) -> FrozenFeatures:
        """A checkpoint's encoder is built by its description and filled by the checkpoint's weights; a new policy's is
        loaded, and its statistics are those that the dataset's seam left in `dataset_stats`."""
        config = self.config
        # Left there by the seam, for this policy only.
        loaded = config.__dict__.pop("loaded_encoder", None)
        on_device = config.__dict__.pop("tokens_on_device", None)
        self.step_seeds: StepSeeds | None = config.__dict__.pop("step_seeds", None)
        if from_checkpoint:
            encoder = TheiaEncoder.from_spec(carried_encoder(config))
        else:
            encoder = loaded or TheiaEncoder.from_pretrained(
                config.encoder, revision=config.encoder_revision, translators=False
            )
            config.encoder_spec = encoder.spec
        if config.compile_model:
            compile_forward(encoder.backbone, config.compile_mode)
        features = FrozenFeatures(encoder, list(config.image_features), config.token_pool, on_device)
        if not from_checkpoint:
            features.set_statistics(dataset_stats or {})
        return features

    def begin_step(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """A copy of `batch` in which cameras hold feature maps, as both networks take it for a loss; augmented, if the
        loss is for training."""
        self.check_source(batch)
        maps = self.features(batch)
        if not self.training:
            return maps
        if self.step_seeds is not None:
            self.step_seeds.begin_step()
        augmented = {camera: augment(maps[camera], self.config) for camera in self.config.image_features}
        return maps | augmented

    def check_source(self, batch: dict[str, Tensor]) -> None:
        """`features=cached` promises that no frame is encoded in training."""
        missing = [camera for camera in self.config.image_features if not has_tokens(batch, camera)]
        if missing and self.training and self.config.features == "cached":
            raise RuntimeError(
                f"--policy.features=cached, but the batch holds frames, not tokens, of {missing}: this training "
                "loop does not get its dataset from LeRobot's make_train_eval_datasets. Use lerobot-train, or wrap "
                "the dataset in lerobot_theia.data.feature_dataset.FeatureDataset."
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: Any = None, **kwargs: Any
    ) -> Self:
        if config is not None:
            source = {name: value for name, value in kwargs.items() if name in SOURCE}
            checkpoint = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **source)
            agree_on_the_encoder(config, checkpoint)
            agree_on_the_tokens(config, checkpoint)
        return super().from_pretrained(pretrained_name_or_path, config=config, **kwargs, from_checkpoint=True)

    @classmethod
    def _load_as_safetensor(cls, model: Self, model_file: str, map_location: str, strict: bool) -> Self:
        # Strict, whatever was asked: an encoder that is only partly filled would be silently wrong.
        model = super()._load_as_safetensor(model, model_file, map_location, strict=True)
        model.features.encoder.verify_weights()
        spec = model.features.encoder.spec
        notice_once(license_notice(spec.name, spec.license) if spec.trained else untrained_warning(spec.name))
        logger.info("encoder in the checkpoint: %s", spec.describe())
        return model

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """LeRobot's card, with a section on the encoder that the checkpoint carries and its licence."""
        card = super().generate_model_card(*args, **kwargs)
        spec = self.features.encoder.spec
        if spec.trained and self.config.license is None:
            # LeRobot would say apache-2.0, which is for the encoder's licence to say.
            card.data.license = "other"
        card.text = f"{card.text.rstrip()}\n\n{encoder_section(spec)}"
        return card


def carried_encoder(config: Any) -> EncoderSpec:
    if config.encoder_spec is None:
        raise ValueError(
            "the checkpoint's config.json does not describe its encoder (encoder_spec): it was not written by a Theia "
            "policy, or was edited"
        )
    return config.encoder_spec


def agree_on_the_encoder(config: Any, checkpoint: Any) -> None:
    """`config`, with which a checkpoint is to be loaded, may name the encoder otherwise than the checkpoint's own config
    does, if it is the same one: a folder may have been moved since. It is loaded to see that.

    Raises:
        ValueError: if it is another.
    """
    if config.encoder_spec is None:
        config.take_from(checkpoint)
    spec = carried_encoder(config)
    name = canonical_name(config.encoder)
    if name == canonical_name(checkpoint.encoder) or name == spec.name:
        return
    if name not in known_encoders():
        named = TheiaEncoder.from_pretrained(
            config.encoder, revision=config.encoder_revision, translators=False
        )
        if named.spec.weights_sha256 == spec.weights_sha256:
            return
    raise ValueError(
        f"the checkpoint carries the encoder {spec.name!r}, its policy was trained on that one's tokens and cannot "
        f"take those of {config.encoder!r}; leave --policy.encoder out"
    )


def agree_on_the_tokens(config: Any, checkpoint: Any) -> None:
    """Weights and statistics of a checkpoint are those of its cameras one after the other, of its grid and its token head.

    Raises:
        ValueError: if `config`, with which it is to be loaded, has others.
    """
    if (cameras := list(config.image_features)) != (its := list(checkpoint.image_features)):
        raise ValueError(
            f"the checkpoint's policy looks at cameras {its}, in this order, and is to be loaded for {cameras}; leave "
            "--policy.input_features out, and map other names with --rename_map"
        )
    for name in ("token_pool", "token_head"):
        if (mine := getattr(config, name)) != (its_own := getattr(checkpoint, name)):
            raise ValueError(
                f"the checkpoint's policy was trained with {name}={its_own}, and is to be loaded with {mine}; pass "
                f"--policy.{name}={its_own}"
            )


def encoder_section(spec: EncoderSpec) -> str:
    lines = [
        "## Vision encoder",
        "",
        f"This checkpoint carries a frozen encoder: {spec.describe()}.",
        "",
        f"- Weights: SHA-256 `{spec.weights_sha256}`",
        f"- Licence of the encoder: {spec.license}",
    ]
    if not spec.trained:
        lines.append(
            "- The encoder is **untrained**: its weights come from a fixed seed, for trying things out."
        )
    return "\n".join(lines) + "\n"
