"""Where images come from: what each kind of source reads, and what it refuses."""

import importlib.abc
import io
import math
import shutil
import sys
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lerobot_theia.distill.errors import DistillError, UnreadableError
from lerobot_theia.distill.frames import VALIDATION, Frame
from lerobot_theia.distill.settings import make_source
from lerobot_theia.distill.sources.folder import FolderSource
from lerobot_theia.distill.sources.interface import Source
from lerobot_theia.distill.sources.lerobot import LeRobotSource
from lerobot_theia.distill.sources.mujoco import import_mujoco
from lerobot_theia.distill.sources.video import EARLY_S, VideoSource
from lerobot_theia.distill.sources.webdataset import WebdatasetSource, expand
from tests.datasets import REPO_ID, open_dataset


def read(source: Source) -> list[Frame]:
    frames = list(source.read(0, len(source.items())))
    assert all(isinstance(frame, Frame) for frame in frames), frames
    return frames  # type: ignore[return-value]


# --- folder


def test_a_folder_gives_what_its_manifest_lists(picture_folder: Path) -> None:
    source = FolderSource(name="p", path=picture_folder, license="cc0-1.0")
    items = source.items()
    assert [items[0].id, items[1].id, items[0].split] == ["00.jpg", "a/01.png", VALIDATION]
    assert [frame.image.shape for frame in read(source)[:2]] == [(20, 30, 3), (21, 30, 3)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../secret.png,train", "line 26 .*must be inside"),
        ("/etc/passwd,train", "line 26 .*must be inside"),
        ("x.png,test", "line 26 .*split 'test' must be one of train, validation"),
        (",train", "line 26 .*path ''"),
    ],
)
def test_bad_lines_are_named(picture_folder: Path, line: str, message: str) -> None:
    with (picture_folder / "manifest.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DistillError, match=message):
        FolderSource(name="p", path=picture_folder, license="cc0-1.0").items()


def test_a_manifest_needs_its_columns(picture_folder: Path) -> None:
    (picture_folder / "manifest.csv").write_text("file,split\nx.png,train\n")
    with pytest.raises(DistillError, match="has no column path"):
        FolderSource(name="p", path=picture_folder, license="cc0-1.0").items()
    with pytest.raises(DistillError, match=r"there is no manifest .*its first line `path,split`"):
        FolderSource(name="p", path=picture_folder, manifest="none.csv", license="cc0-1.0").items()


def test_a_licence_must_be_stated(picture_folder: Path) -> None:
    with pytest.raises(DistillError, match=r"source 'p' has no licence: .*`license: unknown`"):
        make_source("p", {"type": "folder", "path": str(picture_folder)})


def test_settings_are_checked_by_name_and_type(picture_folder: Path) -> None:
    values = {"type": "folder", "path": str(picture_folder), "license": "unknown"}
    assert make_source("p", values).name == "p"
    with pytest.raises(DistillError, match=r"unknown setting corpus.sources.p.licence; did you mean license"):
        make_source("p", {**values, "licence": "mit"})
    with pytest.raises(DistillError, match=r"corpus.sources.p.type is 'zip', must be one of folder,"):
        make_source("p", {"type": "zip"})
    with pytest.raises(DistillError, match=r"corpus.sources.p.images is '9', expected int"):
        make_source("p", {"type": "pusht", "images": "9"})


# --- webdataset


def write_tar(path: Path, samples: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_webdataset_shards(tmp_path: Path) -> None:
    for shard in range(3):
        samples = {f"{i:03d}.png": png(10 * shard + i) for i in range(4)}
        write_tar(tmp_path / f"train-{shard:02d}.tar", {**samples, "000.json": b"{}", "000.cls": b"1"})
    source = WebdatasetSource(
        name="w", train=f"{tmp_path}/train-{{00..02}}.tar", validation=0.1, license="cc0-1.0"
    )
    ids = [item.id for item in source.items()]
    assert len(ids) == 12 and ids[:2] == ["train-00.tar/000", "train-00.tar/001"]
    assert [int(frame.image[0, 0, 0]) for frame in read(source)] == [
        0,
        1,
        2,
        3,
        10,
        11,
        12,
        13,
        20,
        21,
        22,
        23,
    ]
    held_out = {item.id.split("/")[0] for item in source.items() if item.split == VALIDATION}
    assert len(held_out) == 1, "a whole shard"
    by_name = WebdatasetSource(
        name="w",
        train=f"{tmp_path}/train-0[01].tar",
        validation=f"{tmp_path}/train-02.tar",
        license="cc0-1.0",
    )
    assert [item.split for item in by_name.items()].count(VALIDATION) == 4


def test_no_image_of_a_shard_is_left_out_in_silence(tmp_path: Path) -> None:
    names = ("000.rgb.png", "._000.rgb.png", "000.mask.png", "001.rgb.PNG", "001.json", "002.rgb.png")
    write_tar(tmp_path / "a.tar", {name: png(number) for number, name in enumerate(names)})

    def ids(**settings: tuple[str, ...]) -> list[str]:
        source = WebdatasetSource(
            name="w", train=f"{tmp_path}/a.tar", validation=0.0, license="mit", **settings
        )
        return [item.id for item in source.items()]

    with pytest.raises(
        DistillError, match=r"000.rgb.png.* extension 'rgb.png' is none of jpg, .* to `extensions`"
    ):
        ids()
    with pytest.raises(DistillError, match=r"000.mask.png.* to `ignore` if not"):
        ids(extensions=("rgb.png",))
    assert ids(extensions=("rgb.png",), ignore=("m*.png",)) == ids(
        extensions=("rgb.png",), ignore=("mask.png",)
    )
    assert ids(extensions=("rgb.png",), ignore=("mask.png",)) == ["a.tar/000", "a.tar/001", "a.tar/002"]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_a_shard_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, link in (("0.png", ""), ("1.png", "0.png")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = (kind, link) if link else (tarfile.REGTYPE, "")
            entry.size = 0 if link else len(png(0))
            tar.addfile(entry, None if link else io.BytesIO(png(0)))
    source = WebdatasetSource(name="w", train=f"{tmp_path}/a.tar", validation=0.0, license="mit")
    with pytest.raises(DistillError, match=r"1.png in .*a.tar is a link to '0.png' .* --hard-dereference"):
        source.items()


def test_shards_of_one_name_in_several_folders(tmp_path: Path) -> None:
    for number, folder in enumerate(("p", "q")):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "00.tar", {"0.png": png(number)})
    source = WebdatasetSource(name="w", train=f"{tmp_path}/{{p,q}}/00.tar", validation=0.5, license="mit")
    assert [item.id for item in source.items()] == ["p/00.tar/0", "q/00.tar/0"]
    assert sorted(item.split for item in source.items()) == ["train", "validation"]


def test_webdataset_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": png(1)})
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)

    def source(train: str, validation: str | float = 0.0) -> WebdatasetSource:
        return WebdatasetSource(
            name="w", train=str(tmp_path / train), validation=validation, license="cc0-1.0"
        )

    with pytest.raises(DistillError, match=r"b.tar is no readable, uncompressed tar"):
        source("*.tar").items()
    with pytest.raises(DistillError, match=r"no shard .*c.tar"):
        source("c.tar").items()
    with pytest.raises(DistillError, match="both in train and in validation"):
        source("a.tar", str(tmp_path / "a.tar")).items()


@pytest.mark.parametrize("damage", ["header", "cut before a header", "cut in a header", "no end"])
def test_a_shard_that_lost_members_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {f"{i}.png": png(i) for i in range(4)})
    with tarfile.open(path) as tar:
        third, end = tar.getmembers()[2].offset, tar.offset
    data = path.read_bytes()
    path.write_bytes(
        {
            "header": data[: third + 5] + b"?" + data[third + 6 :],
            "cut before a header": data[:third],
            "cut in a header": data[: third + 100],
            "no end": data[:end],
        }[damage]
    )
    source = WebdatasetSource(name="w", train=str(path), validation=0.0, license="cc0-1.0")
    at = end if damage == "no end" else third
    with pytest.raises(DistillError, match=f"a.tar is no readable.*damaged at byte {at:,}"):
        source.items()


