"""Caches that are shared, read-only, moved, copied, or reached through links; and links that lead astray."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

from lerobot_theia.cache import CacheDamagedError, CacheError, FeatureCache
from lerobot_theia.cache.catalog import CacheRequest, find_cache
from lerobot_theia.cache.claim import owner
from lerobot_theia.cache.precompute import precompute
from lerobot_theia.encoder import TheiaEncoder
from lerobot_theia.scripts import cache as cache_command
from tests.datasets import REPO_ID
from tests.faults import children, places
from tests.faults.children import Tell
from tests.faults.workshop import TOP, WRIST, Job, Whole, files_under, made, run, sha256, state, tokens_of

pytestmark = pytest.mark.faults


@pytest.fixture
def copy(whole: Whole, tmp_path: Path) -> Path:
    """A copy of the whole cache under a root of its own."""
    return whole.at(shutil.copytree(whole.root, tmp_path / "copy"))


def request(job: Job) -> CacheRequest:
    """What training asks for."""
    encoder = TheiaEncoder.from_pretrained(job.encoder, translators=False)
    meta = LeRobotDatasetMetadata(REPO_ID, root=job.dataset)
    return CacheRequest(meta=meta, cameras=(TOP, WRIST), encoder=encoder.spec, encoder_name=str(job.encoder))


def same_tokens(one: FeatureCache, other: FeatureCache) -> bool:
    found, wanted = tokens_of(one), tokens_of(other)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


# --- read-only places


def use_read_only(
    tell: Tell, job: Job, cache: Path, make_read_only: Callable[[Path], None]
) -> dict[str, object] | None:
    """For children: all that can be done with a cache that cannot be changed. None if that cannot be set up."""
    asked = request(job)
    try:
        make_read_only(cache.parents[1])
    except PermissionError:
        return None
    opened = FeatureCache.open(cache)
    told: dict[str, object] = {
        "gathered": len(opened.gather(TOP, [0, 15])),
        "verified": opened.verify(),
        "found": find_cache(cache.parents[1], asked).path == cache,
        "found by its own path": find_cache(cache, asked).path == cache,
    }
    for name, changes in {"same": {}, "other": {"pool": 14}}.items():
        try:
            precompute(job.settings(cache.parents[1], **changes))
        except CacheError as error:
            told[name] = str(error)
    return told


def as_stranger(root: Path) -> None:
    places.stranger(root.parent / "scratch")


def check_read_only(told: dict[str, object], cache: Path) -> None:
    assert told["gathered"] == 2 and told["verified"] == []
    assert told["found"] and told["found by its own path"]
    for name in ("same", "other"):
        said = str(told[name])
        assert said.startswith(f"cannot write to {cache.parent}")
        assert "cache_root=" in said and "LEROBOT_THEIA_CACHE" in said


def test_a_cache_on_a_read_only_file_system_serves_and_says_why_it_cannot_be_changed(
    whole: Whole, copy: Path
) -> None:
    before = state(copy.parents[1])
    outcome = children.run(use_read_only, whole.job, copy, places.read_only)
    if outcome.status == 0 and outcome.value is None:
        pytest.skip("this user may not mount a file system")
    assert outcome.value, outcome.details
    check_read_only(outcome.value, copy)
    assert state(copy.parents[1]) == before


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="theia-faults-"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


def test_a_shared_cache_of_another_user_serves_and_says_why_it_cannot_be_changed(
    whole: Whole, open_to_all: Path
) -> None:
    dataset, encoder = (
        shutil.copytree(each, open_to_all / each.name) for each in (whole.job.dataset, whole.job.encoder)
    )
    root = shutil.copytree(whole.root, open_to_all / "caches")
    (root / ".hashes.json").unlink()  # the stranger cannot make it, either
    subprocess.run(["chmod", "-R", "a+rX,go-w", str(open_to_all)], check=True)
    if os.geteuid() != 0:
        subprocess.run(["chmod", "-R", "a-w", str(root)], check=True)
    before = state(root)
    outcome = children.run(use_read_only, Job(dataset, encoder), whole.at(root), as_stranger)
    assert outcome.value, outcome.details
    check_read_only(outcome.value, whole.at(root))
    assert state(root) == before


def command_on_read_only(tell: Tell, root: Path, *words: str) -> str | None:
    """For children: what `lerobot-theia-cache` ends with. None if a read-only place cannot be set up."""
    try:
        places.read_only(root)
    except PermissionError:
        return None
    sys.argv = ["lerobot-theia-cache", *words]
    try:
        cache_command.main()
    except SystemExit as end:
        return str(end.code)
    return "went on"


@pytest.mark.parametrize("words", [["rm", "-y"], ["verify", "--repair"]], ids=["rm", "repair"])
def test_commands_say_why_they_cannot_change_a_read_only_cache(
    whole: Whole, copy: Path, words: list[str]
) -> None:
    victim = copy / TOP / "000000.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    before = state(copy.parents[1])
    if "--repair" in words:
        words = [*words, f"--dataset-root={whole.job.dataset}", f"--encoder={whole.job.encoder}"]
    outcome = children.run(command_on_read_only, copy.parents[1], *words, str(copy))
    if outcome.status == 0 and outcome.value is None:
        pytest.skip("this user may not mount a file system")
    assert outcome.value.startswith("lerobot-theia-cache: cannot write to /"), outcome
    assert "Read-only file system" in outcome.value
    assert state(copy.parents[1]) == before


# --- moved, copied, linked


def test_a_cache_copied_elsewhere_opens_and_is_found(whole: Whole, copy: Path) -> None:
    assert same_tokens(FeatureCache.open(copy), FeatureCache.open(whole.path))
    assert find_cache(copy.parents[1], request(whole.job)).path == copy


def test_a_cache_moved_and_renamed_opens_and_is_found(whole: Whole, copy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "my tokens"
    moved.parent.mkdir()
    copy.rename(moved)
    assert same_tokens(FeatureCache.open(moved), FeatureCache.open(whole.path))
    assert find_cache(tmp_path / "elsewhere", request(whole.job)).path == moved
    assert find_cache(moved, request(whole.job)).path == moved


def test_an_open_cache_goes_on_serving_while_it_is_moved(whole: Whole, copy: Path) -> None:
    """What is mapped stays mapped; what is not mapped yet is missing, and said to be."""
    opened = FeatureCache.open(copy)
    first = opened.gather(TOP, [0])
    copy.rename(copy.with_name("moved"))
    assert torch.equal(opened.gather(TOP, [0]), first)
    with pytest.raises(CacheDamagedError, match=r"000002\.safetensors is missing"):
        opened.gather(TOP, [15])


@pytest.mark.parametrize("linked", ["root", "dataset folder", "cache"])
def test_links_above_a_cache_are_followed(whole: Whole, copy: Path, tmp_path: Path, linked: str) -> None:
    original = {"root": copy.parents[1], "dataset folder": copy.parent, "cache": copy}[linked]
    real = tmp_path / "real"
    original.rename(real)
    original.symlink_to(real)
    assert same_tokens(FeatureCache.open(copy), FeatureCache.open(whole.path))
    assert find_cache(tmp_path / "copy", request(whole.job)).path == copy
    assert made(run(whole.job, tmp_path / "copy")).report.up_to_date


def test_links_that_stay_inside_a_cache_are_followed(copy: Path) -> None:
    (copy / TOP / "000001.safetensors").rename(copy / TOP / "kept")
    (copy / TOP / "000001.safetensors").symlink_to("kept")
    assert FeatureCache.open(copy).verify() == []


def test_a_snapshot_in_the_hubs_local_cache_is_read_through_its_links(whole: Whole, tmp_path: Path) -> None:
    """huggingface_hub keeps contents in blobs/ and makes snapshots/<commit>/ of links to them."""
    home = tmp_path / "datasets--me--tokens"
    snapshot, blobs = home / "snapshots" / "0123abc", home / "blobs"
    blobs.mkdir(parents=True)
    for name in sorted(files_under(whole.path)):
        place = snapshot / name
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / sha256(whole.path / name)
        shutil.copy(whole.path / name, blob)
        place.symlink_to(os.path.relpath(blob, place.parent))
    assert same_tokens(FeatureCache.open(snapshot), FeatureCache.open(whole.path))
    assert FeatureCache.open(snapshot).verify() == []


# --- links that lead astray


def outside(path: Path, tmp_path: Path) -> Path:
    """Move a file or folder out of its cache and leave a link to it."""
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    return tmp_path / "outside"


@pytest.mark.parametrize("place", ["manifest.json", TOP, f"{TOP}/000000.safetensors"])
def test_a_link_out_of_the_cache_is_not_read(copy: Path, tmp_path: Path, place: str) -> None:
    opened = FeatureCache.open(copy)
    outside(copy / place, tmp_path)
    with pytest.raises(CacheDamagedError, match="link out of"):
        FeatureCache.open(copy)
    if place != "manifest.json":
        with pytest.raises(CacheDamagedError, match="link out of"):
            opened.gather(TOP, [0])
        assert "link out of" in opened.verify()[0]


KINDS = ["pipe", "folder", "device", "gigantic file"]


def put(kind: str, path: Path) -> None:
    """What no reader must wait for, or read whole, in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 2**40)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_waited_for(copy: Path, kind: str) -> None:
    for path in (copy / TOP / "000000.safetensors", copy / "manifest.json"):
        put(kind, path)
        with pytest.raises(CacheDamagedError):
            FeatureCache.open(copy)


