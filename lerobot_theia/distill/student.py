"""The student: a Theia that trains, with the parameter names of the published checkpoints."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.encoder.backbone import Backbone
from lerobot_theia.encoder.names import HEAD_DIM, IMAGE_SIZE, PATCH_SIZE, SIZES, THEIA
from lerobot_theia.encoder.preprocess import preprocess
from lerobot_theia.encoder.spec import EncoderSpec
from lerobot_theia.encoder.theia import TheiaEncoder
from lerobot_theia.encoder.translator import GRID, FeatureSize, Translator


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    """Which student to begin with.

    Args:
        name: of the result.
        size: `tiny`, `small` or `base`, from scratch.
        init: begin with this encoder instead (short name, Hub id, folder), which also decides the size.
        init_revision: on the Hub.
        hidden_size, num_layers: another width (a multiple of 64) or depth than that of `size`.
    """

    name: str = "theia-student"
    size: str = "tiny"
    init: str | None = None
    init_revision: str | None = None
    hidden_size: int | None = None
    num_layers: int | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise DistillError(f"student.size is {self.size!r}, must be one of {', '.join(SIZES)}")
        if self.hidden_size is not None and (self.hidden_size < 1 or self.hidden_size % HEAD_DIM):
            raise DistillError(
                f"student.hidden_size is {self.hidden_size}, must be a multiple of {HEAD_DIM}: one attention head"
            )
        if self.num_layers is not None and self.num_layers < 1:
            raise DistillError(f"student.num_layers is {self.num_layers}, must be at least 1")
        if self.init is not None and (self.hidden_size or self.num_layers):
            raise DistillError(
                f"student.hidden_size and num_layers are those of student.init={self.init!r}; leave them out"
            )


class Student(nn.Module):
    """Backbone and translator heads, trainable, in float32."""

    def __init__(self, spec: EncoderSpec, feature_sizes: Mapping[str, FeatureSize]) -> None:
        super().__init__()
        self.spec = spec
        self.feature_sizes = dict(feature_sizes)
        self.backbone = Backbone(spec)
        self.translator = Translator(spec.hidden_size, feature_sizes)

    def tokens(self, images: Tensor, size: int = IMAGE_SIZE) -> Tensor:
        """Frames as `preprocess` takes them, seen at size x size pixels, to patch tokens (B, (size/16)², D)."""
        pixels = preprocess(images, size)
        model = self.backbone.model
        tokens: Tensor = model(
            pixel_values=pixels, interpolate_pos_encoding=size != IMAGE_SIZE
        ).last_hidden_state
        return tokens[:, 1:]

    def forward(
        self, images: Tensor, rows: Mapping[str, Tensor | None], size: int = IMAGE_SIZE
    ) -> dict[str, Tensor]:
        """Predict the standardised features of some teachers.

        Args:
            images: (B, 3, H, W) uint8.
            rows: teacher to the images (b,) it teaches; None for all of them.
            size: pixels along a side at which the student sees the images.

        Returns:
            {teacher: (b, H*W, C)}.
        """
        patches = on_full_grid(self.tokens(images, size))
        return {
            teacher: self.translator(patches if chosen is None else patches[chosen], [teacher])[teacher]
            for teacher, chosen in rows.items()
        }

    def train_last(self, blocks: int) -> None:
        """Freeze all but the last blocks, the final norm and the heads."""
        layers = self.backbone.model.encoder.layer
        if not 0 <= blocks <= len(layers):
            raise DistillError(f"training.train_blocks is {blocks}; this student has {len(layers)} blocks")
        self.backbone.requires_grad_(False)
        for layer in layers[len(layers) - blocks :]:
            layer.requires_grad_(True)
        self.backbone.model.layernorm.requires_grad_(True)


def on_full_grid(patches: Tensor) -> Tensor:
    """Patch tokens (B, g*g, D) of a smaller or larger image, resampled to the heads' 14x14 grid."""
    side = round(patches.shape[1] ** 0.5)
    if side == GRID:
        return patches
    maps = patches.transpose(1, 2).unflatten(2, (side, side))
    maps = nn.functional.interpolate(maps, size=(GRID, GRID), mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Beginning:
    """A student before its first step, and what it is made of."""

    student: Student
    init_license: str | None
    init_sha256: str | None
    new_heads: tuple[str, ...]


def make_student(
    settings: StudentSettings, feature_sizes: Mapping[str, FeatureSize], license: str, seed: int
) -> Beginning:
    """A student with weights from `seed`, or from the encoder that `settings.init` names.

    Heads of teachers that the initial encoder has not, or in another size, begin from `seed`.
    """
    init = None
    if settings.init is not None:
        init = TheiaEncoder.from_pretrained(settings.init, revision=settings.init_revision)
        if init.spec.architecture != THEIA:
            raise DistillError(
                f"student.init={settings.init!r} is a {init.spec.architecture}; a student is a Theia. Begin with one, or "
                "from scratch with student.size, and take this one as a teacher"
            )
    spec = (
        _spec(settings, license) if init is None else replace(init.spec, name=settings.name, license=license)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Student(replace(spec, weights_sha256="", trained=True), feature_sizes)
    new_heads = tuple(feature_sizes)
    if init is not None:
        found = init.state_dict()
        state = student.state_dict()
        fits = {name for name, tensor in found.items() if name in state and state[name].shape == tensor.shape}
        new_heads = tuple(teacher for teacher in feature_sizes if not head_of(teacher, state) <= fits)
        fits -= {name for teacher in new_heads for name in head_of(teacher, state)}  # a head is taken whole
        student.load_state_dict(state | {name: found[name] for name in fits})
    return Beginning(
        student,
        None if init is None else init.spec.license,
        None if init is None else init.spec.weights_sha256,
        new_heads,
    )


def head_of(teacher: str, names: Iterable[str]) -> set[str]:
    """Those of the tensors that are the head of a teacher."""
    prefix = f"translator.translator_heads.{teacher.replace('.', '_')}."
    return {name for name in names if name.startswith(prefix)}


def _spec(settings: StudentSettings, license: str) -> EncoderSpec:
    size = SIZES[settings.size]
    hidden_size = settings.hidden_size or size.hidden_size
    return EncoderSpec(
        name=settings.name,
        weights_sha256="",
        hidden_size=hidden_size,
        num_layers=settings.num_layers or size.num_layers,
        num_heads=hidden_size // HEAD_DIM,
        intermediate_size=4 * hidden_size,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        license=license,
        trained=True,
    )
