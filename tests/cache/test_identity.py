"""A cache serves exactly the request it was made for; any other is told which field differs, and the command."""

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path

import hydra
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from omegaconf import OmegaConf

from lerobot_theia.cache import CacheDamagedError, CacheError, CacheMismatchError, FeatureCache
from lerobot_theia.cache.catalog import CacheRequest, find_cache, override
from lerobot_theia.cache.identity import CacheIdentity, canonical_json
from lerobot_theia.cache.plan import make_identity
from lerobot_theia.cache.source import FileHashes, describe_source
from lerobot_theia.encoder import EncoderSpec
from lerobot_theia.scripts.configs import config_folder
from lerobot_theia.scripts.precompute import settings_of
from tests.cache.helpers import TOP, WRIST, copy_of, run, shards
from tests.datasets import REPO_ID, make_dataset


def request(dataset: Path, encoder: EncoderSpec, **changes) -> CacheRequest:
    repo_id, revision = changes.pop("repo_id", REPO_ID), changes.pop("revision", None)
    fields = {
        "meta": LeRobotDatasetMetadata(repo_id, root=dataset, revision=revision),
        "cameras": (TOP, WRIST),
        "encoder": encoder,
        "encoder_name": "random-tiny",
    }
    return CacheRequest(**fields | changes)


@pytest.fixture
def root(video_cache: FeatureCache) -> Path:
    return video_cache.path.parents[1]


def test_the_cache_that_fits_is_found_from_its_root_and_from_itself(
    video_dataset: Path, tiny_spec: EncoderSpec, video_cache: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(video_cache, tmp_path)
    for place in (tmp_path / "caches", cache.path.parent, cache.path):
        assert find_cache(place, request(video_dataset, tiny_spec)).path == cache.path


def test_a_renamed_folder_and_a_moved_dataset_are_still_the_same(
    video_dataset: Path, tiny_spec: EncoderSpec, video_cache: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(video_cache, tmp_path)
    renamed = cache.path.rename(cache.path.with_name("mine"))
    dataset = shutil.copytree(video_dataset, tmp_path / "elsewhere")
    spec = dataclasses.replace(tiny_spec, name="my-own-name")
    assert find_cache(tmp_path / "caches", request(dataset, spec)).path == renamed


def test_a_cache_of_more_cameras_serves_fewer(
    video_dataset: Path, tiny_spec: EncoderSpec, root: Path, video_cache: FeatureCache
) -> None:
    found = find_cache(root, request(video_dataset, tiny_spec, cameras=(WRIST,)))
    assert found.path == video_cache.path


def test_files_that_are_not_on_this_machine_are_taken_as_recorded(
    video_dataset: Path, tiny_spec: EncoderSpec, root: Path, tmp_path: Path
) -> None:
    dataset = shutil.copytree(video_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("*.mp4"))
    assert len(find_cache(root, request(dataset, tiny_spec))) == 16


def test_attention_heads_are_in_it_only_where_they_have_not_64_channels(
    video_dataset: Path, tiny_spec: EncoderSpec, tmp_path: Path
) -> None:
    source = describe_source(LeRobotDatasetMetadata(REPO_ID, root=video_dataset), [TOP], FileHashes(tmp_path))
    for heads, said in ((3, {}), (6, {"num_heads": 6})):
        spec = dataclasses.replace(tiny_spec, num_heads=heads)  # of 192 channels
        identity = make_identity(source, spec, dtype="float16", pool=1, compute_dtype="float32")
        written = identity.to_json()
        usual = ("weights_sha256", "hidden_size", "num_layers", "patch_size", "image_size")
        assert written["encoder"] == {name: getattr(tiny_spec, name) for name in usual} | said
        assert CacheIdentity.from_json(written) == identity


class TestTimestamps:
    """Of a video they say which frame is shown; LeRobot's own, i / fps, leave no trace in the identity."""

    def test_regular_ones_leave_the_digest_of_frames_as_it_was_before_it_knew_them(
        self, video_cache: FeatureCache
    ) -> None:
        ends = [(0, 5, 0.0), (5, 12, 0.5), (12, 16, 1.2)]
        file = f"videos/{TOP}/chunk-000/file-000.mp4"
        table = [{"from": start, "to": stop, "file": file, "at": at} for start, stop, at in ends]
        text = canonical_json({"fps": 10, "episodes": table})
        frames = video_cache.manifest.identity.dataset.cameras[TOP].frames
        assert frames == hashlib.sha256(text.encode()).hexdigest()

    def test_others_are_in_it_episode_by_episode(self, video_dataset: Path, tmp_path: Path) -> None:
        dataset = shutil.copytree(video_dataset, tmp_path / "dataset")
        times = np.arange(7, dtype=np.float32) / 10 + np.float32(1e-5)
        set_timestamps(dataset, slice(5, 12), times)
        meta = LeRobotDatasetMetadata(REPO_ID, root=dataset)
        digest = hashlib.sha256(times.astype("<f4").tobytes()).hexdigest()
        table = describe_source(meta, [TOP], FileHashes(tmp_path)).tables[TOP]
        assert [row.get("times") for row in table] == [None, digest, None]

    def test_those_of_episodes_that_are_not_here_are_not_asked_for(
        self, video_dataset: Path, tiny_spec: EncoderSpec, root: Path, tmp_path: Path
    ) -> None:
        dataset = shutil.copytree(video_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("data"))
        assert len(find_cache(root, request(dataset, tiny_spec))) == 16

    def test_but_precompute_needs_them_all(self, video_dataset: Path, tmp_path: Path) -> None:
        dataset = shutil.copytree(video_dataset, tmp_path / "dataset", ignore=shutil.ignore_patterns("data"))
        with pytest.raises(CacheError, match=r"is not whole: .*file-000\.parquet is missing"):
            run(dataset, tmp_path / "caches")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [("cut", "cannot be read"), ("shorter", "holds 9 rows, and meta/episodes says 16")],
    )
    def test_a_damaged_data_file_is_named(
        self, video_dataset: Path, tmp_path: Path, damage: str, message: str
    ) -> None:
        dataset = shutil.copytree(video_dataset, tmp_path / "dataset")
        [path] = dataset.glob("data/*/*.parquet")
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:100])
        else:
            pq.write_table(pq.read_table(path).slice(0, 9), path)
        with pytest.raises(CacheError, match=rf"file-000\.parquet {message}"):
            run(dataset, tmp_path / "caches")


