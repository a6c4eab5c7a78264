"""Extracted features: kept once, in bfloat16, with statistics; resumed, checked, never of another teacher."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lerobot_theia.distill import pack as packing
from lerobot_theia.distill.errors import DistillError
from lerobot_theia.distill.features import Sharing, StoredFeatures, extract
from lerobot_theia.distill.frames import Frames
from lerobot_theia.distill.pack import PackedSource, PackSettings, pack
from lerobot_theia.distill.sources.folder import FolderSource

CPU = torch.device("cpu")


class Teacher:
    """Average colours of a 16x16 grid, in `channels` channels; counts the images it sees."""

    name = "test/colours"
    license = "apache-2.0"
    needs: frozenset[str] = frozenset()
    origin: Mapping[str, Any] = {}

    def __init__(self, channels: int = 3, broken: bool = False) -> None:
        self.feature_size = (channels, 16, 16)
        self.seen, self.broken = 0, broken

    def identity(self) -> Mapping[str, Any]:
        return {"type": "colours"}

    def to(self, device: torch.device) -> None: ...

    def __call__(self, frames: Frames) -> Tensor:
        self.seen += len(frames)
        colours = torch.nn.functional.adaptive_avg_pool2d(frames.images.float(), 16) / 255
        features = colours.repeat(1, -(-self.feature_size[0] // 3), 1, 1)[:, : self.feature_size[0]]
        return features * torch.nan if self.broken else features

    def picture(self, features: Tensor) -> None: ...


@pytest.fixture
def packed(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackedSource:
    monkeypatch.setattr(packing, "SHARD_ITEMS", 10)
    source = FolderSource(name="pictures", path=picture_folder, license="cc0-1.0")
    return pack(source, PackSettings(root=tmp_path / "packed", image_size=48), 0.0)


def extracted(teacher: Teacher, packed: PackedSource, tmp_path: Path, **options: Any) -> StoredFeatures:
    return extract(teacher, [packed], tmp_path / "features", device=CPU, batch_size=4, **options)  # type: ignore[arg-type]


def test_features_are_kept_in_bfloat16(packed: PackedSource, tmp_path: Path) -> None:
    teacher = Teacher()
    stored = extracted(teacher, packed, tmp_path)
    rows = [23, 0, 11, 11]
    found = stored.gather(packed, rows)
    assert found.dtype == torch.bfloat16 and found.shape == (4, 3, 16, 16)
    assert torch.equal(found, teacher(packed.frames(rows)).to(torch.bfloat16))


def test_statistics_are_over_all_positions_of_all_images(packed: PackedSource, tmp_path: Path) -> None:
    teacher = Teacher()
    standard = extracted(teacher, packed, tmp_path).standard()
    values = teacher(packed.frames(range(24))).to(torch.bfloat16).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(standard.mean.double(), values.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(standard.std.double(), values.std(1, correction=0), atol=1e-6, rtol=0)


def test_an_extraction_resumes(packed: PackedSource, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(frames: int) -> None:
        raise StopError

    teacher = Teacher()
    with pytest.raises(StopError):
        extracted(teacher, packed, tmp_path, progress=stop)
    assert teacher.seen == 10
    extracted(teacher, packed, tmp_path)
    assert teacher.seen == 24
    extracted(teacher, packed, tmp_path)
    assert teacher.seen == 24, "nothing is done twice"


def test_processes_share_an_extraction(packed: PackedSource, tmp_path: Path) -> None:
    first, second = Teacher(), Teacher()

    def other_process() -> None:
        extracted(second, packed, tmp_path, sharing=Sharing(1, 2))

    stored = extracted(first, packed, tmp_path, sharing=Sharing(0, 2, wait=other_process))
    assert (first.seen, second.seen) == (14, 10), "three shards of 10, 10 and 4 images"
    assert torch.equal(stored.gather(packed, range(24)), first(packed.frames(range(24))).to(torch.bfloat16))


def test_damaged_shards_are_found_and_made_again(packed: PackedSource, tmp_path: Path) -> None:
    teacher = Teacher()
    stored = extracted(teacher, packed, tmp_path)
    before = stored.gather(packed, range(24)).clone()
    (file,) = (stored.path / "pictures").glob("000001-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    again = Teacher()
    assert torch.equal(extracted(again, packed, tmp_path).gather(packed, range(24)), before)
    assert again.seen == 10


def test_changed_images_are_seen_again(picture_folder: Path, packed: PackedSource, tmp_path: Path) -> None:
    extracted(Teacher(), packed, tmp_path)
    (picture_folder / "a/15.png").write_bytes((picture_folder / "a/01.png").read_bytes())
    source = FolderSource(name="pictures", path=picture_folder, license="cc0-1.0")
    changed = pack(source, PackSettings(root=tmp_path / "packed", image_size=48), 0.0)
    teacher = Teacher()
    extracted(teacher, changed, tmp_path)
    assert teacher.seen == 10


def test_an_image_less_or_more_changes_its_own_shard_only(
    picture_folder: Path, packed: PackedSource, tmp_path: Path
) -> None:
    extracted(Teacher(), packed, tmp_path)
    source = FolderSource(name="pictures", path=picture_folder, license="cc0-1.0")
    whole = (picture_folder / "a/03.png").read_bytes()
    for content, seen in ((b"broken", 9), (whole, 0)):  # those of the whole one are still there
        (picture_folder / "a/03.png").write_bytes(content)
        changed = pack(source, PackSettings(root=tmp_path / "packed", image_size=48), 0.1)
        teacher = Teacher()
        stored = extracted(teacher, changed, tmp_path)
        assert teacher.seen == seen
        every = range(len(changed))
        expected = Teacher()(changed.frames(every)).to(torch.bfloat16)
        assert torch.equal(stored.gather(changed, every), expected)


def test_another_corpus_of_the_same_name_leaves_them_alone(
    picture_folder: Path, packed: PackedSource, tmp_path: Path
) -> None:
    teacher = Teacher()
    stored = extracted(teacher, packed, tmp_path)
    before = stored.gather(packed, range(24)).clone()
    source = FolderSource(name="pictures", path=picture_folder, license="cc0-1.0")
    smaller = pack(source, PackSettings(root=tmp_path / "packed", image_size=32), 0.0)
    extracted(teacher, smaller, tmp_path)
    assert teacher.seen == 48
    assert torch.equal(extracted(teacher, packed, tmp_path).gather(packed, range(24)), before)
    assert teacher.seen == 48


def test_features_of_another_size_are_refused(packed: PackedSource, tmp_path: Path) -> None:
    stored = extracted(Teacher(), packed, tmp_path)
    with pytest.raises(DistillError, match=r"size \[4, 16, 16\], but its cache .* made with \[3, 16, 16\]"):
        extracted(Teacher(channels=4), packed, tmp_path)
    assert json.loads((stored.path / "teacher.json").read_text())["feature_size"] == [3, 16, 16]
    shutil.rmtree(stored.path)  # as the message says
    teacher = Teacher(channels=4)
    extracted(teacher, packed, tmp_path)
    assert teacher.seen == len(packed)


def test_a_teacher_that_does_not_keep_its_word(packed: PackedSource, tmp_path: Path) -> None:
    teacher = Teacher()
    teacher.feature_size = (5, 64, 64)
    with pytest.raises(DistillError, match=r"says its features are \(5, 64, 64\), but gives \(5, 16, 16\)"):
        extracted(teacher, packed, tmp_path)


def test_features_that_are_not_finite_name_the_image(packed: PackedSource, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"NaN or infinity for image .* of source 'pictures'"):
        extracted(Teacher(broken=True), packed, tmp_path)
    mended = Teacher()
    extracted(mended, packed, tmp_path)
    assert mended.seen == len(packed), "nothing of the broken one's shard was kept"