def test_brace_patterns() -> None:
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]


# --- video


def write_video(
    path: Path,
    frames: int,
    fps: int | Fraction = 10,
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
) -> None:
    """Frame i is grey of level 10 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 4
        stream.options = options or {}
        for i in range(frames):
            picture = np.full((48, 64, 3), 10 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_no_video_of_a_folder_is_left_out_in_silence(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.m4v", "c.MP4", "d.mpg"):
        write_video(tmp_path / "videos.mp4", 20)
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "videos.mp4").rename(tmp_path / "all" / name)
    (tmp_path / "all" / "notes.txt").write_text("")
    source = VideoSource(name="v", path=tmp_path / "all", license="cc-by-4.0")
    assert [item.id for item in source.items() if item.id.endswith("@000000")] == [
        "a.mp4@000000", "b.m4v@000000", "c.MP4@000000", "d.mpg@000000",
    ]  # fmt: skip
    (tmp_path / "all" / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DistillError, match=r"all/more is a link to a folder, which is not followed"):
        VideoSource(name="v", path=tmp_path / "all", license="cc-by-4.0").items()


def test_videos_are_subsampled(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_video(tmp_path / "a.mp4", frames=20)
    write_video(tmp_path / "sub" / "b.mp4", frames=6)
    source = VideoSource(name="v", path=tmp_path, fps=2.5, validation=0.5, license="cc0-1.0")
    ids = [item.id for item in source.items()]
    assert ids == [*(f"a.mp4@{k:06d}" for k in range(5)), *(f"sub/b.mp4@{k:06d}" for k in range(2))]
    levels = [round(float(frame.image.mean()) / 10) for frame in read(source)]
    assert levels == [0, 4, 8, 12, 16, 0, 4]
    middle = [frame for frame in source.read(3, 6) if isinstance(frame, Frame)]
    assert [round(float(frame.image.mean()) / 10) for frame in middle] == [12, 16, 0]
    assert len({item.split for item in source.items() if item.id.startswith("a.mp4")}) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25)])
@pytest.mark.parametrize("frames", [10, 24, 25])
def test_every_sample_of_a_whole_video_is_there(
    name: str, rate: Fraction, frames: int, tmp_path: Path
) -> None:
    write_video(tmp_path / name, frames, rate)
    source = VideoSource(name="v", path=tmp_path, fps=8, validation=0.0, license="cc0-1.0")
    found = read(source)
    lasts, rounding = float(frames / rate), 2 * EARLY_S
    assert math.ceil((lasts - rounding) * 8) <= len(found) <= math.ceil((lasts + rounding) * 8)
    for k, frame in enumerate(found):
        shown = round(float(frame.image.mean()) / 10)
        assert shown / rate - rounding <= k / 8 < (shown + 1) / rate + rounding, f"sample {k}: frame {shown}"


@pytest.mark.parametrize("rate", [15, 30, Fraction(30000, 1001), Fraction(24000, 1001)])
def test_all_frames_of_a_video_are_taken_once(rate: int | Fraction, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 23, rate)
    source = VideoSource(name="v", path=tmp_path, fps=float(rate), validation=0.0, license="cc0-1.0")
    assert [round(float(frame.image.mean()) / 10) for frame in read(source)] == list(range(23))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", "x264-params=open-gop=1:keyint=6:scenecut=0:bframes=3:b-adapt=0"),
        ("a.mp4", "libx265", "x265-params=log-level=none:open-gop=1:keyint=6:bframes=4"),
        ("a.mkv", "libx264", "x264-params=open-gop=1:keyint=6:scenecut=0:bframes=3:b-adapt=0"),
        ("a.mp4", "mpeg4", ""),
    ],
)
def test_a_sample_is_the_same_frame_wherever_reading_begins(
    name: str, codec: str, options: str, tmp_path: Path
) -> None:
    given = dict([options.split("=", 1)]) if options else {}
    write_video(tmp_path / name, 24, codec=codec, options=given)
    source = VideoSource(name="v", path=tmp_path, fps=5, validation=0.0, license="cc0-1.0")
    for k in range(len(source.items())):
        (frame,) = source.read(k, k + 1)
        assert isinstance(frame, Frame)
        assert round(float(frame.image.mean()) / 10) == 2 * k


def test_frames_are_not_taken_twice(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=5)
    with pytest.raises(DistillError, match=r"fps is 20, but .*a.mp4 has 10 frames per second.*lower fps"):
        VideoSource(name="v", path=tmp_path, fps=20, license="cc0-1.0").items()


def test_a_video_that_breaks_off_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"  # a form that can be read as far as it goes
    write_video(path, frames=20)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    source = VideoSource(name="v", path=tmp_path, fps=5, validation=0.0, license="cc0-1.0")
    count = len(source.items())
    assert count == 10, "as its header says"
    results = list(source.read(0, count))
    assert len(results) == count
    assert isinstance(results[0], Frame) and isinstance(results[-1], UnreadableError)


def test_a_video_that_is_damaged_in_the_middle_loses_what_is_damaged_only(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, 24, codec="libx264", options={"x264-params": "keyint=6:scenecut=0:bframes=0"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        begin = packets[7].pos
    data = bytearray(path.read_bytes())
    data[begin + 4 : begin + 12] = b"\xff" * 8
    path.write_bytes(data)
    source = VideoSource(name="v", path=tmp_path, fps=10, validation=0.0, license="cc0-1.0")
    count = len(source.items())
    together = list(source.read(0, count))
    alone = [next(iter(source.read(k, k + 1))) for k in range(count)]
    assert [type(each) for each in together] == [type(each) for each in alone]
    lost = [k for k, each in enumerate(together) if isinstance(each, UnreadableError)]
    assert lost and set(lost) <= set(range(6, 12)), "its key frame's stretch at most"


def test_what_is_no_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(DistillError, match=r"a.mp4 is no readable video"):
        VideoSource(name="v", path=tmp_path, license="cc0-1.0").items()


# --- LeRobotDataset


def test_a_dataset_that_cannot_be_opened_is_named(video_dataset: Path, tmp_path: Path) -> None:
    def source(root: Path) -> LeRobotSource:
        return LeRobotSource(name="d", repo_id=REPO_ID, root=root, license="cc-by-4.0")

    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "notes.txt").touch()
    with pytest.raises(DistillError, match=f"'d': {tmp_path}/nowhere is no LeRobotDataset: .*info.json"):
        source(tmp_path / "nowhere").items()
    with pytest.raises(DistillError, match=f"'d': LeRobot cannot open {REPO_ID} in {tmp_path}/not-yet "):
        source(tmp_path / "not-yet").items()
    shutil.copytree(video_dataset, tmp_path / "copy")
    info = tmp_path / "copy" / "meta" / "info.json"
    info.write_text(info.read_text().replace('"v3.0"', '"v2.1"'))
    with pytest.raises(DistillError, match=f"'d': LeRobot cannot open {REPO_ID} in {tmp_path}/copy "):
        source(tmp_path / "copy").items()


def test_a_decoder_that_is_missing_blames_no_image(
    video_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = LeRobotSource(name="d", repo_id=REPO_ID, root=video_dataset, license="cc-by-4.0")

    def no_decoder(*_: object) -> None:
        raise ImportError("no codec")

    monkeypatch.setattr(type(source._dataset), "__getitem__", no_decoder)
    with pytest.raises(DistillError, match="cannot be decoded on this machine: ImportError: no codec"):
        list(source.read(0, 1))


@pytest.mark.parametrize("kind", ["video_dataset", "image_dataset"])
def test_cameras_of_a_dataset(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    source = LeRobotSource(name="d", repo_id=REPO_ID, root=root, every=3, validation=0.3, license="cc-by-4.0")
    ids = [item.id for item in source.items()]
    # Episodes of 5, 7 and 4 frames, two cameras.
    assert len(ids) == 2 * (2 + 3 + 2)
    assert ids[:3] == [
        "observation.images.top/000000/000000",
        "observation.images.wrist/000000/000000",
        "observation.images.top/000000/000003",
    ]
    frames = read(source)
    assert [frame.image.shape for frame in frames[:2]] == [(48, 64, 3), (32, 32, 3)]
    expected = open_dataset(root)[3]["observation.images.top"].numpy()
    expected = expected if expected.dtype == np.uint8 else (expected * 255).round().astype(np.uint8)
    assert np.array_equal(frames[2].image, expected.transpose(1, 2, 0))
    assert len({item.id.split("/")[1] for item in source.items() if item.split == VALIDATION}) == 1


def test_one_camera_of_a_dataset(video_dataset: Path) -> None:
    settings = {"name": "d", "repo_id": REPO_ID, "root": video_dataset, "license": "mit", "every": 100}
    source = LeRobotSource(**settings, cameras=("observation.images.wrist",))
    assert source.shape == (32, 32)
    assert len(source.items()) == 3
    assert LeRobotSource(**settings).shape is None


# --- simulators


def test_a_simulator_that_cannot_render_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGraphics(importlib.abc.MetaPathFinder):
        """MuJoCo looks for the graphics library when it is imported."""

        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "mujoco":
                raise RuntimeError("invalid value for environment variable MUJOCO_GL: nonsense")

    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoGraphics(), *sys.meta_path])
    with pytest.raises(DistillError, match=r"cannot render here .*nonsense.*MUJOCO_GL=egl with a GPU"):
        import_mujoco()


def test_a_simulator_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot_theia.distill.sources import pusht

    pusht._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(DistillError, match=r"pip install 'lerobot_policy_theia\[pusht\]'"):
        next(pusht.PushTSource(images=1).read(0, 1))
    pusht._environment.cache_clear()


@pytest.mark.parametrize("kind", ["metaworld", "aloha"])
def test_seeds_of_evaluations_are_refused(kind: str) -> None:
    with pytest.raises(DistillError, match="seeds 99990 to 100009 are not all below 100000"):
        make_source(kind, {"type": kind, "seed": 99_990, "episodes": 20})