def set_timestamps(dataset: Path, rows: slice, times: np.ndarray) -> None:
    [path] = dataset.glob("data/*/*.parquet")
    table = pq.read_table(path)
    values = table.column("timestamp").to_numpy().copy()
    values[rows] = times
    place, field = table.schema.get_field_index("timestamp"), table.schema.field("timestamp")
    pq.write_table(table.set_column(place, field, pa.array(values)), path)


def test_a_damaged_cache_does_not_hide_a_whole_one(
    video_dataset: Path, tiny_spec: EncoderSpec, tmp_path: Path
) -> None:
    precise, _ = run(video_dataset, tmp_path, dtype="float32", pool=14)
    whole, _ = run(video_dataset, tmp_path, dtype="float16", pool=14)
    asked = request(video_dataset, tiny_spec, pool=14)
    assert find_cache(tmp_path, asked).path == precise.path
    shards(precise.path)[0].unlink()
    assert find_cache(tmp_path, asked).path == whole.path
    shards(whole.path)[0].unlink()
    with pytest.raises(CacheDamagedError, match=str(precise.path)):
        find_cache(tmp_path, asked)


def test_an_unfinished_cache_is_pointed_out(
    video_dataset: Path, tiny_spec: EncoderSpec, video_cache: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(video_cache, tmp_path)
    (cache.path / "manifest.json").unlink()
    with pytest.raises(CacheMismatchError, match=f"not finished: {cache.path}"):
        find_cache(tmp_path / "caches", request(video_dataset, tiny_spec))


def test_the_command_carries_a_tolerance_that_is_not_lerobots(
    video_dataset: Path, tiny_spec: EncoderSpec, tmp_path: Path
) -> None:
    assert "tolerance_s" not in request(video_dataset, tiny_spec).command(tmp_path)
    asked = request(video_dataset, tiny_spec, tolerance_s=0.001)
    assert "tolerance_s=0.001" in shlex.split(asked.command(tmp_path))


class TestMismatch:
    def refused(self, root: Path, asked: CacheRequest, field: str, wanted: object, found: object) -> str:
        with pytest.raises(CacheMismatchError) as error:
            find_cache(root, asked)
        message = str(error.value)
        assert f"  {field}: wanted {wanted!r}, it has {found!r}" in message
        assert "Make it with\n  lerobot-theia-precompute " in message
        return message

    def test_repo_id(self, video_dataset: Path, tiny_spec: EncoderSpec, root: Path) -> None:
        asked = request(video_dataset, tiny_spec, repo_id="me/other")
        self.refused(root, asked, "dataset.repo_id", "me/other", REPO_ID)

    def test_revision(self, video_dataset: Path, tiny_spec: EncoderSpec, root: Path) -> None:
        asked = request(video_dataset, tiny_spec, revision="main")
        message = self.refused(root, asked, "dataset.revision", "main", "v3.0")
        assert """ 'dataset.revision="main"'""" in message

    def test_encoder(self, video_dataset: Path, tiny_spec: EncoderSpec, root: Path) -> None:
        asked = request(video_dataset, dataclasses.replace(tiny_spec, weights_sha256="0" * 64))
        self.refused(root, asked, "encoder.weights_sha256", "0" * 64, tiny_spec.weights_sha256)

    def test_pool(self, video_dataset: Path, tiny_spec: EncoderSpec, root: Path) -> None:
        message = self.refused(root, request(video_dataset, tiny_spec, pool=2), "tokens.pool", 2, 1)
        assert "tokens.grid: wanted 7, it has 14" in message and " pool=2" in message

    def test_dtype(self, video_dataset: Path, tiny_spec: EncoderSpec, root: Path) -> None:
        asked = request(video_dataset, tiny_spec, dtype="int8")
        assert " dtype=int8" in self.refused(root, asked, "tokens.dtype", "int8", "float16")

    def test_cameras(self, video_dataset: Path, tiny_spec: EncoderSpec, tmp_path: Path) -> None:
        run(video_dataset, tmp_path, cameras=(WRIST,), pool=7)
        asked = request(video_dataset, tiny_spec, pool=7)
        self.refused(tmp_path, asked, "dataset.cameras", [TOP, WRIST], [WRIST])

    def test_an_episode_more(self, tiny_spec: EncoderSpec, root: Path, tmp_path: Path) -> None:
        longer = make_dataset(tmp_path / "longer", episodes=(5, 7, 4, 3))
        message = self.refused(root, request(longer, tiny_spec), "dataset.num_frames", 19, 16)
        assert "dataset.num_episodes: wanted 4, it has 3" in message

    def test_changed_pixels_of_the_same_frames(
        self, tiny_spec: EncoderSpec, root: Path, video_cache: FeatureCache, tmp_path: Path
    ) -> None:
        again = make_dataset(tmp_path / "again", seed=1)
        with pytest.raises(CacheMismatchError) as error:
            find_cache(root, request(again, tiny_spec))
        content = video_cache.manifest.identity.dataset.cameras[TOP].content
        assert f"dataset.cameras.{TOP}.content: wanted '" in str(error.value)
        assert f"it has '{content}'" in str(error.value)

    def test_one_changed_byte_of_a_video(
        self, video_dataset: Path, tiny_spec: EncoderSpec, root: Path, tmp_path: Path
    ) -> None:
        dataset = shutil.copytree(video_dataset, tmp_path / "dataset")
        [path] = dataset.glob(f"videos/{WRIST}/*/*.mp4")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert len(find_cache(root, request(dataset, tiny_spec, cameras=(TOP,)))) == 16
        with pytest.raises(CacheMismatchError, match=rf"dataset\.cameras\.{WRIST}\.content: wanted"):
            find_cache(root, request(dataset, tiny_spec))

    def test_no_cache_at_all(self, video_dataset: Path, tiny_spec: EncoderSpec, tmp_path: Path) -> None:
        with pytest.raises(CacheMismatchError, match=rf"no feature cache under {tmp_path} fits") as error:
            find_cache(tmp_path, request(video_dataset, tiny_spec))
        assert "nearest" not in str(error.value)

    def test_the_nearest_is_the_one_that_is_told_of(
        self, video_dataset: Path, tiny_spec: EncoderSpec, video_cache: FeatureCache, tmp_path: Path
    ) -> None:
        cache = copy_of(video_cache, tmp_path)
        run(video_dataset, tmp_path / "caches", repo_id="me/other", pool=7)
        asked = request(video_dataset, tiny_spec, pool=14)
        message = self.refused(tmp_path / "caches", asked, "tokens.pool", 14, 1)
        assert f"the nearest, {cache.path}, differs" in message


def test_of_several_the_most_precise_is_taken_unless_one_is_named(
    video_dataset: Path, tiny_spec: EncoderSpec, tmp_path: Path
) -> None:
    for dtype in ("int8", "float16", "float32"):
        run(video_dataset, tmp_path, dtype=dtype, pool=14, cameras=(TOP,))
    asked = request(video_dataset, tiny_spec, pool=14, cameras=(TOP,))
    assert find_cache(tmp_path, asked).manifest.identity.tokens.dtype == "float32"
    asked = dataclasses.replace(asked, dtype="int8")
    assert find_cache(tmp_path, asked).manifest.identity.tokens.dtype == "int8"


def test_a_damaged_fitting_cache_is_an_error_and_not_passed_over(
    video_dataset: Path, tiny_spec: EncoderSpec, video_cache: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(video_cache, tmp_path)
    (cache.path / TOP / "000001.safetensors").unlink()
    with pytest.raises(CacheDamagedError, match=r"000001\.safetensors is missing"):
        find_cache(tmp_path / "caches", request(video_dataset, tiny_spec))


def test_an_unreadable_manifest_is_told_of(
    video_dataset: Path, tiny_spec: EncoderSpec, video_cache: FeatureCache, tmp_path: Path
) -> None:
    cache = copy_of(video_cache, tmp_path)
    (cache.path / "manifest.json").write_text("{")
    with pytest.raises(CacheMismatchError, match=r"passed over: .*manifest\.json is not a readable manifest"):
        find_cache(tmp_path / "caches", request(video_dataset, tiny_spec))


@pytest.mark.parametrize("content", ["", "[]", '{"/x": 1}', "[" * 100_000, "known sizes only", "no string"])
def test_remembered_hashes_are_no_authority(
    video_dataset: Path, tiny_spec: EncoderSpec, video_cache: FeatureCache, tmp_path: Path, content: str
) -> None:
    cache = copy_of(video_cache, tmp_path)
    remembered = tmp_path / "caches" / ".hashes.json"
    known = json.loads(remembered.read_text())
    assert all(os.path.isabs(path) for path in known)
    if content == "known sizes only":
        content = json.dumps({path: entry[:2] for path, entry in known.items()})
    if content == "no string":
        content = json.dumps({path: [*entry[:2], None] for path, entry in known.items()})
    remembered.write_text(content)
    assert find_cache(tmp_path / "caches", request(video_dataset, tiny_spec)).path == cache.path


def test_the_command_it_names_asks_for_just_this(video_dataset: Path, tiny_spec: EncoderSpec) -> None:
    """Also where Hydra would read a number, null, or a piece of its grammar."""
    asked = request(
        video_dataset, tiny_spec, revision="1.10", encoder_name="~/1e5", encoder_revision="null", cameras=(TOP,)
    )  # fmt: skip
    words = shlex.split(asked.command(Path("2026_01")))[1:]
    with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
        fields = settings_of(hydra.compose("precompute", words))
    assert fields["repo_id"] == REPO_ID and fields["root"] == str(video_dataset)
    assert (fields["revision"], fields["cameras"]) == ("1.10", (TOP,))
    assert (fields["encoder"], fields["encoder_revision"]) == ("~/1e5", "null")
    assert fields["cache_root"] == "2026_01"


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet="ab1.e-_/~+ \\\"'${}[](),:=", max_size=12))
@example("true")
@example("${x}")
@example("\\\\${x}\\")
def test_any_text_in_a_command_is_read_as_it_was_meant(text: str) -> None:
    read = OverridesParser.create().parse_override(override("key", text)).value()
    assert OmegaConf.create({"key": read})["key"] == text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "with a space, 'quotes' and =signs"])
def test_the_command_it_names_makes_the_cache_it_asks_for(
    tiny_spec: EncoderSpec, tmp_path: Path, name: str
) -> None:
    dataset = make_dataset(tmp_path / name / "dataset", episodes=(2,))
    asked = request(dataset, tiny_spec, pool=7, cameras=(WRIST,), revision="main", dtype="int8")
    root = tmp_path / name / "caches"
    with pytest.raises(CacheMismatchError) as error:
        find_cache(root, asked)
    command = str(error.value).splitlines()[-1]
    from tests.cache.test_commands import run_command

    done = run_command(*shlex.split(command), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert find_cache(root, asked).cameras == [WRIST]