def remove(tell: Tell, cache: Path) -> str | None:
    """For children: `lerobot-theia-cache rm`, in little memory; what it ends with, None if it deleted."""
    places.little_memory()
    sys.argv = ["lerobot-theia-cache", "rm", "-y", str(cache)]
    try:
        cache_command.main()
    except SystemExit as end:
        return str(end.code) if end.code else None
    return "went on"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [["manifest.json"], [f"{TOP}/000000.safetensors", "manifest.json"]])
def test_rm_does_not_wait_for_what_is_no_file(copy: Path, names: list[str], kind: str) -> None:
    """It deletes the rest of the cache, and a folder is not its own."""
    for name in names:
        put(kind, copy / name)
    outcome = children.run(remove, copy)
    assert outcome.status == 0 and outcome.value is None, outcome
    assert files_under(copy) == set()
    assert copy.exists() == (kind == "folder")


@pytest.mark.parametrize("kind", KINDS)
def test_rm_does_not_wait_for_what_only_looks_like_a_cache(tmp_path: Path, kind: str) -> None:
    names = [
        "manifest.json",
        ".shard-frames",
        ".claim-manifest",
        "camera/000000.safetensors",
        "camera/.claim-000000",
    ]
    for name in names:
        (tmp_path / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        put(kind, tmp_path / "theirs" / name)
    assert "is no feature cache" in children.run(remove, tmp_path / "theirs").value
    assert all(os.path.lexists(tmp_path / "theirs" / name) for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_precompute_does_not_wait_for_what_is_no_file(whole: Whole, copy: Path, kind: str) -> None:
    """It puts its own in the place, but never removes a folder."""
    put(kind, copy / ".shard-frames")
    put(kind, copy / "manifest.json")
    put(kind, copy / TOP / "000000.safetensors")
    outcome = children.run(make_in_little_memory, whole.job, copy.parents[1])
    if kind == "folder":
        assert outcome.error.startswith(f"CannotWriteError: cannot write {copy}"), outcome.details
    else:
        assert outcome.value, outcome.details
        assert same_tokens(FeatureCache.open(copy), FeatureCache.open(whole.path))


def make_in_little_memory(tell: Tell, job: Job, root: Path) -> bool:
    """For children: precompute."""
    places.little_memory()
    return precompute(job.settings(root)).frames_encoded > 0


def owners_of(tell: Tell, path: Path) -> str:
    """For children: who has a claim, in little memory."""
    places.little_memory()
    return owner(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_that_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    put(kind, tmp_path / ".claim-000000")
    assert children.run(owners_of, tmp_path / ".claim-000000").value == "another process"


def test_a_link_in_the_place_of_a_cameras_folder_is_not_written_through(
    whole: Whole, copy: Path, tmp_path: Path
) -> None:
    theirs = outside(copy / TOP, tmp_path)
    (theirs / "000000.safetensors").write_bytes(b"mine")
    before = state(theirs)
    outcome = run(whole.job, copy.parents[1])
    assert outcome.error.startswith(f"CacheError: {copy / TOP} is a link")
    assert state(theirs) == before


@pytest.mark.parametrize(
    "name", [".claim-manifest", ".claim-shard-frames", f"{TOP}/.claim-000000", ".shard-frames"]
)
def test_a_link_in_the_place_of_a_working_file_is_not_written_through(
    whole: Whole, copy: Path, tmp_path: Path, name: str
) -> None:
    (copy / "manifest.json").unlink()
    (copy / TOP / "000000.safetensors").unlink()
    precious = tmp_path / "precious"
    precious.write_text("1")
    os.utime(precious, (0, 0))  # as old as an abandoned claim
    (copy / name).symlink_to(precious)
    outcome = run(whole.job, copy.parents[1])
    assert precious.read_text() == "1"
    assert outcome.value or outcome.error.startswith(f"CannotWriteError: cannot write {copy / name}")


def test_a_link_in_the_place_of_a_temporary_file_is_removed_and_not_what_it_leads_to(
    whole: Whole, copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    (copy / TOP / ".writing-x").symlink_to(tmp_path / "precious")
    os.utime(tmp_path / "precious", (0, 0))
    made(run(whole.job, copy.parents[1]))
    assert (tmp_path / "precious").read_text() == "mine"


def test_shards_in_folders_of_others_are_not_taken_for_leftovers(
    whole: Whole, copy: Path, tmp_path: Path
) -> None:
    """A run that finishes a cache removes shards of another size, and only in the folders of its cameras."""
    (copy / "manifest.json").unlink()
    (tmp_path / "models").mkdir()
    foreign = [tmp_path / "models" / "000009.safetensors", copy / "llama" / "000009.safetensors"]
    (copy / "llama").mkdir()
    (copy / "link").symlink_to(tmp_path / "models")
    for path in foreign:
        path.write_bytes(b"mine")
    made(run(whole.job, copy.parents[1]))
    assert [path.read_bytes() for path in foreign] == [b"mine"] * 2


def test_hashes_are_not_written_through_a_link(whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("{}")
    root = tmp_path / "root"
    root.mkdir()
    (root / ".hashes.json").symlink_to(tmp_path / "precious")
    made(run(whole.job, root))
    assert (tmp_path / "precious").read_text() == "{}"
    assert json.loads((root / ".hashes.json").read_text())
