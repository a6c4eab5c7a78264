"""The two commands: what they say, how they end, and what they leave behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import hydra
import pytest

from lerobot_theia.cache import CacheError, FeatureCache
from lerobot_theia.cache.manifest import write_manifest
from lerobot_theia.cache.plan import PrecomputeSettings
from lerobot_theia.scripts import cache as cache_command
from lerobot_theia.scripts.configs import config_folder
from lerobot_theia.scripts.precompute import check_report, settings_of
from tests.cache.helpers import TOP, WRIST, copy_of, digests, run, shards, strays
from tests.datasets import REPO_ID

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run_command(name: str, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as installed beside this Python, in a folder of its own."""
    return subprocess.run(
        [Path(sys.executable).with_name(name), *words],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        text=True,
        capture_output=True,
        timeout=300,
    )


def precompute_words(dataset: Path, cache_root: Path, *more: str) -> list[str]:
    return [
        f"+dataset.repo_id={REPO_ID}",
        f"dataset.root={dataset}",
        "encoder=random_tiny",
        f"cache_root={cache_root}",
        "device=cpu",
        *more,
    ]


def not_found(*_: object, **__: object) -> None:
    raise FileNotFoundError("no such dataset")


class TestCacheCommand:
    """`lerobot-theia-cache`, in this process: starting one takes seconds."""

    @pytest.fixture
    def command(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        def run_it(*words: object) -> tuple[int, str]:
            """Exit status, and all that was written."""
            monkeypatch.setattr(sys, "argv", ["lerobot-theia-cache", *map(str, words)])
            with pytest.raises(SystemExit) as exit_:
                cache_command.main()
            code = exit_.value.code
            written = capsys.readouterr()
            text = code if isinstance(code, str) else ""
            return (1 if text else int(code or 0)), written.out + written.err + text

        return run_it

    @pytest.fixture
    def cache(self, video_cache: FeatureCache, tmp_path: Path) -> FeatureCache:
        return copy_of(video_cache, tmp_path)

    def test_ls_tells_what_each_cache_is(self, command, cache: FeatureCache) -> None:
        status, text = command("ls", cache.path.parents[1])
        assert status == 0
        assert str(cache.path) in text
        assert "local/tiny, 16 frames x 2 camera(s), random-tiny, 14x14 x 192 float16, 2.4" in text

    def test_ls_looks_where_precompute_puts_caches(
        self, command, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LEROBOT_THEIA_CACHE", str(cache.path.parents[1]))
        assert str(cache.path) in command("ls")[1]

    def test_ls_shows_a_damaged_manifest_and_goes_on(self, command, cache: FeatureCache) -> None:
        other = cache.path.parent / "another"
        other.mkdir()
        (other / "manifest.json").write_text("{}")
        status, text = command("ls", cache.path.parents[1])
        assert status == 0 and f"{other}\n    NOT READABLE" in text and "16 frames" in text

    def test_ls_of_nothing(self, command, tmp_path: Path) -> None:
        assert command("ls", tmp_path) == (0, f"no caches under {tmp_path}\n")

    def test_info_is_json_with_the_whole_identity(self, command, cache: FeatureCache) -> None:
        status, text = command("info", cache.path)
        told = json.loads(text)
        assert status == 0
        assert told["identity"] == cache.manifest.identity.to_json()
        assert told["shards"] == {TOP: 2, WRIST: 2} and told["made_with"]["settings"]["batch_size"] == 64

    def test_info_shows_a_damaged_cache_whose_settings_mend_it(self, command, cache: FeatureCache) -> None:
        shards(cache.path)[0].write_bytes(b"")
        assert "the settings of this cache, which `info` shows" in command("verify", cache.path)[1]
        status, text = command("info", cache.path)
        assert status == 0 and json.loads(text)["made_with"] == cache.manifest.made_with

    def test_verify_of_a_whole_cache(self, command, cache: FeatureCache) -> None:
        status, text = command("verify", cache.path)
        assert status == 0 and "every byte is as it was written" in text

    def test_verify_names_damage_and_fails(self, command, cache: FeatureCache) -> None:
        path = shards(cache.path)[2]
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        status, text = command("verify", cache.path)
        assert status == 1 and f"shard {path} was altered" in text and "1 shard(s)" in text

    def test_verify_can_make_damaged_shards_again_wherever_the_cache_is_now(
        self, command, video_dataset: Path, video_cache: FeatureCache, cache: FeatureCache, tmp_path: Path
    ) -> None:
        moved = cache.path.rename(tmp_path / "renamed")
        before = digests(moved)
        path = shards(moved)[2]
        path.write_bytes(b"")
        untouched = {shard: shard.stat().st_mtime_ns for shard in shards(moved) if shard != path}
        status, text = command("verify", "--repair", moved, "--dataset-root", video_dataset)
        assert status == 0 and f"shard {path} has 0 bytes" in text and "1 damaged file(s) made again" in text
        assert digests(moved) == before and not strays(moved)
        assert {shard: shard.stat().st_mtime_ns for shard in untouched} == untouched
        assert command("verify", moved)[0] == 0
        assert not list(moved.parent.glob("local--tiny/*")), "no other cache was made"

    def test_repair_refuses_what_would_become_another_cache(
        self, command, image_dataset: Path, cache: FeatureCache
    ) -> None:
        before = digests(cache.path)
        shards(cache.path)[0].unlink()
        status, text = command("verify", "--repair", cache.path, "--dataset-root", image_dataset)
        assert status == 1 and "dataset.cameras" in text
        assert digests(cache.path).items() <= before.items(), "nothing was written"

    def test_repair_asks_for_an_encoder_that_was_a_folder(
        self, command, video_dataset: Path, cache: FeatureCache, tmp_path: Path
    ) -> None:
        manifest = cache.manifest
        recorded = {
            name: value for name, value in manifest.made_with["settings"].items() if name != "encoder"
        }
        write_manifest(cache.path, replace(manifest, made_with={**manifest.made_with, "settings": recorded}))
        before = digests(cache.path)
        shards(cache.path)[0].unlink()
        status, text = command("verify", "--repair", cache.path, "--dataset-root", video_dataset)
        assert status == 1 and "name it with --encoder" in text
        words = ["--dataset-root", video_dataset, "--encoder", "random-tiny"]
        assert command("verify", "--repair", cache.path, *words)[0] == 0
        assert shards(cache.path)[0].read_bytes() and digests(cache.path).keys() == before.keys()

    def test_repair_with_an_encoder_that_is_none_is_one_line(
        self, command, video_dataset: Path, cache: FeatureCache
    ) -> None:
        shards(cache.path)[0].unlink()
        words = ["verify", "--repair", cache.path, "--dataset-root", video_dataset, "--encoder", "nonsuch"]
        status, text = command(*words)
        assert status == 1 and "lerobot-theia-cache: encoder 'nonsuch': unknown encoder" in text
        assert "Name another with --encoder" in text

    @pytest.mark.parametrize("words", [[], ["--dataset-root", "/nowhere"]])
    def test_repair_of_a_dataset_that_is_elsewhere_names_its_flag(
        self, command, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, words: list[str]
    ) -> None:
        monkeypatch.setattr("lerobot_theia.cache.dataset.LeRobotDatasetMetadata", not_found)
        shards(cache.path)[0].unlink()
        status, text = command("verify", "--repair", cache.path, *words)
        assert status == 1 and "`--dataset-root` of `lerobot-theia-cache verify --repair`" in text

    @pytest.mark.parametrize("word", ["info", "verify"])
    def test_what_is_no_cache_is_said_in_one_line(self, command, tmp_path: Path, word: str) -> None:
        status, text = command(word, tmp_path)
        assert status == 1 and text.startswith(f"lerobot-theia-cache: {tmp_path} holds no manifest.json")

    def test_rm_deletes_a_cache_and_nothing_beside_it(self, command, cache: FeatureCache) -> None:
        beside = cache.path.parent / "notes.txt"
        beside.write_text("mine")
        status, text = command("rm", "-y", cache.path)
        assert status == 0 and "deleted" in text
        assert not cache.path.exists() and beside.read_text() == "mine"

    def test_rm_never_deletes_what_is_not_its_own(self, command, cache: FeatureCache) -> None:
        foreign = [cache.path / "notes.txt", cache.path / TOP / "best.safetensors", cache.path / "sub" / "x"]
        for path in foreign:
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")
        assert command("rm", "-y", cache.path)[0] == 0
        assert [path.read_text() for path in foreign] == ["mine"] * 3
        assert not (cache.path / "manifest.json").exists()
        assert not list(cache.path.glob("*/0*.safetensors"))

    def test_rm_asks_first(self, command, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("builtins.input", lambda _: "n")
        assert command("rm", cache.path)[0] == 1
        assert FeatureCache.open(cache.path).verify() == []

    def test_rm_deletes_what_was_made_while_it_waited_for_an_answer(
        self, command, video_dataset: Path, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run that it found interrupted is finished meanwhile."""
        (cache.path / "manifest.json").unlink()
        shards(cache.path)[1].unlink()

        def answer(_: str) -> str:
            assert run(video_dataset, cache.path.parents[1])[0].path == cache.path
            return "y"

        monkeypatch.setattr("builtins.input", answer)
        assert command("rm", cache.path)[0] == 0
        assert not cache.path.exists()

    def test_rm_deletes_the_current_folder(
        self, command, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(cache.path)
        status, text = command("rm", "-y", ".")
        assert status == 0 and f"deleted {cache.path}" in text
        assert not cache.path.exists()

    def test_rm_of_a_link_that_leads_to_itself_is_one_line(self, command, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        assert "is no feature cache" in command("rm", "-y", tmp_path / "loop")[1]

    def test_rm_refuses_what_is_no_cache(self, command, tmp_path: Path) -> None:
        (tmp_path / "precious.txt").write_text("mine")
        status, text = command("rm", "-y", tmp_path)
        assert status == 1 and "is no feature cache" in text
        assert (tmp_path / "precious.txt").exists()

    def test_rm_refuses_a_link(self, command, cache: FeatureCache, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(cache.path)
        assert command("rm", "-y", link)[0] == 1
        assert FeatureCache.open(cache.path).verify() == []

    def test_rm_refuses_a_root_of_caches(self, command, cache: FeatureCache) -> None:
        assert command("rm", "-y", cache.path.parents[1])[0] == 1
        assert FeatureCache.open(cache.path).verify() == []

    @pytest.mark.parametrize("place", ["manifest.json", "llama/000001.safetensors"])
    def test_rm_refuses_files_that_only_look_like_its_own(self, command, tmp_path: Path, place: str) -> None:
        path = tmp_path / "theirs" / place
        path.parent.mkdir(parents=True)
        path.write_text('{"name": "a web app"}')
        assert command("rm", "-y", tmp_path / "theirs")[0] == 1
        assert path.exists()


@pytest.mark.slow
class TestPrecomputeCommand:
    """`lerobot-theia-precompute`, as users start it."""

    def test_makes_a_cache_once_and_leaves_nothing_in_the_current_folder(
        self, video_dataset: Path, tmp_path: Path
    ) -> None:
        here = tmp_path / "here"
        here.mkdir()
        words = precompute_words(video_dataset, tmp_path / "caches", f"cameras=[{WRIST}]", "pool=2")
        done = run_command("lerobot-theia-precompute", *words, cwd=here)
        assert done.returncode == 0, done.stderr
        assert "16 frames encoded" in done.stdout + done.stderr
        [manifest] = (tmp_path / "caches").glob("*/*/manifest.json")
        assert FeatureCache.open(manifest.parent).cameras == [WRIST]

        again = run_command("lerobot-theia-precompute", *words, cwd=here)
        assert again.returncode == 0 and "nothing to do" in again.stdout + again.stderr
        assert list(here.iterdir()) == []

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "which dataset? Name one of configs/dataset"),
            (
                ["+dataset.repo_id=a/b", "dataset.root=/nowhere"],
                "dataset.root=/nowhere holds no LeRobotDataset",
            ),
            (["+dataset.repo_id=a/b", "dtype=float12"], "dtype='float12' is not a storage type"),
            (["+dataset.repo_id=a/b", "batch_size=many"], "batch_size='many' must be a whole number"),
            (
                ["+dataset.repo_id=a/b", "report=none/report.json"],
                "report=none/report.json cannot be written",
            ),
            (["dataset=pusht_expert"], "dataset 'local/pusht_expert' is neither in LeRobot's home nor"),
        ],
    )
    def test_a_wrong_request_is_one_line_and_no_traceback(
        self, tmp_path: Path, words: list[str], message: str
    ) -> None:
        done = run_command(
            "lerobot-theia-precompute",
            "encoder=random_tiny",
            f"cache_root={tmp_path}/caches",
            *words,
            cwd=tmp_path,
        )
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith(f"lerobot-theia-precompute: {message}")
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "name", sorted({path.stem for path in Path(config_folder(), "dataset").glob("*.yaml")} - {"any"})
    )
    def test_ready_configs_compose(self, name: str) -> None:
        with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
            config = hydra.compose("precompute", [f"dataset={name}", "encoder=theia_small_cddsv"])
        settings = PrecomputeSettings(**settings_of(config))
        assert "/" in settings.repo_id and settings.encoder == "theia-small-cddsv"

    @pytest.mark.parametrize(
        "word", ["dataset.root=20260115", "dataset.revision=1.10", "cache_root=1e5", "report=true"]
    )
    def test_a_number_in_the_place_of_a_name_is_sent_back_for_quotes(self, word: str) -> None:
        """What was typed is lost by then: 1.10 has become 1.1."""
        name = word.partition("=")[0]
        with (
            hydra.initialize_config_dir(config_folder(), version_base="1.3"),
            pytest.raises(
                ValueError, match=rf"{name} was read as .*, and must be text: .*'{name}=\"\.\.\.\"'"
            ),
        ):
            settings_of(hydra.compose("precompute", ["+dataset.repo_id=a/b", word]))

    @pytest.mark.parametrize(
        ("word", "cameras"),
        [
            ("cameras=null", None),
            (f"cameras={TOP}", (TOP,)),
            (f"cameras=[{TOP}]", (TOP,)),
            (f"cameras=[{TOP},{WRIST}]", (TOP, WRIST)),
        ],
    )
    def test_one_camera_needs_no_brackets(self, word: str, cameras: tuple[str, ...] | None) -> None:
        with hydra.initialize_config_dir(config_folder(), version_base="1.3"):
            fields = settings_of(hydra.compose("precompute", ["+dataset.repo_id=a/b", word]))
        assert fields["cameras"] == cameras

    def test_a_cache_of_no_cameras_is_not_made(self, video_dataset: Path, tmp_path: Path) -> None:
        with pytest.raises(CacheError, match=r"cameras=\[\] names none of the cameras .* leave cameras out"):
            run(video_dataset, tmp_path, cameras=())
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["none/report.json", ".", "file/report.json"])
    def test_a_report_needs_a_place(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        check_report(tmp_path / "report.json")
        check_report(tmp_path / "file")
        with pytest.raises(ValueError, match="cannot be written: name a file"):
            check_report(tmp_path / name)

    def test_killed_without_warning_it_resumes(self, video_dataset: Path, tmp_path: Path) -> None:
        words = precompute_words(
            video_dataset, tmp_path / "caches", "shard_mib=1", "batch_size=1", "dtype=float32"
        )
        process = subprocess.Popen(
            [Path(sys.executable).with_name("lerobot-theia-precompute"), *words],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        patience = time.monotonic() + 200
        while not (finished := list(tmp_path.glob("caches/*/*/*/0*.safetensors"))):
            assert process.poll() is None and time.monotonic() < patience, (
                "it ended before it could be killed"
            )
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        cache = finished[0].parents[1]
        if (cache / "manifest.json").exists():
            pytest.skip("it was finished before the signal came")
        kept = digests(cache)
        report, _ = run(video_dataset, tmp_path / "caches", batch_size=1, dtype="float32")
        assert report.frames_kept >= 6 and kept.items() <= digests(cache).items()
        whole, _ = run(video_dataset, tmp_path / "whole", batch_size=1, dtype="float32")
        assert digests(cache) == digests(whole.path)
        assert not strays(cache)

    def test_a_file_size_limit_is_an_error_and_resumable(self, video_dataset: Path, tmp_path: Path) -> None:
        words = precompute_words(video_dataset, tmp_path / "caches", f"cameras=[{WRIST}]")
        script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); "
        script += "from lerobot_theia.scripts.precompute import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 1
        assert "File too large. Free some space" in done.stderr and "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("0*.safetensors")) and not list(tmp_path.rglob(".writing*"))

    def test_two_processes_make_one_cache(self, video_dataset: Path, tmp_path: Path) -> None:
        words = precompute_words(video_dataset, tmp_path / "caches", f"cameras=[{WRIST}]")
        processes = [
            subprocess.Popen(
                [Path(sys.executable).with_name("lerobot-theia-precompute"), *words],
                cwd=tmp_path,
                env=ENVIRONMENT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for _ in range(2)
        ]
        told = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], told
        encoded = [int(count) for text in told for count in re.findall(r"(\d+) frames encoded in", text)]
        assert sum(encoded) == 16, told
        [manifest] = (tmp_path / "caches").glob("*/*/manifest.json")
        assert FeatureCache.open(manifest.parent).verify() == []


@pytest.mark.slow
def test_the_cache_command_does_not_wait_for_lerobot_to_be_imported(video_cache: FeatureCache) -> None:
    listing = (
        "import sys; from lerobot_theia.scripts.cache import main\n"
        "try: main()\n"
        "finally: print([name for name in ('lerobot', 'datasets', 'transformers') if name in sys.modules])"
    )
    words = [sys.executable, "-c", listing, "ls", str(video_cache.path.parent)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert str(video_cache.path) in shown
    assert shown.splitlines()[-1] == "[]"


def test_the_cache_command_is_installed(video_cache: FeatureCache, tmp_path: Path) -> None:
    done = run_command("lerobot-theia-cache", "verify", str(video_cache.path), cwd=tmp_path)
    assert done.returncode == 0 and "every byte is as it was written" in done.stdout
    assert list(tmp_path.iterdir()) == []
