"""Vision teachers: five kinds, by folder, safetensors only, aligned with the student."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    CLIPVisionModel,
    DepthAnythingForDepthEstimation,
    Dinov2Model,
    SamModel,
    ViTModel,
)

from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.frames import Frames
from lerobot_theia.distill.licenses import commercial_use
from lerobot_theia.distill.settings import make_teacher
from lerobot_theia.distill.teachers.vision import VisionTeacher, resample
from tests.distill.tiny_teachers import SIZES, change_config, drop_license, write_teacher

KINDS = list(SIZES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    return {kind: write_teacher(root / f"tiny-{kind}", kind) for kind in KINDS}


def images(side: int = 64) -> Tensor:
    return torch.randint(
        0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def expected(kind: str, folder: Path, pixels: Tensor) -> Tensor:
    """Features (B, C, h, w) as transformers gives them."""
    with torch.no_grad():
        if kind == "sam":
            return SamModel.from_pretrained(folder).get_image_embeddings(pixels)
        if kind == "depth_anything":
            model = DepthAnythingForDepthEstimation.from_pretrained(folder)
            before: list[Tensor] = []
            model.head.activation1.register_forward_hook(lambda _, inputs, __: before.append(inputs[0]))
            model(pixels)
            return before[0]
        network = {"clip": CLIPVisionModel, "dinov2": Dinov2Model, "vit": ViTModel}[kind]
        tokens = network.from_pretrained(folder)(pixels).last_hidden_state[:, 1:]
        side = int(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).reshape(len(pixels), -1, side, side)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_model(kind: str, folders: dict[str, Path]) -> None:
    teacher = VisionTeacher(model=str(folders[kind]))
    frames = Frames(images())
    features = teacher(frames)
    assert features.shape == (2, *SIZES[kind]) and teacher.feature_size == SIZES[kind]
    assert features.std() > 0
    reference = expected(kind, folders[kind], teacher.pixels(frames.images))
    torch.testing.assert_close(features, resample(reference, SIZES[kind][1]), atol=1e-5, rtol=1e-4)
    assert (teacher.name, teacher.license) == (f"tiny-{kind}", "apache-2.0")


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_published_processor_without_its_crop(
    kind: str, folders: dict[str, Path]
) -> None:
    pixels = VisionTeacher(model=str(folders[kind])).pixels
    square = images(pixels.size)
    processor = AutoImageProcessor.from_pretrained(folders[kind])
    reference = processor(
        images=[image.permute(1, 2, 0).numpy() for image in square],
        return_tensors="pt",
        do_resize=False,
        **({} if kind == "depth_anything" else {"do_center_crop": False}),
    ).pixel_values
    torch.testing.assert_close(pixels(square), reference, atol=1e-5, rtol=0)


def test_teachers_see_the_border_as_the_student_does(folders: dict[str, Path]) -> None:
    pixels = VisionTeacher(model=str(folders["dinov2"])).pixels
    framed = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    framed[..., :8, :] = 255  # DINOv2's own crop would cut this away
    seen = pixels(framed)
    assert seen[0, 0, 0].mean() > seen[0, 0, 10:].mean() + 1


def test_another_grid(folders: dict[str, Path]) -> None:
    teacher = VisionTeacher(model=str(folders["sam"]), grid=16)
    assert teacher(Frames(images())).shape == (2, 8, 16, 16)


def test_identity_is_that_of_weights_and_pixels_not_of_names(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    first = VisionTeacher(model=str(folders["vit"]))
    same = VisionTeacher(model=str(write_teacher(tmp_path / "elsewhere", "vit")), name="mine")
    assert same.identity() == first.identity() and same.name == "mine"
    other = write_teacher(tmp_path / "other", "vit")
    config = other / "preprocessor_config.json"
    config.write_text(config.read_text().replace("0.5", "0.4"))
    assert VisionTeacher(model=str(other)).identity() != first.identity()
    shallower = write_teacher(tmp_path / "shallower", "vit")
    config = shallower / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    assert VisionTeacher(model=str(shallower)).identity() != first.identity()
    assert first.origin["model"] == "tiny-vit" and list(first.origin["files"]) == ["model.safetensors"]


@pytest.mark.parametrize(
    "change", ["pickled", "processor", "license", "missing", "kind", "cut off", "size", "config"]
)
def test_what_is_refused(change: str, tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "teacher", "vit")
    message = {
        "pickled": "lacks model.safetensors. Pickled weights .* are not loaded",
        "processor": "lacks preprocessor_config.json",
        "license": "has no licence: state the one",
        "missing": "tensors are missing or of another shape",
        "kind": "is a 'resnet'; teachers can be clip, dinov2",
        "cut off": "teacher .*/teacher' cannot be loaded from .*teacher: ",
        "config": r"teacher .*/teacher': .*config.json cannot be read",
        "size": r"teacher .*/teacher' does not take images of 96x96, which its preprocessor_config.json names",
    }[change]
    if change == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif change == "processor":
        (folder / "preprocessor_config.json").unlink()
    elif change == "license":
        drop_license(folder)
    elif change == "config":
        (folder / "config.json").write_text("{")
    elif change == "cut off":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change == "size":
        processor = folder / "preprocessor_config.json"
        values = json.loads(processor.read_text()) | {"size": {"height": 96, "width": 96}}
        processor.write_text(json.dumps(values))
    elif change == "missing":
        change_config(folder, num_hidden_layers=3)  # the weights of one layer would be random
    else:
        change_config(folder, model_type="resnet")
    with pytest.raises(DistillError, match=message):
        VisionTeacher(model=str(folder))(Frames(images()))


def test_a_licence_of_settings_does_not_hide_that_of_the_model_card(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "teacher", "vit", license="cc-by-nc-4.0")
    license = VisionTeacher(model=str(folder), license="apache-2.0").license
    assert license.startswith("cc-by-nc-4.0 (") and commercial_use(license) == "forbidden"


@pytest.mark.parametrize(
    ("lines", "license", "verdict"),
    [
        (
            "license: other\nlicense_name: foo-non-commercial\nlicense_link: LICENSE",
            "other: foo-non-commercial, LICENSE",
            "forbidden",
        ),
        ("license: other", "other", "unclear"),
        ("license: [mit, apache-2.0]", "mit and apache-2.0", "unclear"),
    ],
)
def test_a_card_may_state_a_licence_that_is_not_on_the_hubs_list(
    lines: str, license: str, verdict: str, tmp_path: Path
) -> None:
    folder = write_teacher(tmp_path / "teacher", "vit")
    (folder / "README.md").write_text(f"---\n{lines}\n---\n")
    teacher = VisionTeacher(model=str(folder))
    assert teacher.license == license and commercial_use(license) == verdict


def test_a_card_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "teacher", "vit")
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(DistillError, match=r"README.md cannot be read .* mend the lines between its `---`"):
        VisionTeacher(model=str(folder))


def test_a_folder_in_ones_home_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_teacher(tmp_path / "teacher", "vit")
    monkeypatch.setenv("HOME", str(tmp_path))
    teacher = VisionTeacher(model="~/teacher")
    assert teacher.name == teacher.origin["model"] == "teacher" and teacher.origin["revision"] is None


def test_a_processor_that_does_not_normalise(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "teacher", "vit")
    processor = folder / "preprocessor_config.json"
    values = json.loads(processor.read_text())
    processor.write_text(json.dumps(values | {"do_normalize": False}))
    pixels = VisionTeacher(model=str(folder)).pixels
    assert (pixels.mean, pixels.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    processor.write_text(json.dumps(values | {"do_rescale": False}))
    with pytest.raises(DistillError, match="do_rescale=false"):
        VisionTeacher(model=str(folder))


def test_no_code_of_a_repository_runs(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "teacher", "vit")
    change_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    VisionTeacher(model=str(folder))(Frames(images()))
    assert not (tmp_path / "ran").exists()


def test_a_teacher_that_is_nowhere() -> None:
    with pytest.raises(DistillError, match="is no folder, and cannot be had from the Hugging Face Hub"):
        VisionTeacher(model="facebook/no-such-model")


def test_settings_of_a_teacher(folders: dict[str, Path]) -> None:
    values: dict[str, Any] = {"type": "vision", "model": str(folders["clip"])}
    assert make_teacher("clip", values)[1:] == (1.0, True)
    assert make_teacher("clip", {**values, "weight": 2, "features": "on_the_fly"})[1:] == (2.0, False)
    for change, message in (
        ({"weight": 0}, "teachers.clip.weight is 0, must be above 0"),
        ({"features": "later"}, "teachers.clip.features is 'later', must be extracted or on_the_fly"),
        ({"modell": "x"}, "unknown setting teachers.clip.modell; did you mean model"),
        ({"type": "oracle"}, "teachers.clip.type is 'oracle', must be one of vision, pusht, mujoco"),
        ({"dtype": "int8"}, "dtype 'int8'; choose one of"),
    ):
        with pytest.raises(DistillError, match=message):
            make_teacher("clip", values | change)
