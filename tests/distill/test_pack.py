"""Packing: every source is read once, resumes where it stopped, and leaves nothing out in silence."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from lerobot_theia.cache.claim import CLAIM_PREFIX, waiting_for
from lerobot_theia.distill import pack as packing
from lerobot_theia.distill.corpus import Corpus, Order, evenly
from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import TRAIN, VALIDATION, Frame, split_by_group
from lerobot_theia.distill.pack import PackedSource, PackSettings, Skipped, check_skipped, look, pack
from lerobot_theia.distill.sources.folder import FolderSource
from lerobot_theia.distill.sources.interface import Column
from lerobot_theia.distill.sources.pusht import PushTSource
from lerobot_theia.distill.sources.scenes import Episode, ScenesSource
from lerobot_theia.encoder.resize import resize
from tests.distill.conftest import no_right_to_read


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD_ITEMS", 5)


@pytest.fixture
def settings(tmp_path: Path) -> PackSettings:
    return PackSettings(root=tmp_path / "packed", image_size=48)


def source(folder: Path, name: str = "pictures") -> FolderSource:
    return FolderSource(name=name, path=folder, license="cc0-1.0")


class Counting(FolderSource):
    """Counts the images that are read."""

    read_images = 0

    def read(self, start: int, stop: int) -> Iterator[Frame | UnreadableError]:
        for frame in super().read(start, stop):
            type(self).read_images += 1
            yield frame


def counting(folder: Path) -> Counting:
    Counting.read_images = 0
    return Counting(name="pictures", path=folder, license="cc0-1.0")


def files(packed: PackedSource) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(packed.path.glob("*.safetensors"))}


def test_images_are_kept_as_the_student_will_see_them(picture_folder: Path, settings: PackSettings) -> None:
    packed = pack(source(picture_folder), settings, 0.0)
    assert len(packed) == 24 and len(packed.shards) == 5
    assert packed.ids[1] == "a/01.png"
    original = torch.from_numpy(np.asarray(Image.open(picture_folder / "a/01.png")).copy()).permute(2, 0, 1)
    assert torch.equal(packed.frames([1]).images[0], resize(original[None], 48)[0])


def test_any_rows_in_any_order(picture_folder: Path, settings: PackSettings) -> None:
    packed = pack(source(picture_folder), settings, 0.0)
    everything = packed.frames(range(24)).images
    rows = [23, 0, 7, 7, 12, 1]
    assert torch.equal(packed.frames(rows).images, everything[rows])


class Simulator(ScenesSource):
    """Two scenes without a simulator; `fails` in the second."""

    shape = (48, 48)
    columns: ClassVar[Mapping[str, Column]] = {}
    scene_names = ("hall", "yard")
    origin: Mapping[str, Any] = {}
    fails, played, closed = False, 0, 0

    def identity(self) -> Mapping[str, Any]:
        return {"type": "simulator"}

    @classmethod
    def play(cls, episode: Episode) -> list[Frame]:
        cls.played += 1
        if cls.fails and episode.scene == "yard":
            raise RuntimeError("the context was lost")
        rng = np.random.default_rng([episode.seed, *episode.scene.encode()])
        return [Frame(rng.integers(0, 256, (48, 48, 3), np.uint8), {}) for _ in episode.wanted]

    @classmethod
    def close(cls) -> None:
        cls.closed += 1


def simulator(*, fails: bool) -> Simulator:
    Simulator.fails, Simulator.played, Simulator.closed = fails, 0, 0
    return Simulator(name="sim", license="cc0-1.0", episodes=2, frames_per_episode=5, validation=0.5)


def test_a_simulator_that_fails_names_the_episode_and_goes_on_from_there(settings: PackSettings) -> None:
    with pytest.raises(
        DistillError, match=r"sim/yard/00000: .*RuntimeError: the context was lost.*resume=true"
    ):
        pack(simulator(fails=True), settings, 0.0)
    assert Simulator.played == Simulator.closed == 3, "a shard for each episode, and no scene stays open"
    packed = pack(simulator(fails=False), settings, 0.0)
    assert len(packed) == 20 and Simulator.played == 2, "the first two were kept"


def test_a_look_reads_one_image_of_what_is_not_packed(picture_folder: Path, settings: PackSettings) -> None:
    look(counting(picture_folder), settings)
    assert Counting.read_images == 1
    packed = pack(counting(picture_folder), settings, 0.0)
    look(counting(picture_folder), settings)
    assert Counting.read_images == 0
    packed.shards[-1].path.unlink()
    look(counting(picture_folder), settings)
    assert Counting.read_images == 1


def test_what_is_packed_is_not_read_again(picture_folder: Path, settings: PackSettings) -> None:
    first = pack(counting(picture_folder), settings, 0.0)
    assert Counting.read_images == 24
    again = pack(counting(picture_folder), settings, 0.0)
    assert Counting.read_images == 0
    assert again.content_sha256 == first.content_sha256


def test_several_processes_look_through_what_is_packed_at_once(
    picture_folder: Path, settings: PackSettings
) -> None:
    """Only who packs something keeps others from it."""
    packed = pack(source(picture_folder), settings, 0.0)
    with waiting_for(packed.path / f"{CLAIM_PREFIX}pack"):
        assert files(pack(source(picture_folder), settings, 0.0)) == files(packed)


def test_an_interrupted_packing_resumes(picture_folder: Path, settings: PackSettings) -> None:
    def stop_after_ten(done: int) -> None:
        stop_after_ten.done += done  # type: ignore[attr-defined]
        if stop_after_ten.done >= 10:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    stop_after_ten.done = 0  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        pack(counting(picture_folder), settings, 0.0, stop_after_ten)
    resumed = files(pack(counting(picture_folder), settings, 0.0))
    assert Counting.read_images == 14
    elsewhere = PackSettings(root=settings.root / "elsewhere", image_size=48)
    assert resumed == files(pack(source(picture_folder), elsewhere, 0.0))


def test_only_shards_of_changed_files_are_made_again(picture_folder: Path, settings: PackSettings) -> None:
    before = pack(source(picture_folder), settings, 0.0)
    Image.new("RGB", (40, 40), "red").save(picture_folder / "a/07.png")
    after = pack(counting(picture_folder), settings, 0.0)
    assert Counting.read_images == 5
    assert after.content_sha256 != before.content_sha256
    assert (after.frames([7]).images[0, 0] == 255).all()


def test_damaged_shards_are_made_again(picture_folder: Path, settings: PackSettings) -> None:
    packed = pack(source(picture_folder), settings, 0.0)
    whole = files(packed)
    file = packed.path / "000002.safetensors"
    damaged = bytearray(whole[file.name])
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    (packed.path / "000001.safetensors").write_bytes(b"nothing of ours")
    assert files(pack(counting(picture_folder), settings, 0.0)) == whole
    assert Counting.read_images == 10


def test_unreadable_images_are_listed_and_stop_the_run(picture_folder: Path, settings: PackSettings) -> None:
    (picture_folder / "a/03.png").write_bytes(b"not a picture")
    (picture_folder / "04.jpg").unlink()
    with pytest.raises(
        DistillError,
        match=r"2 of 24 images .*a/03.png: UnidentifiedImageError; pictures/04.jpg: there is no.*allow_skipped=0.084;",
    ):
        pack(source(picture_folder), settings, 0.001)
    packed = pack(source(picture_folder), settings, 0.1)
    assert [entry.id for entry in packed.skipped] == ["pictures/a/03.png", "pictures/04.jpg"]
    assert packed.skipped[1].reason == "there is no such file"
    assert len(packed) == 22 and "04.jpg" not in packed.ids


def test_all_that_are_unreadable_are_listed_and_the_remedy_is_enough(
    picture_folder: Path, settings: PackSettings
) -> None:
    for number in (1, 5, 7, 13, 15, 21, 23):
        (picture_folder / f"a/{number:02d}.png").unlink()
    with pytest.raises(DistillError, match=r"7 of 24 images .*; and 2 more, all listed in ") as error:
        pack(source(picture_folder), settings, 0.001)
    (listing,) = settings.root.glob("*/skipped.jsonl")
    assert str(listing) in str(error.value)
    listed = [json.loads(line)["id"] for line in listing.read_text().splitlines()]
    assert listed[0] == "pictures/a/01.png" and listed[-1] == "pictures/a/23.png" and len(listed) == 7
    found = re.search(r"corpus.allow_skipped=([\d.]+);", str(error.value))
    assert found is not None
    assert len(pack(source(picture_folder), settings, float(found[1]))) == 17


@pytest.mark.parametrize(("skipped", "total"), [(1, 3), (29, 100), (57, 100), (1282, 1_281_167), (7, 7)])
def test_a_share_is_rounded_up(skipped: int, total: int, tmp_path: Path) -> None:
    entries, listing = [Skipped(str(i), "broken") for i in range(skipped)], tmp_path / "skipped.jsonl"
    allowed = packing.rounded_up(skipped / total)
    check_skipped("s", entries, total, allowed, listing)
    with pytest.raises(DistillError):
        check_skipped("s", entries, total, allowed * 0.9, listing)


def test_a_mended_image_is_taken_in(picture_folder: Path, settings: PackSettings) -> None:
    whole = (picture_folder / "a/03.png").read_bytes()
    (picture_folder / "a/03.png").write_bytes(whole[:40])
    with pytest.raises(DistillError, match=r"a/03.png"):
        pack(source(picture_folder), settings, 0.0)
    (picture_folder / "a/03.png").write_bytes(whole)
    assert len(pack(source(picture_folder), settings, 0.0)) == 24


def test_an_image_that_became_readable_is_taken_in_though_its_file_looks_as_before(
    picture_folder: Path, settings: PackSettings
) -> None:
    with no_right_to_read("03.png"):
        for _ in range(2):
            with pytest.raises(DistillError, match=r"1 of 24 images .*a/03.png: Permission denied"):
                pack(source(picture_folder), settings, 0.0)
    assert len(pack(source(picture_folder), settings, 0.0)) == 24


def test_a_broken_image_is_all_that_is_tried_again(picture_folder: Path, settings: PackSettings) -> None:
    (picture_folder / "a/03.png").write_bytes(b"not a picture")
    for read in (24, 1):
        assert len(pack(counting(picture_folder), settings, 0.1)) == 23
        assert Counting.read_images == read


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("F", "tiff"), ("I", "tiff")])
def test_images_of_more_than_8_bits_are_not_cut_off(
    mode: str, suffix: str, picture_folder: Path, settings: PackSettings
) -> None:
    ramp = np.arange(0, 65536, 256).reshape(16, 16)
    values = ramp.astype({"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode])
    Image.fromarray(values).save(picture_folder / f"deep.{suffix}")
    with (picture_folder / "manifest.csv").open("a") as file:
        file.write(f"deep.{suffix},train\n")
    with pytest.raises(
        DistillError, match=rf"deep.{suffix}: image: more than 8 bits a channel \(mode {mode}"
    ):
        pack(source(picture_folder), settings, 0.0)


def test_another_folder_is_not_taken_for_one_with_files_of_the_same_names_sizes_and_times(
    tmp_path: Path, settings: PackSettings
) -> None:
    contents = []
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        Image.new("RGB", (8, 8), (100 * number, 0, 0)).save(folder / "0.bmp")
        (folder / "manifest.csv").write_text("path,split\n0.bmp,train\n")
        os.utime(folder / "0.bmp", (0, 0))
        packed = pack(source(folder), settings, 0.0)
        contents.append(int(packed.frames([0]).images[0, 0, 0, 0]))
    assert contents == [0, 100]


def test_duplicates_are_listed_and_stop_the_run(picture_folder: Path, settings: PackSettings) -> None:
    twin = (picture_folder / "a/05.png").read_bytes()
    (picture_folder / "a/11.png").write_bytes(twin)
    packed = pack(source(picture_folder), settings, 0.0)
    with pytest.raises(DistillError, match=r"a/11.png: a duplicate of pictures/a/05.png"):
        Corpus([packed])
    corpus = Corpus([packed], allow_skipped=0.05)
    assert [entry.id for entry in corpus.skipped] == ["pictures/a/11.png"]
    left = {corpus.id(int(i)) for split in (TRAIN, VALIDATION) for i in corpus.indices[split]}
    assert len(left) == 23 and "pictures/a/11.png" not in left


def test_duplicates_are_found_across_sources(picture_folder: Path, settings: PackSettings) -> None:
    both = [pack(source(picture_folder, name), settings, 0.0) for name in ("one", "two")]
    with pytest.raises(DistillError, match=r"24 of 48 images .*two/00.jpg: a duplicate of one/00.jpg"):
        Corpus(both)


def test_duplicates_are_found_though_one_is_stored_as_it_is_and_the_other_squashed(
    tmp_path: Path, settings: PackSettings
) -> None:
    simulator = PushTSource(name="pusht", images=2, validation=0.5)
    frames = [each.image for each in simulator.read(0, 2) if isinstance(each, Frame)]
    lines = ["path,split"]
    for number, image in enumerate(frames):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,train")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    both = [pack(each, replace(settings, image_size=224), 0.0) for each in (simulator, source(tmp_path))]
    assert [each.frames([0]).images.shape[-1] for each in both] == [96, 224]
    with pytest.raises(DistillError, match=r"2 of 4 images .*pictures/0.png: a duplicate of pusht/"):
        Corpus(both)


@pytest.mark.parametrize(("missing", "kept"), [("validation", "train"), ("train", "validation")])
def test_a_split_without_images_is_an_error(
    picture_folder: Path, settings: PackSettings, missing: str, kept: str
) -> None:
    manifest = picture_folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(f",{missing}", f",{kept}"))
    with pytest.raises(DistillError, match=f"no image is in the {missing} split of .'pictures'"):
        Corpus([pack(source(picture_folder), settings, 0.0)])


def test_a_source_without_images_is_an_error(picture_folder: Path, settings: PackSettings) -> None:
    (picture_folder / "manifest.csv").write_text("path,split\n")
    with pytest.raises(DistillError, match="'pictures' has no images"):
        pack(source(picture_folder), settings, 0.0)


# --- a sample of images


@pytest.mark.parametrize("number", [1, 2, 9, 60, 99, 100, 1000])
def test_an_even_sample_is_as_large_as_asked_and_reaches_to_the_end(number: int) -> None:
    indices = np.arange(100) * 3
    sample = evenly(indices, number)
    assert len(sample) == len(set(sample)) == min(number, 100)
    assert set(sample) <= set(indices.tolist()) and sample == sorted(sample)
    if number > 1:
        assert (sample[0], sample[-1]) == (0, 297)
        assert max(np.diff(sample)) - min(np.diff(sample)) <= 3, "in even steps"


# --- the order of images


def test_an_epoch_is_every_training_image_once(picture_folder: Path, settings: PackSettings) -> None:
    corpus = Corpus([pack(source(picture_folder), settings, 0.0)])
    order = Order(corpus.epoch, batch_size=4, seed=0)
    seen = np.concatenate([order.batch(step) for step in range(10)])  # 40 images, two epochs of 20
    assert sorted(seen[:20]) == sorted(seen[20:]) == sorted(corpus.indices[TRAIN])
    assert list(seen[:20]) != list(seen[20:])


def test_batches_reach_across_epochs_and_depend_on_seed_and_step_only() -> None:
    epoch = np.arange(10)
    order = Order(epoch, batch_size=4, seed=3)
    steps = [order.batch(step) for step in range(6)]
    assert sorted(np.concatenate(steps)[:20]) == sorted([*epoch, *epoch])
    assert np.array_equal(Order(epoch, 4, seed=3).batch(5), steps[5])
    assert not np.array_equal(Order(epoch, 4, seed=4).batch(5), steps[5])
    assert len(Order(epoch, 25, seed=0).batch(0)) == 25


def test_a_repeated_source_comes_more_often(picture_folder: Path, settings: PackSettings) -> None:
    corpus = Corpus([pack(source(picture_folder), settings, 0.0)], repeat={"pictures": 3})
    assert len(corpus.epoch) == 60
    assert len(corpus.indices[VALIDATION]) == 4


def test_groups_stay_together_and_splits_are_never_empty() -> None:
    splits = split_by_group(["b", "a", "a", "c"], 0.01, "test")
    assert sorted(splits) == ["a", "b", "c"]
    assert list(splits.values()).count(VALIDATION) == 1
    for share in (0.01, 0.5, 0.99):
        assert set(split_by_group(["a", "b"], share, "test").values()) == {TRAIN, VALIDATION}
    assert split_by_group(["only"], 0.02, "test") == {"only": TRAIN}, "one alone is not divided"
    with pytest.raises(DistillError, match="validation is 1"):
        split_by_group(["a"], 1.0, "test")
