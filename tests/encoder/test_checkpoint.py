"""Loading: what is accepted, and what is refused with names and numbers."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from lerobot_theia.encoder import locate, names
from lerobot_theia.encoder.theia import TheiaEncoder
from tests.encoder.published_layout import (
    backbone_shapes,
    published_config,
    recipe_tensors,
    translator_shapes,
    write_checkpoint,
)

# A Theia of one layer and 64 numbers per token loads like the published ones, and in no time.
DIM = 64
FEATURES = {"facebook/dinov2-large": [8, 16, 16], "facebook/sam-vit-huge": [4, 64, 64]}
QUERY = "backbone.model.encoder.layer.0.attention.attention.query.weight"
HEAD = "translator.translator_heads.facebook/dinov2-large.adapter.8.weight"


def small_config(**changes: Any) -> dict[str, Any]:
    return published_config("tiny", "cdiv", **({"target_feature_sizes": FEATURES} | changes))


@pytest.fixture(scope="module")
def small_tensors() -> dict[str, Tensor]:
    return recipe_tensors(backbone_shapes(DIM, num_layers=1) | translator_shapes(DIM, FEATURES))


@pytest.fixture
def write(tmp_path: Path, small_tensors: dict[str, Tensor]) -> Callable[..., str]:
    """Write the small checkpoint with changed settings and tensors (None removes one), return its folder."""

    def write(config: Any = None, **tensors: Tensor | None) -> str:
        changed = {name: t for name, t in (small_tensors | tensors).items() if t is not None}
        return str(
            write_checkpoint(tmp_path / "theia", small_config() if config is None else config, changed)
        )

    return write


def load(folder: str, **options: Any) -> TheiaEncoder:
    return TheiaEncoder.from_pretrained(folder, **options)


# --- what loads


def test_dimensions_come_from_the_tensors(write: Callable[..., str]) -> None:
    encoder = load(write())
    spec = encoder.spec
    assert (spec.name, spec.hidden_size, spec.num_layers, spec.num_heads) == ("theia", 64, 1, 1)
    assert (spec.intermediate_size, spec.grid, spec.num_patches) == (256, 14, 196)
    assert spec.trained
    assert encoder.teachers == tuple(FEATURES)
    translated = encoder.translate(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))
    assert {k: tuple(v.shape) for k, v in translated.items()} == {
        "facebook/dinov2-large": (1, 256, 8),
        "facebook/sam-vit-huge": (1, 4096, 4),
    }


def test_translating_for_some_teachers(write: Callable[..., str]) -> None:
    encoder = load(write())
    images = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    assert list(encoder.translate(images, teachers=["facebook/sam-vit-huge"])) == ["facebook/sam-vit-huge"]
    with pytest.raises(ValueError, match=r"no translator head for .'openai/clip"):
        encoder.translate(images, teachers=["openai/clip-vit-large-patch14"])


def test_without_translators(write: Callable[..., str], small_tensors: dict[str, Tensor]) -> None:
    folder = write()
    with_heads, without = load(folder), load(folder, translators=False)
    assert without.teachers == ()
    assert without.spec == with_heads.spec
    with pytest.raises(ValueError, match="without translator heads"):
        without.translate(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))

    backbone_only = write(**{name: None for name in small_tensors if name.startswith("translator.")})
    assert load(backbone_only).teachers == ()
    assert load(backbone_only).spec.weights_sha256 == with_heads.spec.weights_sha256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load(
    write: Callable[..., str], small_tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    encoder = load(write(**{name: tensor.to(dtype) for name, tensor in small_tensors.items()}))
    assert encoder.dtype == torch.float32
    assert torch.equal(encoder.state_dict()[QUERY], small_tensors[QUERY].to(dtype).float())


def test_weights_do_not_live_in_the_file(write: Callable[..., str]) -> None:
    folder = write()
    encoder = load(folder)
    (Path(folder) / "model.safetensors").write_bytes(b"")
    encoder.verify_weights()


@pytest.mark.parametrize(
    ("changes", "license"),
    [
        ({}, names.UNKNOWN_THEIA_LICENSE),
        ({"architectures": ["ViT"], "auto_map": None}, names.UNKNOWN_LICENSE),
        (
            {"architectures": None, "auto_map": None, "_name_or_path": "theaiinstitute/theia-x"},
            names.UNKNOWN_THEIA_LICENSE,
        ),
        ({"license": "mit"}, "mit"),
    ],
)
def test_license_of_local_weights(write: Callable[..., str], changes: dict[str, Any], license: str) -> None:
    assert load(write(small_config(**changes))).spec.license == license


def test_published_name_reads_only_two_files_and_has_the_published_license(
    write: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = Path(write()), []

    def hub(repo_id: str, file: str, revision: str | None) -> str:
        asked.append((repo_id, file, revision))
        return str(folder / file)

    monkeypatch.setattr(locate, "hf_hub_download", hub)
    hub_id = "theaiinstitute/theia-tiny-patch16-224-cdiv"
    for name in ("theia-tiny-cdiv", "theia_tiny_cdiv", hub_id):
        asked.clear()
        encoder = load(name, revision="abc")
        assert asked == [(hub_id, "config.json", "abc"), (hub_id, "model.safetensors", "abc")]
        assert encoder.spec.name == "theia-tiny-cdiv"
        assert encoder.spec.license == names.PUBLISHED_LICENSE


# --- what does not


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"translator_type": "mlp"}, ["translator_type", "'mlp'", "'lconv'"]),
        ({"translator_hidden_size_factor": 2.0}, ["translator_hidden_size_factor", "2.0"]),
        ({"num_reg_tokens": 4}, ["num_reg_tokens", "4"]),
        ({"feature_neck": True}, ["feature_neck", "True"]),
        ({"forward_neck": True}, ["forward_neck", "True"]),
        ({"image_size": 384}, ["image_size", "384", "224"]),
        ({"target_feature_sizes": None}, ["target_feature_sizes", "None"]),
        ({"target_feature_sizes": {"a": [8, 16]}}, ["target_feature_sizes", "'a'", "[8, 16]"]),
        ({"target_feature_sizes": {"a": [8, 32, 32]}}, ["target_feature_sizes", "[8, 32, 32]", "64x64"]),
        ({"target_feature_sizes": {"a": [10**15, 16, 16]}}, ["target_feature_sizes", "65536"]),
        ({"target_feature_sizes": {"a": ["8", 16, 16]}}, ["target_feature_sizes", "'8'"]),
        (
            {"target_feature_sizes": {"bfloat16": [8, 16, 16]}},
            ["target_feature_sizes", "'bfloat16'", "torch"],
        ),
        ({"target_feature_sizes": {"a.b": [8, 16, 16], "a_b": [8, 16, 16]}}, ["'a_b'", "'a.b'"]),
        ({"target_feature_sizes": {f"t{i}": [8, 16, 16] for i in range(65)}}, ["target_feature_sizes", "64"]),
    ],
)
def test_unsupported_settings(write: Callable[..., str], changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        load(write(small_config(**changes)))
    for word in ["config.json", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({QUERY: None}, ["1 missing", QUERY, "expected 50", "found 49"]),
        ({HEAD: None}, ["1 missing", HEAD]),
        ({"backbone.model.pooler.dense.weight": torch.zeros(64, 64)}, ["1 not part", "pooler.dense.weight"]),
        ({QUERY: torch.zeros(64, 32)}, ["1 of another shape", QUERY, "[64, 64]", "[64, 32]"]),
        ({HEAD: torch.zeros(9, 64)}, ["1 of another shape", HEAD, "[8, 64]", "[9, 64]"]),
        ({QUERY: torch.zeros(64, 64, dtype=torch.int64)}, [QUERY, "I64", "F32"]),
        ({QUERY: torch.zeros(64, 64, dtype=torch.float64)}, [QUERY, "F64", "F32"]),
        ({QUERY: torch.full((64, 64), torch.nan)}, [QUERY, "NaN"]),
        ({"backbone.model.embeddings.position_embeddings": torch.zeros(1, 577, 64)}, ["577", "196"]),
        ({"backbone.model.embeddings.position_embeddings": torch.zeros(197)}, ["(197,)", "3 dimensions"]),
        ({"backbone.model.embeddings.position_embeddings": None}, ["no tensor", "position_embeddings"]),
        (
            {"backbone.model.embeddings.patch_embeddings.projection.weight": torch.zeros(64, 3, 14, 14)},
            ["patches of 14", "16"],
        ),
        (
            {"backbone.model.embeddings.patch_embeddings.projection.weight": torch.zeros(50, 3, 16, 16)},
            ["50", "heads of 64"],
        ),
        (
            {"backbone.model.encoder.layer.7.layernorm_before.weight": torch.zeros(64)},
            ["missing", "layer.1."],
        ),
    ],
)
def test_wrong_tensors(
    write: Callable[..., str], changes: dict[str, Tensor | None], words: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        load(write(**changes))
    for word in ["model.safetensors", *words]:
        assert word in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "JSON object"),
        ("{not json", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('"' + "x" * (1 << 20) + '"', "bytes"),
    ],
)
def test_hostile_config(write: Callable[..., str], text: str, words: str) -> None:
    folder = write()
    (Path(folder) / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        load(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not safetensors at all",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        (lambda header: struct.pack("<Q", len(header)) + header)(
            json.dumps(
                {QUERY: {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}
            ).encode()
        ),
    ],
)
def test_damaged_weights_file(write: Callable[..., str], content: bytes) -> None:
    folder = write()
    (Path(folder) / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="no readable safetensors"):
        load(folder)


def test_pickles_are_not_read(write: Callable[..., str]) -> None:
    folder = Path(write())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load(str(folder))


def test_folder_without_config(write: Callable[..., str]) -> None:
    folder = Path(write())
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in the encoder folder"):
        load(str(folder))


def test_missing_folder_and_revision_of_a_folder(write: Callable[..., str]) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        load("./no/such/folder")
    with pytest.raises(ValueError, match="revision 'main'"):
        load(write(), revision="main")
    with pytest.raises(ValueError, match="revision 'main'"):
        load("random-tiny", revision="main")


@pytest.mark.parametrize("name", ["theia-huge-cdiv", "resnet18", "", "a/b/c"])
def test_unknown_name_lists_the_known(name: str) -> None:
    with pytest.raises(ValueError) as error:
        load(name)
    for known in ("theia-tiny-cdiv", "theia-base-cddsv", "theia-tiny-sim", "random-tiny", "folder"):
        assert known in str(error.value)


@pytest.mark.parametrize("name", ["a..b/c", "a--b/c", "-a/b", f"{'a' * 97}/b", "a/b.git"])
def test_a_name_that_the_hub_cannot_have_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(ValueError) as error:
        load(name)
    assert not isinstance(error.value, HFValidationError)
    for word in (name, "owner/name", f"./{name}"):
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["theia-tiny-cdiv", "someone/else"])
def test_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    # The environment variable is read when huggingface_hub is imported; what it set is what counts here.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    for word in ("config.json", names.HUB_IDS.get(name, name), str(tmp_path), "folder", "theia-tiny-sim"):
        assert word in str(error.value)
