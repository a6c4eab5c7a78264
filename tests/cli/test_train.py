"""`lerobot-train`, unmodified, as a user runs it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import checked, run, train
from tests.datasets import REPO_ID, make_dataset

ON_CPUS = Path(__file__).with_name("train_on_cpus.py")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "dataset_name", ["videos", "images"], ids=["one camera, video", "two cameras, images"]
)
@pytest.mark.parametrize("kind", ["theia_act", "theia_diffusion"])
def test_training_from_the_cache_is_training_online_without_the_encoder(
    kind, dataset_name, request, cache_root, no_caches, tmp_path
):
    dataset = request.getfixturevalue(dataset_name)
    cached = checked(train(kind, dataset, tmp_path / "cached", cache_root=cache_root / dataset.name))
    online = checked(
        train(kind, dataset, tmp_path / "online", "--policy.features=online", cache_root=no_caches)
    )
    assert "Theia features: cached" in cached.output
    assert "Theia features: online, as --policy.features=online asks" in online.output
    assert len(cached.losses) == len(online.losses) == 2
    # Statistics of the cache are over all frames, as are those of a sample larger than the dataset.
    assert cached.losses == pytest.approx(online.losses, rel=2e-3)
    assert "UNTRAINED" in cached.output


def test_resuming_continues_exactly_where_it_stopped(videos, cache_root, tmp_path):
    root = cache_root / "videos"
    whole = checked(train("theia_act", videos, tmp_path / "whole", cache_root=root, steps=4))
    checked(train("theia_act", videos, tmp_path / "parts", cache_root=root, steps=2))
    config = tmp_path / "parts/checkpoints/last/pretrained_model/train_config.json"
    rest = checked(run("lerobot-train", f"--config_path={config}", "--resume=true", "--steps=4"))
    assert rest.losses == whole.losses[2:]
    assert "Theia features: cached" in rest.output


def test_held_out_loss_episodes_rollouts_and_wandb_keep_working(tmp_path):
    """On PushT, so that lerobot-train can evaluate in the simulator on the way and lerobot-eval afterwards."""
    from lerobot_theia.demos.pusht import record_pusht

    dataset = tmp_path / "pusht"
    record_pusht(dataset, num_episodes=3)
    checked(
        run("lerobot-theia-precompute", "dataset=pusht_expert", f"dataset.root={dataset}", "encoder=random_tiny", "pool=7",
            f"cache_root={tmp_path / 'caches'}", "wandb.enable=true", "wandb.mode=offline", cwd=tmp_path)
    )  # fmt: skip
    assert list(tmp_path.glob("wandb/offline-run-*")), "precompute logs to wandb, too"
    outcome = checked(
        train(
            "theia_diffusion", dataset, tmp_path / "run", "--dataset.episodes=[0,2]", "--dataset.eval_split=0.5",
            "--eval_steps=2", "--max_eval_samples=8", "--env.type=pusht", "--env.episode_length=9", "--env_eval_freq=2",
            "--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false", "--wandb.enable=true",
            "--wandb.mode=offline", "--policy.token_pool=7", "--policy.features=cached",
            repo_id="local/pusht_expert", cache_root=tmp_path / "caches",
        )
    )  # fmt: skip
    assert "dataset.num_episodes=1" in outcome.output
    assert "eval_loss=" in outcome.output
    assert "'pc_success'" in outcome.output
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))

    # The checkpoint is all there is on the machine it is evaluated on.
    checkpoint = shutil.copytree(tmp_path / "run/checkpoints/last/pretrained_model", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "caches")
    shutil.rmtree(dataset)
    checked(
        run(
            "lerobot-eval", f"--policy.path={checkpoint}", "--policy.device=cpu", "--env.type=pusht",
            "--env.episode_length=9", "--eval.n_episodes=3", "--eval.batch_size=3", "--eval.use_async_envs=false",
            f"--output_dir={tmp_path / 'eval'}", cwd=tmp_path,
        )
    )  # fmt: skip
    result = json.loads((tmp_path / "eval/eval_info.json").read_text())
    assert result["overall"]["n_episodes"] == 3
    assert all(Path(tmp_path, video).is_file() for video in result["overall"]["video_paths"])


def test_two_processes_train_under_accelerate(videos, cache_root, tmp_path):
    outcome = checked(
        train(
            "theia_diffusion", videos, tmp_path / "run", cache_root=cache_root / "videos",
            # What `accelerate launch --num_processes=2` starts; on CPUs it wants MPI to do so.
            launcher=("torchrun", "--nproc_per_node=2", "--standalone", str(ON_CPUS)),
        )
    )  # fmt: skip
    assert "Effective batch size: 4 x 2 = 8" in outcome.output
    assert outcome.output.count("Theia features: cached") >= 1
    assert (tmp_path / "run/checkpoints/last/pretrained_model/model.safetensors").is_file()


def test_loader_workers_serve_the_same_batches(videos, cache_root, tmp_path):
    root = cache_root / "videos"
    alone = checked(train("theia_act", videos, tmp_path / "alone", cache_root=root))
    workers = checked(train("theia_act", videos, tmp_path / "workers", "--num_workers=1", cache_root=root))
    assert workers.losses == alone.losses


def test_fine_tuning_a_checkpoint_on_a_dataset_that_names_its_camera_differently(
    videos, cache_root, tmp_path
):
    checked(train("theia_act", videos, tmp_path / "first", cache_root=cache_root / "videos", steps=1))
    front = {"observation.images.front": (48, 64), "observation.images.wrist": (32, 32)}
    dataset = make_dataset(tmp_path / "front", episodes=(6, 5), cameras=front)
    checked(
        run(
            "lerobot-theia-precompute", f"+dataset.repo_id={REPO_ID}", f"dataset.root={dataset}", "encoder=random_tiny",
            "cameras=[observation.images.front]", f"cache_root={tmp_path / 'caches'}",
        )
    )  # fmt: skip
    outcome = checked(
        run(
            "lerobot-train", f"--policy.path={tmp_path / 'first/checkpoints/last/pretrained_model'}",
            "--policy.push_to_hub=false", "--policy.features=cached", f"--policy.cache_root={tmp_path / 'caches'}",
            "--rename_map={observation.images.front: observation.images.top}",
            f"--dataset.repo_id={REPO_ID}", f"--dataset.root={dataset}", "--batch_size=2", "--steps=1", "--log_freq=1",
            "--num_workers=0", f"--output_dir={tmp_path / 'second'}",
        )
    )  # fmt: skip
    assert "Theia features: cached" in outcome.output
    assert len(outcome.losses) == 1


def test_auto_without_a_cache_trains_online_and_says_how_to_precompute(videos, no_caches, tmp_path):
    outcome = checked(train("theia_act", videos, tmp_path / "run", cache_root=no_caches, steps=1))
    assert "Theia features: online" in outcome.output
    assert (
        f"""lerobot-theia-precompute '+dataset.repo_id="local/tiny"' 'dataset.root="{videos}"'"""
        in outcome.output
    )


def test_auto_with_image_transforms_trains_online_and_says_why(videos, cache_root, tmp_path):
    flags = "--dataset.image_transforms.enable=true"
    outcome = checked(
        train("theia_act", videos, tmp_path / "run", flags, cache_root=cache_root / "videos", steps=1)
    )
    assert "Theia features: online, --dataset.image_transforms.enable=true" in outcome.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy.features=cached"], "no feature cache under"),
        (
            ["--policy.features=cached", "--dataset.streaming=true"],
            "does not go with --dataset.streaming=true",
        ),
        (
            ["--policy.features=cached", "--dataset.image_transforms.enable=true"],
            "does not go with --dataset.image_transforms.enable=true",
        ),
        (["--policy.encoder=theia-huge"], "unknown encoder 'theia-huge'"),
        (["--policy.encoder=theia-tiny-cdiv"], "theia-tiny-sim comes with the package"),
    ],
    ids=["no cache", "streaming", "image transforms", "unknown encoder", "encoder not on this machine"],
)
def test_what_cannot_be_trained_ends_before_training(flags, message, videos, no_caches, tmp_path):
    outcome = train("theia_act", videos, tmp_path / "run", *flags, cache_root=no_caches)
    assert outcome.code != 0
    assert message in outcome.output
    assert "Start offline training" not in outcome.output


@pytest.mark.parametrize("kind", ["theia_act", "theia_diffusion"])
def test_help_lists_the_flags(kind):
    outcome = checked(run("lerobot-train", f"--policy.type={kind}", "--help"))
    for flag in ("encoder", "features", "cache_root", "token_pool"):
        assert f"--policy.{flag}" in outcome.output


def test_other_policies_train_as_if_the_plugin_were_not_there(videos, no_caches, tmp_path):
    outcome = checked(
        run(
            "lerobot-train", "--policy.type=act", "--policy.push_to_hub=false", "--policy.device=cpu",
            "--policy.pretrained_backbone_weights=null", "--policy.chunk_size=8", "--policy.n_action_steps=4",
            "--policy.dim_model=32", "--policy.n_heads=2", "--policy.dim_feedforward=64", "--policy.n_encoder_layers=1",
            "--dataset.repo_id=local/tiny", f"--dataset.root={videos}", "--batch_size=2", "--steps=1",
            "--num_workers=0", "--save_checkpoint=false", f"--output_dir={tmp_path / 'run'}",
        )
    )  # fmt: skip
    assert "Theia features" not in outcome.output
